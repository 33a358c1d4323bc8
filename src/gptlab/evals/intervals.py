"""What answers to questions can tell: intervals of one accuracy, and of the difference of two on the same questions.

Questions that share a passage are answered right or wrong together, so intervals are by groups of them where there are
any (Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640). Coverage is held by simulation in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """From `low` to `high`; infinite where nothing is known yet."""

    low: float
    high: float


def groups_of(records: Sequence[Mapping[str, Any]]) -> list[str | int] | None:
    """The group of each record, one of its own where it has none; None where none has one."""
    if not any("group" in record for record in records):
        return None
    return [record.get("group", f"alone {number}") for number, record in enumerate(records)]


def wilson(correct: Sequence[int], groups: Sequence[Hashable] | None = None, *, confidence: float = 0.95) -> Interval:
    """The interval of an accuracy, of `correct`, ones and zeros (Wilson 1927): it stays within 0 and 1, and keeps what
    it promises at 50 questions and near the ends, where p ± 1.96 errors does not.

    With `groups`, the group of each question, as of that many questions that would vary as much if they were
    independent: n over the design effect, with Student's quantile for the groups (Korn and Graubard 1998).
    """
    from scipy import stats

    x = np.asarray(correct, dtype=np.float64)
    n, p = len(x), float(x.mean())
    quantile, effective = float(stats.norm.ppf((1 + confidence) / 2)), float(n)
    if groups is not None and len(totals := _group_sums(x - p, groups)) < n:
        count = len(totals)
        if count < 2:
            return Interval(0.0, 1.0)  # one group shows no noise to measure by
        quantile = float(stats.t.ppf((1 + confidence) / 2, count - 1))
        variance = _variance(totals, n)
        # All alike show no variance at all: then each group counts as one question.
        effective = p * (1 - p) / variance if variance > 0 else float(count)
    return score_interval(p, effective, quantile)


def score_interval(p: float, tosses: float, quantile: float) -> Interval:
    """Wilson's interval of a share p of so many tosses of a coin."""
    scale = 1 + quantile**2 / tosses
    middle = (p + quantile**2 / (2 * tosses)) / scale
    half = quantile * math.sqrt(p * (1 - p) / tosses + (quantile / (2 * tosses)) ** 2) / scale
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class PairedAnswers:
    """Two models on the same questions.

    Attributes:
        n: questions.
        only_first, only_second: answered rightly by one alone.
        difference: accuracy of the second less that of the first.
        interval: of the difference, 95%.
        p: McNemar's exact two-sided p-value; None where questions come in groups, which it does not know of.
        detectable: the smallest true difference that so many such questions show with probability 0.8.
    """

    n: int
    only_first: int
    only_second: int
    difference: float
    interval: Interval
    p: float | None
    detectable: float


def compare_answers(
    first: Sequence[int], second: Sequence[int], groups: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> PairedAnswers:
    """What question by question comparison says of two lists of ones and zeros.

    The interval is Tango's (1998, "Equivalence Test and Confidence Interval for the Difference in Proportions for the
    Paired-Sample Design"): all differences that a score test does not refuse; by groups as in `wilson`. McNemar's test
    (1947) asks whether the questions that one model alone got right are split evenly.
    """
    from scipy import stats

    d = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    n, ones, twos = len(d), int((d < 0).sum()), int((d > 0).sum())
    quantile, effect, p = float(stats.norm.ppf((1 + confidence) / 2)), 1.0, None
    if groups is not None and 1 < len(totals := _group_sums(d - d.mean(), groups)) < n:
        plain = float(((d - d.mean()) ** 2).sum()) / n**2
        variance = _variance(totals, n)
        effect = variance / plain if variance > 0 else n / len(totals)
        quantile = float(stats.t.ppf((1 + confidence) / 2, len(totals) - 1))
    else:
        p = float(stats.binomtest(twos, ones + twos).pvalue) if ones + twos else 1.0
    interval = _tango(twos / effect, ones / effect, n / effect, quantile)
    # Two discordant questions more, one each way: where there is none, none is not what the next thousand would have.
    error = math.sqrt((ones + twos + 2) / (n + 2) * effect / (n + 2))
    detectable = min(1.0, (quantile + float(stats.norm.ppf(0.8))) * error)
    return PairedAnswers(n, ones, twos, float(d.mean()), interval, p, detectable)


def _tango(up: float, down: float, n: float, quantile: float) -> Interval:
    """Differences that the score test does not refuse, of `up` questions gained and `down` lost among `n`."""
    from scipy.optimize import brentq

    def score(difference: float) -> float:
        b = -up - down + (2 * n - up + down) * difference
        c = -down * difference * (1 - difference)
        lost = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # the likeliest share of `down`, given it
        variance = n * (2 * lost + difference * (1 - difference))
        return (up - down - n * difference) / math.sqrt(max(variance, 1e-12))

    observed, edge = (up - down) / n, 1 - 1e-9
    low = brentq(lambda x: score(x) - quantile, -edge, observed) if score(-edge) > quantile else -1.0
    high = brentq(lambda x: score(x) + quantile, observed, edge) if score(edge) < -quantile else 1.0
    return Interval(float(low), float(high))


def bootstrap_difference(
    first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """The 95% interval of the mean difference of any score by question: the percentiles of 10,000 resamples of the
    questions, or of their groups, which keep each question's two scores together."""
    d = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    groups = range(len(d)) if groups is None else groups
    sums, sizes = _group_sums(d, groups), _group_sums(np.ones_like(d), groups)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(100):  # a hundred at a time: 10,000 × 10,000 would not fit everywhere
        drawn = generator.integers(len(sums), size=(100, len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(low), float(high))


def _group_sums(values: Array, groups: Sequence[Hashable]) -> Array:
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    return np.bincount(index, weights=values, minlength=len(numbers)).astype(np.float64)


def _variance(totals: Array, n: int) -> float:
    """Of a mean over n, from its residuals' sums by group: G/(G − 1) Σ r_g² / n²."""
    return len(totals) / (len(totals) - 1) * float((totals**2).sum()) / n**2
