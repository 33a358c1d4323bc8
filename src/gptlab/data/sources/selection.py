"""What is taken of an input: caps, weights and filters, and how its text is read where that differs from the others'.

An `Input` may stand wherever the name of one does. Filters judge whole documents, so one that is read in parts is put
together first, in the process that reads; caps count what the filters let pass.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.sources.base import Block, Cursor, Document, Reading, Source, utf8_length
from gptlab.data.sources.streams import MAX_LINE_BYTES
from gptlab.errors import DataError, did_you_mean, option

_MOST_TURNS = 100


@dataclass(frozen=True)
class Input:
    """A file, folder, glob, URL, … and what of it is taken.

    Attributes:
        source: what `prepare` takes as an input.
        weight: how often each document is taken: 2 reads the input twice, 0.5 takes a half of the documents, chosen by
            a digest of their text.
        max_bytes, max_documents, max_tokens: stop after the document (of a text that is not cut into documents, the
            piece) that reaches so many UTF-8 bytes, documents, tokens of this input.
        without: documents that hold one of these are left out.
        min_length: and those with fewer characters.
        keep: and those of which this function, `./mine.py:keep`, says False.
        text_column, separator, document_start: as of `Reading`, for this input alone.
    """

    source: str
    weight: float = 1.0
    max_bytes: int | None = None
    max_documents: int | None = None
    max_tokens: int | None = None
    without: tuple[str, ...] = ()
    min_length: int = 0
    keep: str | None = None
    text_column: str | None = None
    separator: str | None = None
    document_start: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_documents", "max_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"{self.source}: {name} {value}: must be at least 1")
        if not 0 < self.weight <= _MOST_TURNS:
            raise DataError(
                f"{self.source}: weight {self.weight:g}: must lie between 0 and {_MOST_TURNS}, like 0.5 or 2"
            )
        if self.min_length < 0 or "" in self.without:
            raise DataError(
                f"{self.source}: min_length is at least 0, and what documents are to be without is not empty"
            )

    @property
    def is_plain(self) -> bool:
        """Whether all of it is taken, as it is."""
        return self == Input(self.source)

    @property
    def judges(self) -> bool:
        """Whether documents are judged, which takes whole ones."""
        return bool(self.without or self.min_length or self.keep or self.weight % 1)

    def plain(self) -> dict[str, Any]:
        """As YAML writes it: what differs from the defaults."""
        default = Input(self.source)
        values = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return {"source": self.source, **values}


@dataclass(frozen=True)
class Selected:
    """What an `Input` takes of its sources, as one source."""

    input: Input
    parts: tuple[Source, ...]

    @property
    def name(self) -> str:
        return self.input.source

    @property
    def is_stream(self) -> bool:
        return any(part.is_stream for part in self.parts)

    def size(self, reading: Reading) -> int | None:
        if self.input.judges or self.input.max_documents or self.input.max_tokens:
            return None
        sizes = [part.size(self._reading(reading)) for part in self.parts]
        if None in sizes:
            return None
        total = int(sum(size or 0 for size in sizes) * self.input.weight)
        return min(total, self.input.max_bytes or total)

    def identity(self) -> list[Any]:
        file = None if self.input.keep is None else hashlib.sha256(_file_of(self.input.keep).read_bytes()).hexdigest()
        return [[part.identity() for part in self.parts], self.input.plain(), file]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        turn, index, inner, begins, documents, size = position or (0, 0, None, True, 0, 0)
        reading, keep = self._reading(reading), self._judge()
        while turn < math.ceil(self.input.weight):
            share = min(1.0, self.input.weight - turn)
            for block in _blocks_of(self.parts[index], index, reading, inner, begins, whole=self.input.judges):
                cursor = (number, [turn, index, block.position, block.begins, documents, size])
                taken, full = list[Document](), False
                for document in block.documents:
                    if full := self._is_full(documents, size, document):
                        break
                    if not keep(document, share):
                        continue
                    documents += not document.continues
                    size += utf8_length(document.text)
                    taken.append(document)
                if taken:
                    yield DocumentsBlock(cursor, block.source, tuple(taken), block.source_bytes)
                if full or self._is_full(documents, size, None):
                    return
            inner, begins, index = None, True, index + 1
            if index == len(self.parts):
                turn, index = turn + 1, 0

    def _is_full(self, documents: int, size: int, next_one: Document | None) -> bool:
        """Whether a cap ends it: before `next_one`, or (None) whatever comes next."""
        most = self.input.max_documents
        if self.input.max_bytes is not None and size >= self.input.max_bytes:
            return True
        if most is None or documents < most:
            return False
        # A text that goes on in parts is read to its end.
        return not next_one.continues if next_one is not None else self.input.judges

    def _reading(self, reading: Reading) -> Reading:
        own = {name: getattr(self.input, name) for name in ("text_column", "separator", "document_start")}
        given = {name: value for name, value in own.items() if value is not None}
        if {"separator", "document_start"} & set(given):  # one of them takes the place of either
            given = {"separator": None, "document_start": None, **given}
        return dataclasses.replace(reading, **given)

    def _judge(self) -> Callable[[Document, float], bool]:
        """Whether a document is taken, by all filters, of a turn that takes this share."""
        own = None if self.input.keep is None else load_filter(self.input.keep)

        def keep(document: Document, share: float) -> bool:
            text = document.text
            if len(text) < self.input.min_length or any(banned in text for banned in self.input.without):
                return False
            if share < 1.0:
                digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
                if int.from_bytes(digest, "big") >= share * 2**64:
                    return False
            return own is None or own(text, document.source)

        return keep


@dataclass(frozen=True)
class DocumentsBlock:
    """Documents that are read already."""

    cursor: Cursor
    source: str
    held: tuple[Document, ...]
    source_bytes: int

    def documents(self, reading: Reading) -> Iterator[Document]:
        yield from self.held


@dataclass
class _Read:
    """The documents that begin in a block of a source, and where to read them again."""

    position: Any
    begins: bool  # whatever the block's first rows say, its first document begins one
    source: str
    documents: list[Document]
    source_bytes: int


def _blocks_of(
    part: Source, number: int, reading: Reading, position: Any, begins: bool, *, whole: bool
) -> Iterator[_Read]:
    """The blocks of `part` from `position` on, read. `whole`: documents that are read in parts are put together."""
    source: str | None = None
    held: _Read | None = None
    for block in part.blocks(number, reading, position):
        begins = begins if source is None else block.source != source
        source = block.source
        read = _Read(block.cursor[1], begins, block.source, [], block.source_bytes)
        for place, document in enumerate(block.documents(reading)):
            continues = document.continues and not (begins and place == 0)
            if continues and whole:
                if read.documents or held is not None:
                    documents = read.documents or held.documents  # type: ignore[union-attr]
                    documents[-1] = _joined(documents[-1], document)
                continue  # with nothing before it, it goes on with what an earlier run has read
            read.documents.append(dataclasses.replace(document, continues=continues))
        if whole and not read.documents:
            if held is not None:
                held.source_bytes += read.source_bytes
            continue
        if held is not None:
            yield held
        held = read
    if held is not None:
        yield held


def _joined(first: Document, more: Document) -> Document:
    if len(first.text) + len(more.text) > MAX_LINE_BYTES:
        raise DataError(
            f"{first.source}: a document of more than {MAX_LINE_BYTES >> 20} MiB, too long to be judged by a filter; "
            f"cut the text into documents with {option('separator')}"
        )
    return dataclasses.replace(first, text=first.text + more.text)


def _file_of(keep: str) -> Path:
    file, colon, name = keep.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise DataError(f"{option('keep', keep)}: is no function of a file; write it like ./mine.py:keep")
    if not Path(file).is_file():
        raise DataError(f"{option('keep', keep)}: no such file {file}; check the path")
    return Path(file)


@functools.cache
def load_filter(keep: str) -> Callable[[str, str], bool]:
    """The function that `keep`, `./mine.py:name`, names: of a document's text, whether it is taken.

    Raises DataError where there is none; and, when it is called, where it fails or answers neither True nor False.
    """
    from gptlab.config.building import run_file  # its package is slow to import: kept out of the workers

    file, name = _file_of(keep), keep.rpartition(":")[2]
    module = run_file(file)
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise DataError(f"{option('keep', keep)}: {file} has no function {name!r}; {did_you_mean(name, known)}")

    def judge(text: str, source: str) -> bool:
        try:
            answer = function(text)
        except Exception as error:
            start = repr(text[:40])
            raise DataError(
                f"{keep}: {type(error).__name__} on a document of {source} that begins {start}: {error}"
            ) from error
        if not isinstance(answer, bool | np.bool_):
            raise DataError(f"{keep}: gives {answer!r} for a document of {source}; a filter gives True or False")
        return bool(answer)

    return judge


def parts_of(sources: Iterable[Source]) -> list[Source]:
    """The sources themselves, whatever is taken of them."""
    return [part for source in sources for part in (source.parts if isinstance(source, Selected) else [source])]


def with_filters(inputs: Sequence[str | Input], **filters: Any) -> list[str | Input]:
    """`inputs`, each with the `without`, `min_length` and `keep` that are given, beside its own."""
    given = {name: value for name, value in filters.items() if value}
    if not given:
        return list(inputs)
    found: list[str | Input] = []
    for each in inputs:
        one = each if isinstance(each, Input) else Input(each)
        values = given | {"without": (*one.without, *given.get("without", ()))}
        values["min_length"] = max(one.min_length, given.get("min_length", 0))
        if one.keep and given.get("keep"):
            raise DataError(f"{one.source}: has a filter {one.keep} of its own; leave out {option('keep')}")
        found.append(dataclasses.replace(one, **values))
    return found
