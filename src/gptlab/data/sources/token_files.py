"""Files of token ids: shards (`.bin`, see `gptlab.data.shards`) and NumPy arrays (`.npy`), read as one packed run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gptlab.data.shards import read_header
from gptlab.data.sources.base import Block, Cursor, Document, Reading, Source, damage_as_data_error, file_identity
from gptlab.errors import DataError

NAMED = (".bin", ".npy")  # in a folder of text they are something else

_IDS = 1 << 19  # of a block


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """The source that a file is. Its blocks are runs of ids, whatever `block_bytes`."""
    return IdsFile(path, name)


@dataclass(frozen=True)
class IdsBlock:
    """Ids `start` … `stop - 1` of a file, read by whoever needs them."""

    cursor: Cursor
    source: str
    path: str
    start: int
    stop: int
    source_bytes: int

    def documents(self, reading: Reading) -> Iterator[Document]:
        ids = _map(Path(self.path), self.source)[self.start : self.stop]
        yield Document("", self.source, continues=True, ids=np.array(ids))


@dataclass(frozen=True)
class IdsFile:
    """A file of packed token ids."""

    is_stream: ClassVar[bool] = False

    path: Path
    name: str

    def size(self, reading: Reading) -> int | None:
        return self.path.stat().st_size

    def identity(self) -> list[Any]:
        return file_identity(self.path)

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        ids = _map(self.path, self.name)
        for start in range(position or 0, len(ids), _IDS):
            stop = min(start + _IDS, len(ids))
            source_bytes = (stop - start) * ids.itemsize
            yield IdsBlock((number, start), self.name, str(self.path), start, stop, source_bytes)


def _map(path: Path, name: str) -> NDArray[Any]:
    """The ids of a file, memory-mapped: (tokens,). Raises DataError where it holds none."""
    if path.suffix == ".bin":
        return read_header(path).map()
    with damage_as_data_error(name):
        try:
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{name}: is no NumPy array ({error}); get the file again") from None
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or not ids.size:
        raise DataError(f"{name}: is no array of token ids; give one of integers")
    return ids.reshape(-1)
