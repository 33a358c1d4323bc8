"""Files as streams of bytes, whatever they are compressed with, cut into blocks and lines at bounded memory.

A compressed file that ends early is an error: what lies behind its end would be lost without a word.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from gptlab.console import say
from gptlab.data.sources.base import BLOCK_BYTES, Reading, damage_as_data_error, file_identity
from gptlab.errors import DataError

PACKED = (".gz", ".zst", ".bz2", ".xz")
HEAD_BYTES = 512
MAX_LINE_BYTES = 1 << 27  # a line or a JSON value is held whole: a longer one is damage, or no line

_BUFFER_BYTES = 1 << 16


def suffixes(path: Path) -> str:
    """`.jsonl.gz` of `a.b.JSONL.gz`: the last suffix, with the one before where the last only says "compressed"."""
    packed = path.suffix.lower() in PACKED
    return ((Path(path.stem).suffix if packed else "") + path.suffix).lower()


@contextlib.contextmanager
def open_stream(path: Path, name: str) -> Iterator[io.BufferedReader]:
    """The unpacked bytes of a file. Raises DataError, while it is read, where the file is damaged or cut off."""
    with damage_as_data_error(name), open(path, "rb") as file:
        yield unpack(file, path.suffix.lower())


def unpack(file: io.BufferedReader, suffix: str) -> io.BufferedReader:
    """What `file` holds, decompressed where `suffix` says that it is compressed."""
    suffix = ".gz" if suffix == ".tgz" else suffix
    if suffix not in PACKED:
        return file
    if not file.peek(1):
        raise EOFError("it is empty")
    raw: Any
    if suffix == ".gz":
        raw = gzip.GzipFile(fileobj=file, mode="rb")
    elif suffix == ".zst":  # Arrow's reader refuses a frame that is cut off; zstandard's takes it as whole
        import pyarrow

        raw = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    else:
        raw = _Members(file, bz2.BZ2Decompressor if suffix == ".bz2" else lzma.LZMADecompressor)
    return io.BufferedReader(raw, _BUFFER_BYTES)


@dataclass(frozen=True)
class PackedFile:
    """A file, plain or compressed, that is read from its beginning on."""

    is_stream: ClassVar[bool] = False

    path: Path
    name: str
    block_bytes: int = BLOCK_BYTES

    def size(self, reading: Reading) -> int | None:
        """As of `Source`: what a compressed file holds is known in the end."""
        return None if self.path.suffix.lower() in PACKED else self.path.stat().st_size

    def identity(self) -> list[Any]:
        """As of `Source`: blocks of another size have other cursors."""
        return [*file_identity(self.path), self.block_bytes]


class _Members(io.RawIOBase):
    """The members of a bzip2 or xz file, each of which has to be whole; the standard library's readers drop a damaged
    one after the first."""

    def __init__(self, file: io.BufferedReader, new: Callable[[], Any]) -> None:
        self._file, self._new, self._member = file, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            if self._member.eof:
                packed = self._member.unused_data.lstrip(b"\0")  # xz pads with zeros
                while not packed:
                    packed = self._file.read(_BUFFER_BYTES)
                    if not packed:
                        return 0
                    packed = packed.lstrip(b"\0")
                self._member = self._new()
            else:
                packed = self._file.read(_BUFFER_BYTES) if self._member.needs_input else b""
                if self._member.needs_input and not packed:
                    raise EOFError("it ends before its end mark")
            content = self._member.decompress(packed, len(buffer))
        buffer[: len(content)] = content
        return len(content)


def skip(file: io.BufferedReader, offset: int) -> None:
    """Go to byte `offset` of a stream that has not been read from."""
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0 and (passed := len(file.read(min(offset, 1 << 20)))):
        offset -= passed


def lines_of(file: io.BufferedReader, name: str) -> Iterator[tuple[int, bytes]]:
    """Each line, its end included, with the byte where it begins. Raises DataError for one that is too long."""
    offset = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise too_long(name, "line")
        yield offset, line
        offset += len(line)


def split_into_blocks(
    file: io.BufferedReader, name: str, left: int | None, block_bytes: int, cut: Callable[[bytes], int]
) -> Iterator[tuple[bytes, bool]]:
    """Split the rest of `file` (or `left` bytes of it) into blocks; yields each with whether it is the last.

    A block is decided by the bytes from its beginning on, never by where reading began: `cut` sees `block_bytes` of
    them, and twice as many as long as it answers 0. Raises DataError where there is no place to cut.
    """
    buffer, wanted = b"", block_bytes
    while True:
        missing = max(0, wanted - len(buffer))
        content = file.read(missing if left is None else min(missing, left))
        left = left - len(content) if left is not None else None
        buffer += content
        seen = buffer[:wanted]
        end = cut(seen)
        if 0 < end < len(buffer) or (end and len(seen) == wanted):
            yield seen[:end], False
            buffer, wanted = buffer[end:], block_bytes
        elif len(seen) == wanted:
            if wanted > MAX_LINE_BYTES:
                raise too_long(name, "line")
            wanted *= 2
        else:
            if buffer:
                yield buffer, True
            return


def too_long(name: str, what: str) -> DataError:
    """The error for a line or value that does not end."""
    return DataError(f"{name}: a {what} of more than {MAX_LINE_BYTES >> 20} MiB; it is damaged, or no such format")


def as_stream(file: Any) -> io.BufferedReader:
    """A member of an archive as the stream that readers take."""
    return io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)


@functools.cache
def say_once(message: str) -> None:
    """What is left out of an input is said once, however often it is read."""
    say(message)
