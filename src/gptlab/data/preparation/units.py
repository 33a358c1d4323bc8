"""Work below the level of files: inputs cut into units, each a function of (source, unit number).

A unit is a run of blocks of one source, from a cursor on. Planning walks over the blocks once without parsing them (a
300 MB file of JSON lines takes a second, Parquet files their metadata alone) and notes where each unit begins, so that
any process can read any unit, in any order. Units begin where blocks do: at line ends of JSON lines, at cuts of text
that tokenizers make too, at row groups of Parquet. Which units there are changes no byte of what is written.

What cannot be entered in the middle (compressed files, archives, tables, one JSON array) is one unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptlab.data.sources.arrow import ArrowFile
from gptlab.data.sources.base import Block, Document, Reading, Source
from gptlab.data.sources.hub import HubFile
from gptlab.data.sources.jsonl import JsonFile, may_be_array
from gptlab.data.sources.parquet import ParquetBlock, ParquetFile
from gptlab.data.sources.selection import parts_of
from gptlab.data.sources.streams import MAX_LINE_BYTES, PACKED, suffixes
from gptlab.data.sources.text import TextFile
from gptlab.data.sources.token_files import IdsFile
from gptlab.errors import DataError, option

UNIT_BYTES = 1 << 24
"""Bytes of a source in a unit, about: seconds of work, so that a kill loses little and no worker waits long."""


@dataclass(frozen=True)
class Unit:
    """A run of blocks of a source.

    Attributes:
        walk: number of the walk over sources that it belongs to (training, validation).
        source: number of the source in the walk.
        position: of the cursor of its first block; None: the beginning.
        blocks: so many; None: all that follow.
        after: the file (`Block.source`) of the block before it; None where it is the first of its source.
        source_bytes: that it covers; 0 where that is not known.
    """

    walk: int
    source: int
    position: Any = None
    blocks: int | None = None
    after: str | None = None
    source_bytes: int = 0


def plan_units(walks: Sequence[Sequence[Source]], reading: Reading, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """The units of all sources, in order: a function of the inputs alone.

    Raises DataError for inputs that are read once or hold ids, and as reading them does.
    """
    units: list[Unit] = []
    for walk, sources in enumerate(walks):
        for number, source in enumerate(sources):
            _refuse(source, reading)
            if all(map(_can_be_entered, parts_of([source]))):
                units += _cut(walk, number, source, reading, unit_bytes)
            else:
                units.append(Unit(walk, number, source_bytes=source.size(reading) or 0))
    return units


def _refuse(source: Source, reading: Reading) -> None:
    ids = reading.ids is not None or any(
        isinstance(part, IdsFile) or (isinstance(part, HubFile) and part.holds_ids) for part in parts_of([source])
    )
    if ids:
        raise DataError(
            f"{source.name}: holds token ids, and {option('engine')} and {option('step')} are for text; leave them out"
        )
    if any(part.is_stream and not isinstance(part, HubFile) for part in parts_of([source])):
        raise DataError(
            f"{source.name}: is read once, from its beginning, and {option('engine')} and {option('step')} read inputs "
            "in units; give files, such as hf://OWNER/NAME/PATTERN"
        )


def _can_be_entered(source: Source) -> bool:
    """Whether reading from the middle costs nothing of what stands before."""
    if isinstance(source, ParquetFile | ArrowFile):
        return True
    ending = suffixes(source.path) if isinstance(source, JsonFile | TextFile) else PACKED[0]
    return not ending.endswith(PACKED) and not (isinstance(source, JsonFile) and may_be_array(ending))


def _cut(walk: int, number: int, source: Source, reading: Reading, unit_bytes: int) -> Iterator[Unit]:
    unit: Unit | None = None
    last: str | None = None
    for block in source.blocks(number, reading, None):
        inside = isinstance(block, ParquetBlock) and block.start > 0  # a row group is read by one worker
        if unit is not None and unit.source_bytes >= unit_bytes and not inside:
            yield unit
            unit = None
        unit = unit or Unit(walk, number, block.cursor[1], 0, last)
        size = unit.source_bytes + block.source_bytes
        unit = dataclasses.replace(unit, blocks=(unit.blocks or 0) + 1, source_bytes=size)
        last = block.source
    if unit is not None:
        yield unit


def unit_blocks(unit: Unit, source: Source, reading: Reading) -> Iterator[Block]:
    """The blocks of a unit."""
    for count, block in enumerate(source.blocks(unit.source, reading, unit.position)):
        if count == unit.blocks:
            return
        yield block


def unit_documents(unit: Unit, source: Source, reading: Reading) -> Iterator[Document]:
    """The documents that begin in a unit, whole: what is read in pieces is put together, past the unit's end too.

    Raises DataError for one that is too long to be held.
    """
    held: list[Document] = []
    size, last = 0, unit.after
    for count, block in enumerate(source.blocks(unit.source, reading, unit.position)):
        outside = unit.blocks is not None and count >= unit.blocks
        if outside and not held:
            return
        for place, document in enumerate(block.documents(reading)):
            if document.continues and (place > 0 or block.source == last):
                if held:  # with nothing before it, it goes on with a document of an earlier unit
                    held.append(document)
                    size += len(document.text)
                    if size > MAX_LINE_BYTES:
                        raise _too_long(document.source)
                continue
            if held:
                yield _whole(held)
            held, size = [], len(document.text)
            if outside:
                return
            held = [document]
        last = block.source
    if held:
        yield _whole(held)


def _whole(parts: list[Document]) -> Document:
    text = parts[0].text if len(parts) == 1 else "".join(part.text for part in parts)
    return Document(text, parts[0].source)


def _too_long(source: str) -> DataError:
    return DataError(
        f"{source}: a document of more than {MAX_LINE_BYTES >> 20} MiB, too long for {option('step')}; cut the text "
        f"into documents with {option('separator')}"
    )
