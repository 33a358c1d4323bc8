"""Text files, plain or compressed, and whatever has a name that no other kind knows."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptlab.data.sources.base import BLOCK_BYTES, Block, Cursor, Document, Reading, Source, file_identity
from gptlab.data.sources.formats import refuse_binary
from gptlab.data.sources.streams import HEAD_BYTES, PACKED, open_stream, skip, split_into_blocks

SUFFIXES = tuple(kind + packed for kind in (".txt", ".text", ".md") for packed in ("", *PACKED))

_BOM = b"\xef\xbb\xbf"
_LINE = re.compile(r"[^\n]*\n|[^\n]+")  # with its end
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
        if self.offset == 0:
            text = text.removeprefix("\ufeff")
        if reading.document_start is not None:
            yield from reading.join_rows(_LINE.findall(text), self.source, first=self.offset == 0)
            return
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
class TextFile:
    """A text file, plain or compressed. `start` and `stop` take a part of a plain one."""

    is_stream: ClassVar[bool] = False

    path: Path
    name: str
    start: int = 0
    stop: int | None = None
    block_bytes: int = BLOCK_BYTES

    def size(self, reading: Reading) -> int | None:
        if self.path.suffix.lower() in PACKED:
            return None
        return (self.stop if self.stop is not None else self.path.stat().st_size) - self.start

    def identity(self) -> list[Any]:
        return [*file_identity(self.path), self.start, self.stop, self.block_bytes]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        position = position or (self.start, False)
        with open_stream(self.path, self.name) as file:
            place = functools.partial(_cursor, number)
            yield from text_blocks(file, self.name, reading, place, position, self.stop, self.block_bytes)


def _cursor(number: int, position: Any) -> Cursor:
    return number, position


def text_blocks(
    file: io.BufferedReader,
    name: str,
    reading: Reading,
    cursor: Callable[[Any], Cursor],
    position: Any = None,
    stop: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Block]:
    """The blocks of a text from `position` on: (byte, whether a document goes on there).

    Args:
        cursor: makes a block's cursor of the position where it begins.
        stop: byte at which the text ends; None: where the file does.
    """
    refuse_binary(file.peek(HEAD_BYTES)[:HEAD_BYTES], name)
    separator = reading.separator.encode() if reading.separator is not None else None
    offset, continues = position or (0, False)
    skip(file, offset)
    cut: Callable[[bytes], int] = functools.partial(_block_end, separator=separator, block_bytes=block_bytes)
    if reading.document_start is not None:  # looks at whole lines
        cut = _line_end
    for data, at_end in split_into_blocks(file, name, stop - offset if stop is not None else None, block_bytes, cut):
        ends = at_end or (separator is not None and data.endswith(separator))
        yield TextBlock(cursor([offset, continues]), name, offset, data, continues, ends)
        offset, continues = offset + len(data), not ends


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


def _line_end(content: bytes) -> int:
    """Where the last whole line in `content` ends; 0: read on first."""
    return content.rfind(b"\n") + 1


def character_split(source: Source, fraction: float) -> tuple[TextFile, TextFile] | None:
    """A plain text file cut in order, by characters: the first `1 - fraction` of it, and the rest.

    None where `source` is no plain text file. As nanoGPT does: the first int(n (1 - fraction)) of n characters.
    """
    if not isinstance(source, TextFile) or source.size(Reading()) is None:
        return None
    import numpy as np

    def starts(data: bytes) -> Any:  # where a character begins: every byte that does not continue one
        return np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)

    with open(source.path, "rb") as file:
        begin = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(begin)
        characters = sum(len(starts(data)) for data in iter(lambda: file.read(1 << 24), b""))
        left, cut = int(characters * (1 - fraction)), begin
        file.seek(begin)
        for data in iter(lambda: file.read(1 << 24), b""):
            found = starts(data)
            if left < len(found):
                cut += int(found[left])
                break
            left, cut = left - len(found), cut + len(data)
    head = TextFile(source.path, source.name, begin, cut, source.block_bytes)
    return head, TextFile(source.path, source.name, cut, None, source.block_bytes)
