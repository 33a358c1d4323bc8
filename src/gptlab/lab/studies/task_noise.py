"""What a benchmark can tell at this size: how far its scores move by luck alone, from seed to seed and from one late
checkpoint of a run to the next, and the smallest difference that so much noise leaves to be seen.

The measure of noise by late checkpoints is that of Heineman et al. 2025 (arXiv:2508.13144, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.config.jsonfile import read_json
from gptlab.errors import GptlabError
from gptlab.lab.stats.power import fixed_minimum_detectable_effect
from gptlab.record.evaluation import Evaluation, read_evaluation
from gptlab.record.measurement import unlike_pair

LATE = 5
"""How many of a run's last evaluated checkpoints count as late, its end among them."""


@dataclass(frozen=True)
class TaskNoise:
    """The noise of one number of a benchmark over runs of one config.

    Attributes:
        mean: over the runs.
        chance: what guessing comes to; None where that is no accuracy, or not known.
        above_chance: whether the interval of any run lies above it; True where there is no chance.
        seeds: standard deviation between the runs.
        checkpoints: standard deviation between late checkpoints of a run, pooled; None where fewer than two of any run
            were evaluated.
        detectable: the smallest difference of two configs that as many pairs of seeds find in 80% of cases, by the
            paired t test, looked at once, if arms share no luck.
        runs: how many.
    """

    task: str
    metric: str
    mean: float
    chance: float | None
    above_chance: bool
    seeds: float
    checkpoints: float | None
    detectable: float
    runs: int


def task_noise(folders: Sequence[Path], task: str) -> list[TaskNoise]:
    """The noise of the accuracy of `task` and of its bits per byte, over evaluated runs.

    Raises GptlabError where there are fewer than two, one was not evaluated, or not on what the others were.
    """
    ends = [_read(folder, task) for folder in folders]
    if len(ends) < 2:
        raise GptlabError(f"{task}: the spread of one run cannot be seen; evaluate two or more")
    if found := unlike_pair([(f, end.identity) for f, end in zip(folders, ends, strict=True)], by_byte=False):
        one, first, difference = found
        raise GptlabError(
            f"{one} was not asked what {first} was, {difference}; evaluate both anew with "
            f"`gptlab eval {one} {first} --tasks {task}`"
        )
    late = [_late(folder, task, end) for folder, end in zip(folders, ends, strict=True)]
    accuracy = "acc_norm" if "acc_norm" in ends[0].results else "acc"
    return [
        _of_number(task, key, ends, late) for key in (accuracy, "bits_per_byte") if all(key in e.results for e in ends)
    ]


def _read(folder: Path, task: str) -> Evaluation:
    found = read_evaluation(folder, task)
    if found is None:
        raise GptlabError(f"{folder} has not been evaluated on {task}; run `gptlab eval {folder} --tasks {task}` first")
    return found


def _late(folder: Path, task: str, end: Evaluation) -> list[Evaluation]:
    """The last checkpoints that were asked the same, the end of the run last."""
    before = []
    for path in sorted((folder / "evals").glob(f"{task}-step-*.json")):  # eight digits: in the order of their steps
        found = read_json(path, Evaluation, mend=f"run `gptlab eval {folder} --tasks {task}` with its checkpoint again")
        if found.identity == end.identity and found.settings.get("step") != end.settings.get("step"):
            before.append(found)
    return [*before[1 - LATE :], end]


def _of_number(task: str, key: str, ends: Sequence[Evaluation], late: Sequence[Sequence[Evaluation]]) -> TaskNoise:
    values = np.array([float(end.results[key]) for end in ends])
    groups = [np.array([float(one.results[key]) for one in group if key in one.results]) for group in late]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    chance = ends[0].results.get("chance") if key != "bits_per_byte" else None
    lows = [(end.results.get("intervals") or {}).get(key, [None])[0] for end in ends]
    sd = float(values.std(ddof=1))
    return TaskNoise(
        task,
        key,
        float(values.mean()),
        chance,
        chance is None or any(low is not None and low > chance for low in lows),
        sd,
        math.sqrt(squares / freedom) if freedom else None,
        fixed_minimum_detectable_effect(math.sqrt(2) * sd, seeds=len(values)) if sd else 0.0,
        len(values),
    )


HEADER = ("task", "runs", "mean", "chance", "sd of seeds", "sd of late checkpoints", "could show")


def rows(found: Sequence[TaskNoise]) -> list[tuple[list[str], bool]]:
    """The rows of a table under HEADER, each with whether it is above chance."""
    return [
        (
            [
                f"{one.task} {one.metric}",
                str(one.runs),
                f"{one.mean:.4f}",
                "" if one.chance is None else f"{one.chance:.4f}",
                f"{one.seeds:.4f}",
                "" if one.checkpoints is None else f"{one.checkpoints:.4f}",
                f"{one.detectable:.4f}",
            ],
            one.above_chance,
        )
        for one in found
    ]
