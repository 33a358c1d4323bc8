"""A judge's grade as a number of a run: RUN/evals/grade.json, as a benchmark leaves its results.

The grade of a run is the mean over prompts of the mean over criteria. Its file says by whom and of what it was given,
so that grades of two judges, or of other prompts, are never compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.lab.runs.store import GRADE
from gptlab.lab.stats.paired import Array
from gptlab.record.evaluation import Evaluation
from gptlab.record.facts import read_facts
from gptlab.record.runfolder import FACTS, digest_of_weights
from gptlab.version import __version__

MEAN = "mean"


def grading_identity(model: str, temperature: float | None, **others: Any) -> dict[str, str]:
    """What a grade depends on beside the run: the judge, and a digest of each of the `others`."""
    warmth = "" if temperature is None else f" at temperature {temperature:g}"
    digests = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
        for name, value in others.items()
    }
    return {"judge": f"{model}{warmth}", **digests}


def grade_evaluations(
    runs: Sequence[Path], cells: Mapping[str, Array], prompts: Sequence[str], identity: Mapping[str, str]
) -> list[Evaluation]:
    """The evaluation of each graded run.

    `cells`: by criterion the grades, (P, S) for P prompts and S runs, NaN where none could be read; a prompt without
    one is left out. `identity`: see `grading_identity`.
    """
    values = np.stack(list(cells.values()))  # (criteria, P, S)
    found = []
    for number, run in enumerate(runs):
        own = values[:, :, number]
        read = np.flatnonzero(~np.isnan(own).any(axis=0)).tolist()
        each = own[:, read].mean(axis=0)
        settings = {
            "run": run.resolve().name,
            "step": read_facts(run).steps if (run / FACTS).is_file() else None,
            "weights": digest_of_weights(run),
            "gptlab": __version__,
            "judging": dict(identity),
        }
        results = {
            MEAN: float(each.mean()),
            **{name: float(row[read].mean()) for name, row in zip(cells, own, strict=True)},
            "prompts": len(read),
        }
        error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else None
        records = [
            {"prompt": prompts[p], MEAN: float(own[:, p].mean())}
            | {name: float(row[p]) for name, row in zip(cells, own, strict=True)}
            for p in read
        ]
        found.append(Evaluation(GRADE, results, {MEAN: error}, settings, records))
    return found
