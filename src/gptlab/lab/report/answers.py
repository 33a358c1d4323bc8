"""Two runs on the same questions: which answers differ, and what the difference can tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.errors import GptlabError
from gptlab.evals.intervals import Interval, PairedAnswers, bootstrap_difference, compare_answers, groups_of
from gptlab.record.evaluation import Evaluation, read_evaluation
from gptlab.record.measurement import differences

_OF_QUESTIONS = {"questions": "", "limit": "", "shots": "none", "examples": "none", "scorer": ""}
"""Of an identity what has to be equal, and what it is where it is not named. Models with other tokenizers or contexts
answer the same questions."""


@dataclass(frozen=True)
class AnswersCompared:
    """One benchmark, two runs, question by question.

    Attributes:
        metric: acc_norm where the benchmark has it, else acc.
        first, second: the runs' accuracies.
        chance: what guessing comes to; None where it is not known.
        above_chance: whether the interval of one of the two lies above it.
        paired: of the answers.
        bits: the difference in bits per byte of the right answers, and its interval; None where they are not known.
    """

    task: str
    metric: str
    first: float
    second: float
    chance: float | None
    above_chance: bool
    paired: PairedAnswers
    bits: tuple[float, Interval] | None


def compare_tasks(runs: Sequence[Path], tasks: Sequence[str]) -> list[tuple[Path, AnswersCompared]]:
    """Each run but the first beside the first, on each task.

    Raises GptlabError where a run was not evaluated, or not on the same questions.
    """
    found = [[_read(run, task) for run in runs] for task in tasks]
    compared = []
    for first, *others in found:
        for run, other in zip(runs[1:], others, strict=True):
            compared.append((run, compare_evaluations(first, other, runs[0], run)))
    return compared


def _read(run: Path, task: str) -> Evaluation:
    found = read_evaluation(run, task)
    if found is None:
        raise GptlabError(f"{run} has not been evaluated on {task}; run `gptlab eval {run} --tasks {task}` first")
    if not found.records or "acc" not in found.results:
        raise GptlabError(f"{run}/evals/{task}.json: has no answers to questions; compare runs by its numbers instead")
    return found


def compare_evaluations(first: Evaluation, second: Evaluation, one: Path, other: Path) -> AnswersCompared:
    """Two results of one task. Raises GptlabError where they are not of the same questions."""
    kept = [{key: found.identity.get(key, none) for key, none in _OF_QUESTIONS.items()} for found in (first, second)]
    if changed := differences(kept[1], kept[0]):
        raise GptlabError(
            f"{other} was not asked what {one} was, {changed[0]}; evaluate both anew with "
            f"`gptlab eval {one} {other} --tasks {first.task}`"
        )
    metric = "acc_norm" if "acc_norm" in first.results else "acc"
    a, b = (_column(found, metric) for found in (first, second))
    groups = groups_of(first.records)
    bits = None
    if "bits_per_byte" in first.results and "bits_per_byte" in second.results:
        x, y = (_column(found, "bits_per_byte") for found in (first, second))
        bits = sum(y) / len(y) - sum(x) / len(x), bootstrap_difference(x, y, groups)
    chance = first.results.get("chance")
    lows = [found.results["intervals"][metric][0] for found in (first, second) if "intervals" in found.results]
    return AnswersCompared(
        first.task,
        metric,
        first.results[metric],
        second.results[metric],
        chance,
        chance is None or any(low > chance for low in lows),
        compare_answers([round(x) for x in a], [round(x) for x in b], groups),
        bits,
    )


def _column(found: Evaluation, key: str) -> list[float]:
    return [float(record[key]) for record in found.records]


HEADER = ("run", "task", "first", "this", "difference", "95% interval", "p", "could show", "bits/byte", "95% interval")


def rows(compared: Sequence[tuple[Path, AnswersCompared]]) -> list[tuple[list[str], bool]]:
    """The rows of a table under HEADER, each with whether it is above chance."""
    found = []
    for run, one in compared:
        low, high = one.paired.interval
        bits = ["", ""]
        if one.bits is not None:
            bits = [f"{one.bits[0]:+.4f}", f"{one.bits[1].low:+.4f} to {one.bits[1].high:+.4f}"]
        cells = [
            run.resolve().name,
            f"{one.task} {one.metric}",
            f"{one.first:.4f}",
            f"{one.second:.4f}",
            f"{one.paired.difference:+.4f}",
            f"{low:+.4f} to {high:+.4f}",
            "" if one.paired.p is None else f"{one.paired.p:.3g}",
            f"{one.paired.detectable:.4f}",
            *bits,
        ]
        found.append((cells, one.above_chance))
    return found


# ---------------------------------------------------------------- what a benchmark tells at this size


@dataclass(frozen=True)
class SignalToNoise:
    """How far a number moves between configs, and between seeds of one (Heineman et al. 2025, arXiv:2508.13144).

    Attributes:
        signal: the largest mean of a config less the smallest.
        noise: the standard deviation of single runs about their config's mean, pooled over configs.
        ratio: of the two; None where seeds show no noise.
        configs, runs: how many.
    """

    task: str
    metric: str
    signal: float
    noise: float
    ratio: float | None
    configs: int
    runs: int


def signal_to_noise(runs: Sequence[Path], tasks: Sequence[str]) -> list[SignalToNoise]:
    """Of each task's accuracy and bits per byte, where the runs are of two configs or more, one of them with several
    seeds; none elsewhere. Raises GptlabError as `compare_tasks`."""
    configs: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        configs.setdefault(re.sub(r"-seed\d+$", "", run.resolve().name), []).append(number)
    freedom = sum(len(members) - 1 for members in configs.values())
    if len(configs) < 2 or not freedom:
        return []
    found = []
    for task in tasks:
        each = [_read(run, task) for run in runs]
        for metric in ("acc_norm" if "acc_norm" in each[0].results else "acc", "bits_per_byte"):
            if any(metric not in one.results for one in each):
                continue
            groups = [np.array([each[number].results[metric] for number in members]) for members in configs.values()]
            means = [group.mean() for group in groups]
            noise = float(np.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom))
            signal = float(max(means) - min(means))
            ratio = signal / noise if noise else None
            found.append(SignalToNoise(task, metric, signal, noise, ratio, len(groups), len(runs)))
    return found


SIGNAL_HEADER = ("task", "between configs", "between seeds", "signal to noise")


def signal_rows(found: Sequence[SignalToNoise]) -> list[list[str]]:
    """The rows of a table under SIGNAL_HEADER."""
    return [
        [
            f"{one.task} {one.metric}",
            f"{one.signal:.4f}",
            f"{one.noise:.4f}",
            "–" if one.ratio is None else f"{one.ratio:.1f}",
        ]
        for one in found
    ]
