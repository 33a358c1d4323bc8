"""Text and JSON-lines files, plain, gzipped or compressed by Zstandard."""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, cast

from gptlab.data.sources.base import (
    BLOCK_BYTES,
    Block,
    Cursor,
    Document,
    Reading,
    Source,
    damage_as_data_error,
    file_identity,
)
from gptlab.data.sources.kinds import suffixes
from gptlab.errors import DataError

_COMPRESSED = ("", ".gz", ".zst")
SUFFIXES = (
    *(kind + packed for kind in (".txt", ".text", ".md", ".jsonl", ".ndjson") for packed in _COMPRESSED),
    ".json.gz",
    ".json.zst",
)

_LINES = re.compile(r"\.(jsonl|ndjson|json)(\.gz|\.zst)?")
_CUT = re.compile(rb"[A-Za-z0-9](?= [A-Za-z])")


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """The source that a file is."""
    return TextFile(path, name, block_bytes=block_bytes)


@dataclass(frozen=True)
class TextBlock:
    """Bytes of a text file, from byte `offset` on."""

    cursor: Cursor
    source: str
    offset: int
    data: bytes
    continues: bool  # the file's text before it belongs to the same document
    ends: bool  # the last document in it ends with it

    @property
    def source_bytes(self) -> int:
        return len(self.data)

    def documents(self, reading: Reading) -> Iterator[Document]:
        text = reading.decode(self.data, self.source, self.offset)
        parts = [text] if reading.separator is None else text.split(reading.separator)
        for number, part in enumerate(parts):
            continues = self.continues and number == 0
            if reading.separator is not None:
                ends = self.ends or number < len(parts) - 1
                part = part.rstrip("\r\n") if ends else part
                # A first part of nothing but line ends is kept: the parts after it continue its document.
                part = part if continues else (part.lstrip("\r\n") or ("" if ends else part))
            if part:
                yield Document(part, self.source, continues)


@dataclass(frozen=True)
class LinesBlock:
    """Whole lines of a JSON-lines file, from line `line` (counted from 1) on."""

    cursor: Cursor
    source: str
    offset: int
    line: int
    data: bytes

    @property
    def source_bytes(self) -> int:
        return len(self.data)

    def documents(self, reading: Reading) -> Iterator[Document]:
        return reading.join_rows(list(self._rows(reading)), self.source, first=self.offset == 0)

    def _rows(self, reading: Reading) -> Iterator[str]:
        offset = self.offset
        for number, line in enumerate(self.data.split(b"\n"), self.line):
            if line.strip():
                yield self._text(reading.decode(line, self.source, offset), reading, number)
            offset += len(line) + 1

    def _text(self, line: str, reading: Reading, number: int) -> str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.source}, line {number}: is no JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict) or reading.text_column not in row:
            fields = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"{self.source}, line {number}: no field {reading.text_column!r} (it has: {fields}); name the field of "
                "the text with --text-column"
            )
        return reading.check_text(row[reading.text_column], self.source, f"line {number}")


@dataclass(frozen=True)
class TextFile:
    """A text or JSON-lines file, plain or compressed. `start` and `stop` take a part of a plain text."""

    is_stream: ClassVar[bool] = False

    path: Path
    name: str
    start: int = 0
    stop: int | None = None
    block_bytes: int = BLOCK_BYTES

    @property
    def is_lines(self) -> bool:
        return _LINES.fullmatch(suffixes(self.path)) is not None

    def size(self, reading: Reading) -> int | None:
        if self.path.suffix.lower() in (".gz", ".zst"):
            return None
        return (self.stop if self.stop is not None else self.path.stat().st_size) - self.start

    def identity(self) -> list[Any]:
        return [*file_identity(self.path), self.start, self.stop, self.block_bytes]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        with _open(self.path) as file, damage_as_data_error(self.name):
            yield from (self._lines if self.is_lines else self._text)(file, number, reading, position)

    def _lines(self, file: IO[bytes], number: int, reading: Reading, position: Any) -> Iterator[Block]:
        offset, line = position or (0, 1)
        file.seek(offset)

        def whole_lines(content: bytes) -> int:
            return content.rfind(b"\n") + 1

        for data, _ in _split_into_blocks(file, None, self.block_bytes, whole_lines):
            yield LinesBlock((number, [offset, line]), self.name, offset, line, data)
            offset, line = offset + len(data), line + data.count(b"\n")

    def _text(self, file: IO[bytes], number: int, reading: Reading, position: Any) -> Iterator[Block]:
        separator = reading.separator.encode() if reading.separator is not None else None
        offset, continues = position or (self.start, False)
        file.seek(offset)
        left = self.stop - offset if self.stop is not None else None
        cut = functools.partial(_block_end, separator=separator, block_bytes=self.block_bytes)
        for data, at_end in _split_into_blocks(file, left, self.block_bytes, cut):
            ends = at_end or (separator is not None and data.endswith(separator))
            yield TextBlock((number, [offset, continues]), self.name, offset, data, continues, ends)
            offset, continues = offset + len(data), not ends


def _split_into_blocks(
    file: IO[bytes], left: int | None, block_bytes: int, cut: Callable[[bytes], int]
) -> Iterator[tuple[bytes, bool]]:
    """Split the rest of `file` (or `left` bytes of it) into blocks; yields each with whether it is the last.

    A block is decided by the bytes from its beginning on, never by where reading began: `cut` sees `block_bytes` of
    them, and twice as many as long as it answers 0.
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
            wanted *= 2
        else:
            if buffer:
                yield buffer, True
            return


def _block_end(content: bytes, separator: bytes | None, block_bytes: int) -> int:
    """Where to end a block of text within `content`; 0: read on first."""
    if separator is not None and (found := content.rfind(separator)) >= 0:
        return found + len(separator)
    if len(content) < block_bytes:
        return 0
    # A separator may have begun at the very end: keep clear of it.
    limit = len(content) - (len(separator) if separator is not None else 1)
    window = max(0, limit - (1 << 16))
    cuts = [match.end() for match in _CUT.finditer(content, window, limit)]
    if cuts:
        return cuts[-1]
    newline = content.rfind(b"\n", window, limit)
    if newline > 0:
        return newline
    while limit > 0 and content[limit] & 0xC0 == 0x80:  # inside a UTF-8 character
        limit -= 1
    return max(limit, 0)


def _open(path: Path) -> IO[bytes]:
    try:
        if path.suffix.lower() == ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error})") from None
    if path.suffix.lower() != ".zst":
        return file
    import zstandard

    return _Zstandard(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True))


class _Zstandard(io.BufferedReader):
    """A decompressed stream that can skip ahead, as gzip's can."""

    def seek(self, offset: int, whence: int = 0) -> int:
        left = offset
        while left > 0 and (skipped := len(self.read(min(left, 1 << 20)))):
            left -= skipped
        return offset - left


def character_split(source: Source, fraction: float) -> tuple[TextFile, TextFile] | None:
    """A plain text file cut in order, by characters: the first `1 - fraction` of it, and the rest.

    None where `source` is no plain text file. As nanoGPT does: the first int(n (1 - fraction)) of n characters.
    """
    if not isinstance(source, TextFile) or source.is_lines or source.size(Reading()) is None:
        return None
    import numpy as np

    def starts(data: bytes) -> Any:  # where a character begins: every byte that does not continue one
        return np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)

    with open(source.path, "rb") as file:
        characters = sum(len(starts(data)) for data in iter(lambda: file.read(1 << 24), b""))
        left, cut = int(characters * (1 - fraction)), 0
        file.seek(0)
        for data in iter(lambda: file.read(1 << 24), b""):
            found = starts(data)
            if left < len(found):
                cut += int(found[left])
                break
            left, cut = left - len(found), cut + len(data)
    head = TextFile(source.path, source.name, 0, cut, source.block_bytes)
    return head, TextFile(source.path, source.name, cut, None, source.block_bytes)
