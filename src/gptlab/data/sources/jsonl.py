"""JSON files, plain or compressed: a document a line (JSON lines), or an array of documents."""

from __future__ import annotations

import codecs
import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gptlab.data.sources.base import BLOCK_BYTES, Block, Cursor, Document, Reading, Source, row_blocks
from gptlab.data.sources.formats import refuse_binary
from gptlab.data.sources.streams import (
    HEAD_BYTES,
    MAX_LINE_BYTES,
    PACKED,
    PackedFile,
    open_stream,
    skip,
    split_into_blocks,
    suffixes,
    too_long,
)
from gptlab.errors import DataError

SUFFIXES = (
    *(kind + packed for kind in (".jsonl", ".ndjson") for packed in ("", *PACKED)),
    *(".json" + packed for packed in PACKED),
)
NAMED = (".json",)  # in a folder of texts it is a description more often than a text

_SPACE = re.compile(r"[ \t\n\r]*")
_WHOLE_FILE = re.compile(rb"(\xef\xbb\xbf)?\s*(\[|\{\s*\n)")  # how a .json begins that is not a document a line
_READ_BYTES = 1 << 16


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """The source that a file is."""
    return JsonFile(path, name, block_bytes)


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

    def _rows(self, reading: Reading) -> Iterator[str | NDArray[Any]]:
        offset = self.offset
        for number, line in enumerate(self.data.split(b"\n"), self.line):
            if line.strip():
                yield self._row(reading.decode(line, self.source, offset), reading, number)
            offset += len(line) + 1

    def _row(self, line: str, reading: Reading, number: int) -> str | NDArray[Any]:
        place = f"line {number}"
        try:
            row = json.loads(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.source}, {place}: is no JSON or cut off ({error}); mend or remove the line"
            ) from None
        return reading.check_row(reading.pick(row, self.source, place), self.source, place)


@dataclass(frozen=True)
class JsonFile(PackedFile):
    """A file of JSON, plain or compressed."""

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        with open_stream(self.path, self.name) as file:
            place = functools.partial(_cursor, number)
            lines = not may_be_array(suffixes(self.path))
            yield from json_blocks(file, self.name, reading, place, position, self.block_bytes, lines=lines)


def _cursor(number: int, position: Any) -> Cursor:
    return number, position


def may_be_array(suffix: str) -> bool:
    """Whether a file that ends so holds lines or an array; the others are lines by their name."""
    return suffix == ".json" or suffix.startswith(".json.")


def json_blocks(
    file: io.BufferedReader,
    name: str,
    reading: Reading,
    cursor: Callable[[Any], Cursor],
    position: Any = None,
    block_bytes: int = BLOCK_BYTES,
    *,
    lines: bool,
) -> Iterator[Block]:
    """The blocks of JSON from `position` on. `lines`: a document a line it is, whatever it begins with.

    `cursor` makes a block's cursor of the position where it begins.
    """
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    refuse_binary(head, name)
    if not lines and _WHOLE_FILE.match(head):
        yield from _value_blocks(file, name, reading, cursor, position or 0, block_bytes)
        return
    offset, line = position or (0, 1)
    skip(file, offset)
    for data, _ in split_into_blocks(file, name, None, block_bytes, lambda content: content.rfind(b"\n") + 1):
        yield LinesBlock(cursor([offset, line]), name, offset, line, data)
        offset, line = offset + len(data), line + data.count(b"\n")


def _value_blocks(
    file: io.BufferedReader, name: str, reading: Reading, cursor: Callable[[Any], Cursor], start: int, block_bytes: int
) -> Iterator[Block]:
    rows = (
        (number, value if value is None or isinstance(value, str) else reading.pick(value, name, f"value {number}"))
        for number, value in enumerate(_Values(file, name, reading.errors).read())
        if number >= start
    )
    return row_blocks(rows, name, cursor, block_bytes, origin=0)


class _Values:
    """The elements of a JSON array, or JSON values one after another, from a stream, one held at a time."""

    def __init__(self, file: io.BufferedReader, name: str, errors: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
        self._text, self._at, self._number, self._ended = "", 0, 0, False

    def read(self) -> Iterator[Any]:
        """The values. Raises DataError where they are no JSON or cut off."""
        in_array = self._mark() == "["
        if in_array:
            self._at += 1
        while (mark := self._mark()) not in ("", "]"):
            yield self._value()
            self._number += 1
            if in_array and (mark := self._mark()) != "]":
                self._expect(mark == ",", "',' or ']' is missing")
                self._at += 1
                self._expect(self._mark() != "]", "a value is missing")
        if in_array:
            self._expect(mark == "]", "']' is missing")
            self._at += 1
        self._expect(self._mark() == "", "there is more after its end")

    def _expect(self, holds: bool, problem: str) -> None:
        if not holds:
            raise DataError(
                f"{self._name}, value {self._number}: is no JSON or cut off ({problem}); mend the file or get it again"
            )

    def _mark(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _value(self) -> Any:
        decoder = json.JSONDecoder()
        while True:
            problem = ""
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                problem, end = error.msg, error.pos
                known = not problem.startswith("Unterminated string") and end < len(self._text) - 64
                self._expect(not known, problem)
            except RecursionError:
                self._expect(False, "it is nested too deep")
            if not problem and end < len(self._text):
                self._at = end
                return value
            if not self._more():  # a number at the very end could have gone on
                self._expect(not problem, problem)
                self._at = end
                return value

    def _more(self) -> bool:
        """Read on, twice as much as is held; False at the end."""
        if self._ended:
            return False
        held = self._text[self._at :]
        if len(held) > MAX_LINE_BYTES:
            raise too_long(self._name, "JSON value")
        content = self._file.read(max(_READ_BYTES, len(held)))
        self._ended = not content
        try:
            self._text, self._at = held + self._decoder.decode(content, final=self._ended), 0
        except UnicodeDecodeError:
            self._expect(False, "invalid UTF-8")
        return True
