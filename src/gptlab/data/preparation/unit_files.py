"""Units done: what a worker makes of a unit, in a file of its own, and what is read back of it.

A unit's file holds the ids of its documents, with the steps before tokenizing applied, and what the steps that compare
documents need to know of each. It appears when it is whole, so whatever is there is done, whoever was killed meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptlab.data.preparation.units import Unit, unit_blocks, unit_documents
from gptlab.data.preparation.workers import EncodedBlock, encode
from gptlab.data.sources.base import BLOCK_BYTES, Cursor, Document, Reading, Source, utf8_length
from gptlab.data.sources.selection import DocumentsBlock
from gptlab.errors import DataError, GptlabError, option
from gptlab.files import write_atomic

if TYPE_CHECKING:
    from gptlab.data.preparation.steps import Step
    from gptlab.tokenizer import Tokenizer

_FAILED = "failed.json"
_ARRAYS = ("ids", "lengths", "bytes", "begins")


@dataclass(frozen=True)
class Job:
    """All that a worker needs to do any unit, wherever it runs; it travels pickled, and the folder is shared.

    Attributes:
        folder: where the files of units are written; it has the tokenizer in `tokenizer`.
        key: of the plan, so that files of another are not taken for its own.
        place: the working folder that paths of inputs are relative to.
        walks: the sources, as `Unit` numbers them.
        steps: before tokenizing, in order.
        units: all of them.
    """

    folder: Path
    key: str
    place: Path
    walks: tuple[tuple[Source, ...], ...]
    reading: Reading
    steps: tuple[Step, ...]
    units: tuple[Unit, ...]

    def file(self, number: int) -> Path:
        """The file of a unit."""
        return self.folder / f"unit_{number:06d}.npz"

    def missing(self) -> list[int]:
        """Numbers of the units that are not done."""
        here = {entry.name for entry in os.scandir(self.folder)}
        return [number for number in range(len(self.units)) if self.file(number).name not in here]

    def do(self, number: int) -> None:
        """Do a unit, unless it is done. What a person can mend is left in the folder, for the parent to say."""
        if self.file(number).exists() or (self.folder / _FAILED).exists():
            return
        with contextlib.chdir(self.place):
            try:
                content = _packed(_unit_done(self, self.units[number]))
            except GptlabError as error:
                write_atomic(self.folder / _FAILED, json.dumps({"unit": number, "error": str(error)}))
                return
        write_atomic(self.file(number), content)

    def begin(self) -> None:
        """Forget what failed last time. What a kill left half written stays: tasks in a queue may be writing now."""
        (self.folder / _FAILED).unlink(missing_ok=True)

    def check(self) -> None:
        """Raise DataError for what a worker found wrong."""
        with contextlib.suppress(FileNotFoundError):
            raise DataError(json.loads((self.folder / _FAILED).read_text("utf-8"))["error"])


@dataclass
class DoneUnit:
    """A unit done.

    Attributes:
        blocks: name of the file, bytes of the source and documents of each of its blocks.
        documents: all of them.
        marks: for each step that compares documents an array (documents, width) of what it compares.
        report: what the steps that look at one document did, by number.
    """

    blocks: list[tuple[str, int, int]]
    documents: EncodedBlock
    marks: list[NDArray[Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: Path, key: str) -> Tokenizer:
    from gptlab.tokenizer import load_tokenizer

    return load_tokenizer(folder)


def _unit_done(job: Job, unit: Unit) -> DoneUnit:
    tokenizer = _tokenizer(job.folder / "tokenizer", job.key)
    source = job.walks[unit.walk][unit.source]
    blocks: list[tuple[str, int, int]] = []
    parts: list[EncodedBlock] = []

    def add(block: Any) -> None:
        encoded = encode(block, tokenizer, job.reading)
        blocks.append((block.source, block.source_bytes, len(encoded.lengths)))
        parts.append(encoded)

    if not job.steps:
        for block in unit_blocks(unit, source, job.reading):
            add(block)
        return DoneUnit(blocks, _joined(parts, tokenizer))
    from gptlab.data.preparation.screening import Screen

    screen = Screen(job.steps, job.folder)
    for documents in _batches(screen.kept(unit_documents(unit, source, job.reading))):
        size = sum(utf8_length(document.text) for document in documents)
        add(DocumentsBlock((unit.source, None), documents[0].source, tuple(documents), size))
    return DoneUnit(blocks, _joined(parts, tokenizer), screen.marks(), screen.report())


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    size = 0
    for document in documents:
        if held and (size >= BLOCK_BYTES or document.source != held[0].source):
            yield held
            held, size = [], 0
        held.append(document)
        size += len(document.text)
    if held:
        yield held


def _joined(parts: Sequence[EncodedBlock], tokenizer: Tokenizer) -> EncodedBlock:
    if not parts:
        empty = encode(DocumentsBlock((0, None), "", (), 0), tokenizer, Reading())
        parts = [empty]
    return EncodedBlock(*(np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS))


def _packed(unit: DoneUnit) -> bytes:
    known = json.dumps({"blocks": unit.blocks, "report": unit.report})
    arrays = {name: getattr(unit.documents, name) for name in _ARRAYS}
    arrays |= {f"marks_{number}": marks for number, marks in enumerate(unit.marks)}
    content = io.BytesIO()
    np.savez(content, known=np.frombuffer(known.encode(), dtype=np.uint8), **arrays)
    return content.getvalue()


class DoneUnits:
    """The units of a job, all done, as what the writer of shards takes in place of text that is still to be encoded."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.kept: list[NDArray[np.bool_]] | None = None
        """Of each unit, which documents are kept; None: all."""

    @property
    def digest(self) -> str:
        """Of all that decides the blocks and where each stands: a journal of others is of no use."""
        return hashlib.sha256(f"{self.job.key} {self.job.units}".encode()).hexdigest()

    def read(self, number: int, *names: str) -> dict[str, Any]:
        """Arrays of a unit's file. Raises DataError where it is damaged."""
        path = self.job.file(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in names if name != "known"}
                if "known" in names:
                    found["known"] = json.loads(bytes(file["known"]))
                return found
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path}: is damaged ({error}); remove it, and the same command makes it again") from None

    def keep(self, number: int, count: int) -> NDArray[np.bool_]:
        """Which of the `count` documents of a unit are kept."""
        return np.ones(count, dtype=np.bool_) if self.kept is None else self.kept[number]

    def blocks(self, walk: int, cursor: Cursor | None, full: set[int]) -> Iterator[DoneBlock]:
        """The blocks of a walk in order, from `cursor` on: (source, [unit, block])."""
        first_unit, first_block = cursor[1] if cursor is not None else (0, 0)
        for number, unit in enumerate(self.job.units):
            if unit.walk != walk or number < first_unit or unit.source in full:
                continue
            found = self.read(number, "known", *_ARRAYS)
            documents = EncodedBlock(*(found[name] for name in _ARRAYS))
            kept, start, id_start = self.keep(number, len(documents.lengths)), 0, 0
            for place, (name, size, count) in enumerate(found["known"]["blocks"]):
                stop = start + count
                id_stop = id_start + int(documents.lengths[start:stop].sum())
                if (number, place) >= (first_unit, first_block) and unit.source not in full:
                    part = EncodedBlock(
                        documents.ids[id_start:id_stop],
                        documents.lengths[start:stop],
                        documents.bytes[start:stop],
                        documents.begins[start:stop],
                    )
                    yield DoneBlock((unit.source, [number, place]), name, size, _only(part, kept[start:stop]))
                start, id_start = stop, id_stop

    def count(self, limit_bytes: int | None) -> int:
        """Documents of the first walk that are kept, up to the one that reaches `limit_bytes` of text."""
        documents = seen = 0
        last: tuple[int, str] | None = None
        for block in self.blocks(0, None, set()):
            begins = block.encoded.begins.copy()
            if len(begins) and (block.cursor[0], block.source) != last:
                begins[0] = True
                last = (block.cursor[0], block.source)
            sizes = seen + np.cumsum(block.encoded.bytes)
            if limit_bytes is not None and len(sizes) and sizes[-1] >= limit_bytes:
                return documents + int(begins[: int(np.searchsorted(sizes, limit_bytes)) + 1].sum())
            documents, seen = documents + int(begins.sum()), int(sizes[-1]) if len(sizes) else seen
        return documents


def _only(part: EncodedBlock, kept: NDArray[np.bool_]) -> EncodedBlock:
    if kept.all():
        return part
    return EncodedBlock(
        part.ids[np.repeat(kept, part.lengths)], part.lengths[kept], part.bytes[kept], part.begins[kept]
    )


@dataclass(frozen=True)
class DoneBlock:
    """A block that is encoded already."""

    cursor: Cursor
    source: str
    source_bytes: int
    encoded: EncodedBlock


PLAN = "plan.json"


def open_job(
    folder: Path,
    key: str,
    walks: Sequence[Sequence[Source]],
    reading: Reading,
    steps: Sequence[Step],
    save_tokenizer: Any,
    unit_bytes: int,
) -> Job:
    """The job in `folder`: that of an earlier call where it has the same `key`, with all that it has done, else anew.

    `key`: digest of all that decides what is in the units' files. `save_tokenizer` writes the tokenizer to a folder.
    """
    from gptlab.config.jsonfile import read_json  # its package is slow to import: kept out of the workers
    from gptlab.data.preparation.units import plan_units
    from gptlab.seal import sealed_json

    plan = folder / PLAN
    units: list[Unit] | None = None
    with contextlib.suppress(FileNotFoundError, ValueError, GptlabError):
        known = read_json(plan, dict[str, Any], mend=f"remove {folder}", error=DataError)
        if known["key"] == key:
            units = [Unit(**each) for each in known["units"]]
    if units is None:
        shutil.rmtree(folder, ignore_errors=True)
        planned = plan_units(walks, reading, unit_bytes)
        folder.mkdir()
        save_tokenizer(folder / "tokenizer")
        write_atomic(plan, sealed_json({"key": key, "units": [asdict(unit) for unit in planned]}))
        units = [Unit(**each) for each in json.loads(json.dumps([asdict(unit) for unit in planned]))]
    frozen = tuple(tuple(sources) for sources in walks)
    job = Job(folder.resolve(), key, Path.cwd(), frozen, reading, tuple(steps), tuple(units))
    job.begin()
    return job


def check_done(job: Job) -> None:
    """Raise DataError where a unit could not be done."""
    job.check()
    if missing := job.missing():
        raise DataError(
            f"{len(missing)} of {len(job.units)} units are not done: their workers died, perhaps for want of memory; "
            f"the same command does what is missing, with fewer {option('workers')} or more memory if need be"
        )
