"""Text that is given as it is, for a trial: `text:To be, or not to be`."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptlab.data.sources.base import BLOCK_BYTES, Block, Cursor, Reading, Source
from gptlab.data.sources.streams import as_stream
from gptlab.data.sources.text import text_blocks
from gptlab.errors import DataError

PREFIXES = ("text:",)

_SHOWN = 40  # characters of it that messages and dataset.json call it by


def open_input(given: str, *, cache: Path | None, block_bytes: int) -> list[Source]:
    """What stands behind the prefix, as one text. Raises DataError where that is nothing, or no Unicode."""
    try:
        data = given.removeprefix("text:").encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{given[:_SHOWN]!r}: is no UTF-8; give the text as a file") from None
    if not data:
        raise DataError("text: without a text; write it after the colon, like text:Some words")
    return [LiteralText(given if len(given) <= _SHOWN else given[: _SHOWN - 1] + "…", data, block_bytes)]


@dataclass(frozen=True)
class LiteralText:
    """A text in memory, read as a text file of it would be."""

    is_stream: ClassVar[bool] = False

    name: str
    data: bytes
    block_bytes: int = BLOCK_BYTES

    def size(self, reading: Reading) -> int | None:
        return len(self.data)

    def identity(self) -> list[Any]:
        return ["text", hashlib.sha256(self.data).hexdigest(), self.block_bytes]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        file = as_stream(io.BytesIO(self.data))
        place = functools.partial(_cursor, number)
        yield from text_blocks(file, self.name, reading, place, position, block_bytes=self.block_bytes)


def _cursor(number: int, position: Any) -> Cursor:
    return number, position
