"""Token shards: the `.bin` files of llm.c and modded-nanogpt, and nanoGPT's headerless ones.

A shard is a header of 256 little-endian int32 (magic, version, token count, zeros), then the ids:

| magic | version | ids | who writes it |
|---|---|---|---|
| 20240520 | 1 | uint16 | llm.c for GPT-2 (`dev/data/data_common.py`), modded-nanogpt's FineWeb files |
| 20240801 | 7 | uint32 | llm.c for Llama 3 (the same file) |
| none | | uint16 | nanoGPT's `train.bin` and `val.bin`: ids from the first byte on |

gptlab writes the first for vocabularies of up to 65,536 ids and the second for larger ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.errors import DataError
from gptlab.files import fsync_directory, sha256_file

HEADER_BYTES = 256 * 4
MAX_TOKENS = 2**31 - 1  # the header counts in int32
MAX_SHARDS = 100_000  # of a split
_LAYOUTS: dict[tuple[int, int], np.dtype[Any]] = {
    (20240520, 1): np.dtype("<u2"),
    (20240801, 7): np.dtype("<u4"),
}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest id that `vocab_size` ids fit in: uint16 or uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class Shard:
    """One readable file of token ids: `tokens` ids of `dtype` from byte `offset` on."""

    path: Path
    tokens: int
    dtype: np.dtype[Any]
    offset: int

    def map(self) -> NDArray[Any]:
        """The ids, memory-mapped: (tokens,) of `dtype`."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.tokens,))


def read_header(path: Path) -> Shard:
    """What `path` holds, judged by its header, or nanoGPT's uint16 ids where there is none.

    Raises DataError where the file is missing, empty, or shorter or longer than its header says.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: the shard is missing; prepare the data set again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    header = np.frombuffer(start.ljust(HEADER_BYTES, b"\0"), dtype="<i4")
    magic, version = int(header[0]), int(header[1])
    dtype = _LAYOUTS.get((magic, version))
    if dtype is None:
        if magic in {known for known, _ in _LAYOUTS}:
            raise DataError(f"{path}: unknown shard version {version}; gptlab reads llm.c's 1 (uint16) and 7 (uint32)")
        if size == 0 or size % 2:
            raise DataError(f"{path}: {size} bytes without a shard header are no uint16 token ids; it is damaged")
        return Shard(path, size // 2, np.dtype("<u2"), 0)
    tokens = int(header[2])
    expected = HEADER_BYTES + tokens * dtype.itemsize
    if size != expected or tokens <= 0:
        raise DataError(
            f"{path}: {size} bytes where its header ({tokens} tokens) means {expected};"
            " it is truncated or damaged, prepare or download it again"
        )
    return Shard(path, tokens, dtype, HEADER_BYTES)


class ShardWriter:
    """Writes one shard aside; `close` makes it appear at `path` whole, on disk, with its checksum."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.tokens = path, dtype, 0
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by close() or discard()
        self._file.write(bytes(HEADER_BYTES))

    def append(self, ids: NDArray[Any]) -> None:
        """Add ids, (n,) of `dtype`."""
        self._file.write(np.ascontiguousarray(ids, dtype=self.dtype).data)
        self.tokens += len(ids)

    def close(self) -> str:
        """Finish the file and give back its SHA-256 (of what the disk holds, header included)."""
        header = np.zeros(256, dtype="<i4")
        header[:2] = next(key for key, dtype in _LAYOUTS.items() if dtype == self.dtype)
        header[2] = self.tokens
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        digest = sha256_file(self._temporary)
        os.replace(self._temporary, self.path)
        fsync_directory(self.path.parent)
        return digest

    def discard(self) -> None:
        """Throw away what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
