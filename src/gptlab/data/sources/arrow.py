"""Arrow files and streams, and the folders that `save_to_disk` of Hugging Face's datasets leaves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptlab.data.sources.base import (
    BLOCK_BYTES,
    Block,
    Reading,
    RowsBlock,
    Source,
    damage_as_data_error,
    file_identity,
)
from gptlab.data.sources.columns import check_column, column_of, values_of
from gptlab.errors import DataError

SUFFIXES = (".arrow", ".feather")

_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """The source that a file is. Its blocks are slices of record batches, whatever `block_bytes`."""
    return ArrowFile(path, name)


def folder_files(folder: Path) -> list[Path] | None:
    """The files of a data set that `save_to_disk` wrote, in order; None for other folders.

    Raises DataError for a folder of several splits, and where a file is missing.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(str(path.parent) for path in sorted(folder.glob("*/state.json")))
        raise DataError(f"{folder}: holds several splits; name the one to read: {splits}")
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        files = [folder / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{state}: does not say which files there are ({error!r}); save the data set again") from None
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: is missing, and {state} names it; get the folder again")
    return files


@dataclass(frozen=True)
class ArrowFile:
    """An Arrow file or stream, mapped into memory."""

    is_stream: ClassVar[bool] = False

    path: Path
    name: str

    def size(self, reading: Reading) -> int | None:
        return None

    def identity(self) -> list[Any]:
        return file_identity(self.path)

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        start, row = position or 0, 0
        for batch in self._batches(reading):
            column = column_of(batch, reading.text_column)
            slices = max(1, min(column.nbytes // BLOCK_BYTES, len(column)))
            edges = [row + len(column) * i // slices for i in range(slices + 1)]
            for first, last in itertools.pairwise(edges):
                if first >= start and last > first:
                    texts = values_of(column.slice(first - row, last - first))
                    yield RowsBlock((number, first), self.name, first, texts, first=first == 0)
            row += len(column)

    def _batches(self, reading: Reading) -> Iterator[Any]:
        import pyarrow as pa

        with damage_as_data_error(self.name), pa.memory_map(str(self.path)) as file:
            if file.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(file)
                check_column(reader.schema, reading, self.name)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
                return
            file.seek(max(0, file.size() - len(_STREAM_END)))
            if file.read() != _STREAM_END:
                raise DataError(f"{self.name}: is cut off or no Arrow file (its end mark is missing); get it again")
            file.seek(0)
            with pa.ipc.open_stream(file) as stream:
                check_column(stream.schema, reading, self.name)
                yield from stream
