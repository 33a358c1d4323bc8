"""Text encoded unit by unit, wherever an engine does it, before shards are written of it in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.data.preparation.comparing import compare
from gptlab.data.preparation.engines import Engine
from gptlab.data.preparation.screening import make_ready
from gptlab.data.preparation.steps import Questions, Step
from gptlab.data.preparation.unit_files import DoneUnits, Job, open_job
from gptlab.data.preparation.units import UNIT_BYTES
from gptlab.data.preparation.writer import UNITS, save_tokenizer
from gptlab.data.sources.base import Reading, Source
from gptlab.data.sources.selection import Selected
from gptlab.errors import DataError

if TYPE_CHECKING:
    from gptlab.tokenizer import Tokenizer

_VERSION = 1  # of what the files of units hold


@dataclass
class Apart:
    """A preparation in units.

    Attributes:
        engine: where units are done.
        steps: before tokenizing, in order.
        tokenizer, saved, reading: as of `DatasetWriter`.
        questions: the texts of an evaluation task, by its name, for a step that asks for them.
        unit_bytes: of a unit, about; it changes nothing that is written.
        report: what each step did, once `encoded` has answered.
    """

    engine: Engine
    steps: Sequence[Step]
    tokenizer: Tokenizer
    saved: Path | None
    reading: Reading
    questions: Questions | None = None
    unit_bytes: int = UNIT_BYTES
    report: list[dict[str, Any]] = field(default_factory=list)

    def encoded(self, folder: Path, walks: Sequence[Sequence[Source]]) -> DoneUnits:
        """The units of `walks`, all done: in the working folder `folder`, where those of an earlier call are kept.

        Raises as `Engine.run`, and DataError where a step does not fit the inputs.
        """
        self._check(walks)
        asked = [step.asked(self.questions) for step in self.steps]
        decides = [
            _VERSION,
            [[source.identity() for source in sources] for sources in walks],
            self.reading.options(),
            self.tokenizer.hash,
            [step.identity() for step in self.steps],
            [hashlib.sha256(json.dumps(one).encode()).hexdigest() for one in asked],
        ]
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

        def save(folder: Path) -> None:
            save_tokenizer(self.tokenizer, self.saved, folder)

        job: Job = open_job(folder / UNITS, key, walks, self.reading, self.steps, save, self.unit_bytes)
        make_ready(self.steps, asked, job.folder)
        self.engine.run(job)
        done = DoneUnits(job)
        if self.steps:
            done.kept, self.report = compare(done, self.steps)
        return done

    def options(self) -> dict[str, Any]:
        """What decides the data, beside what `prepare` has."""
        return {"steps": [step.identity() for step in self.steps]} if self.steps else {}

    def reported(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` where each step has with it what it did."""
        steps = [step.identity() | {"did": did} for step, did in zip(self.steps, self.report, strict=True)]
        return options | ({"steps": steps} if steps else {})

    def _check(self, walks: Sequence[Sequence[Source]]) -> None:
        comparing = next((step for step in self.steps if step.compares), None)
        for source in (source for sources in walks for source in sources):
            if comparing is not None and isinstance(source, Selected) and source.input.weight > 1:
                raise DataError(
                    f"{source.name}: weight {source.input.weight:g} repeats documents, and {comparing.use} takes "
                    "repeated ones out; leave out one of the two"
                )
