"""Standard input, `-`: text that a pipe brings. It is read once."""

from __future__ import annotations

import functools
import io
import json
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gptlab.data.sources.base import BLOCK_BYTES, Block, Cursor, Reading, Source
from gptlab.data.sources.streams import say_once
from gptlab.data.sources.text import text_blocks
from gptlab.errors import DataError, option

NAMES = ("-",)

_LOOKED_AT = 1 << 12  # bytes in which a first line of JSON is looked for

_taken: object = None  # the stream that was read


def open_input(given: str, *, cache: Path | None, block_bytes: int) -> list[Source]:
    """What stands on standard input, as one text."""
    return [StandardInput(block_bytes)]


@dataclass(frozen=True)
class StandardInput:
    """Standard input, read as a text file of it would be."""

    name: ClassVar[str] = "standard input"
    is_stream: ClassVar[bool] = True

    block_bytes: int = BLOCK_BYTES
    token: str = field(default_factory=secrets.token_hex)  # nobody knows whether it brings the same text again

    def size(self, reading: Reading) -> int | None:
        return None

    def identity(self) -> list[Any]:
        return [self.name, self.token]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        say_once(
            f"standard input is read once, as text: hold out by {option('validation_tokens')} or "
            f"{option('validation')}, and one that is stopped starts over"
        )
        place = functools.partial(_cursor, number)
        yield from text_blocks(_stream(), self.name, reading, place, position, block_bytes=self.block_bytes)


def _cursor(number: int, position: Any) -> Cursor:
    return number, position


def _stream() -> io.BufferedReader:
    """The bytes of standard input. Raises DataError where it was read, is closed, or is no plain text."""
    global _taken
    if sys.stdin is None or sys.stdin.closed:
        raise DataError(f"standard input is closed, and {option('input', '-')} reads it; give a file")
    if _taken is sys.stdin:
        raise DataError("standard input was read to its end already, and is wanted again; write it to a file first")
    _taken = sys.stdin
    stream: Any = sys.stdin.buffer
    line = stream.peek(_LOOKED_AT)[:_LOOKED_AT].partition(b"\n")[0].strip()
    try:
        is_json = line.startswith(b"{") and isinstance(json.loads(line), dict)
    except ValueError:
        is_json = False
    if is_json:
        raise DataError("standard input: begins with a line of JSON, and - reads plain text; write it to a .jsonl file")
    return stream  # type: ignore[no-any-return]
