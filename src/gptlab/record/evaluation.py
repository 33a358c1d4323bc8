"""RUN/evals/TASK.json: what a benchmark found about a run, and what its numbers depend on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gptlab.config.jsonfile import read_json
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.record.measurement import ALL, Identity, data_identity
from gptlab.seal import SEAL, seal_of
from gptlab.shown import Sheet, Shown, cells


@dataclass(repr=False)
class Evaluation(Shown):
    """What a task found about a run.

    Attributes:
        task: its name.
        results: the numbers, by name.
        standard_errors: of some of them, by the same names; None where one window or question was all.
        settings: what the numbers depend on.
        records: a row a question, where there are questions.
    """

    task: str
    results: dict[str, Any]
    standard_errors: dict[str, float | None] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def sheet(self) -> Sheet:
        """A row a number, with its standard error."""
        plain = {name: value for name, value in self.results.items() if isinstance(value, int | float) or value is None}
        rows = [
            [
                name,
                f"{value:,}" if isinstance(value, int) else cells([value])[0],
                *cells([self.standard_errors.get(name)]),
            ]
            for name, value in plain.items()
        ]
        of = ", ".join(str(self.settings[key]) for key in ("run", "split") if self.settings.get(key) is not None)
        return Sheet(f"{self.task} of {of}" if of else self.task, rows, ("", "value", "standard error"))

    def write(self, path: Path) -> None:
        """Keep it as JSON, a record a line. Raises GptlabError where the disk refuses."""
        head: dict[str, Any] = {
            "task": self.task,
            "results": self.results,
            "standard_errors": self.standard_errors,
            "settings": self.settings,
        }
        head[SEAL] = seal_of({**head, "records": self.records} if self.records else head)
        text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
        if self.records:
            rows = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in self.records)
            text = f'{text[:-2]},\n "records": [\n{rows}\n ]\n}}'
        try:
            write_atomic(path, text + "\n")
        except OSError as error:
            raise GptlabError(f"cannot write {path}: {error.strerror}; free some space or mend its rights") from None

    @property
    def identity(self) -> Identity:
        """What the numbers were read from, but for the weights: questions or text, tokenizer, precision, scorer."""
        known = self.settings
        tokenizer, data = known.get("tokenizer"), cast("dict[str, dict[str, str]]", known.get("data") or {})
        named = {
            "questions": str(known["sha256"])[:12] if "sha256" in known else None,
            **(data_identity({name: str(one["fingerprint"]) for name, one in data.items()}) if data else {}),
            "window": known.get("sequence_length"),
            "context": known.get("context_length"),
            "limit": known["limit"] or ALL if "limit" in known else None,
            "stride": known.get("stride"),
            "shots": known.get("shots") or None,
            "examples": str(known["examples_sha256"])[:12] if "examples_sha256" in known else None,
            "tokenizer": str(tokenizer.get("hash"))[:12] if isinstance(tokenizer, dict) else None,
            "precision": " × ".join(str(known[key]) for key in ("dtype", "quantized") if known.get(key)) or None,
            "scorer": known.get("version"),
            **(known.get("judging") or {}),
        }
        return {name: str(value)[:40] for name, value in named.items() if value is not None}


def read_evaluation(folder: Path, task: str) -> Evaluation | None:
    """What `task` found about the run in `folder`; None where it was not evaluated.

    Raises GptlabError where the file is damaged.
    """
    path = folder / "evals" / f"{task}.json"
    try:
        return read_json(path, Evaluation, mend=f"run `gptlab eval {folder} --tasks {task}` again")
    except FileNotFoundError:
        return None
