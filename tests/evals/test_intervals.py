"""Intervals keep what they promise: 95 ± 1.5% of simulated benchmarks, at 50 and 500 questions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gptlab.evals.intervals import bootstrap_difference, compare_answers, wilson

Array = NDArray[np.float64]
TOLERANCE = 0.015


def clustered(generator: np.random.Generator, p: float, groups: int, size: int, shared: float) -> Array:
    """Answers right with probability p, those of a group correlated by `shared`: (groups × size,)."""
    total = 1 / shared - 1
    of_group = generator.beta(p * total, (1 - p) * total, groups).repeat(size)
    return (generator.random(groups * size) < of_group).astype(np.float64)


@pytest.mark.parametrize("n", [50, 500])
def test_wilson_covers(n: int) -> None:
    """Averaged over accuracies: at one of them a proportion of 50 jumps by a few percent either way."""
    generator = np.random.default_rng(1)
    shares = generator.uniform(0.05, 0.95, 3000)
    hits = 0
    for p in shares:
        low, high = wilson((generator.random(n) < p).astype(int))
        hits += low <= p <= high
    assert hits / len(shares) == pytest.approx(0.95, abs=TOLERANCE)


@pytest.mark.parametrize("n", [50, 500])
@pytest.mark.parametrize("shared", [0.1, 0.4])
def test_wilson_by_groups_covers_where_the_plain_one_does_not(n: int, shared: float) -> None:
    generator = np.random.default_rng(2)
    groups = np.arange(n) // 5
    hits = plain = 0
    shares = generator.uniform(0.2, 0.8, 2000)
    for p in shares:
        x = clustered(generator, p, n // 5, 5, shared).astype(int)
        low, high = wilson(x, groups.tolist())
        hits += low <= p <= high
        low, high = wilson(x)
        plain += low <= p <= high
    assert hits / len(shares) == pytest.approx(0.95, abs=TOLERANCE)
    assert plain / len(shares) < 0.93


@pytest.mark.parametrize("n", [50, 500])
@pytest.mark.parametrize("size", [1, 5])
def test_paired_intervals_cover(n: int, size: int) -> None:
    """Two models that agree on half of the questions; with groups, those on which one of them is weak."""
    generator = np.random.default_rng(3)
    groups = (np.arange(n) // size).tolist() if size > 1 else None
    hits = unpaired = narrower = 0
    rounds = 1500
    for _ in range(rounds):
        p, truth = generator.uniform(0.3, 0.6), generator.uniform(-0.1, 0.1)
        shift = generator.normal(0, 0.1, (2, n // size)).repeat(size, axis=1) if size > 1 else np.zeros((2, n))
        first = generator.random(n)
        second = np.where(generator.random(n) < 0.5, first, generator.random(n))
        a, b = (first < p + shift[0]).astype(int), (second < p + truth + shift[1]).astype(int)
        found = compare_answers(a, b, groups)
        hits += found.interval.low <= truth <= found.interval.high
        apart = np.sqrt(a.var() / n + b.var() / n) * 3.92
        unpaired += apart
        narrower += found.interval.high - found.interval.low
    assert hits / rounds == pytest.approx(0.95, abs=TOLERANCE)
    if size == 1:  # pairing is worth something, or nobody need do it
        assert narrower < 0.9 * unpaired


def test_mcnemar_and_what_could_be_shown() -> None:
    a = [1] * 30 + [0] * 70
    b = [1] * 25 + [0] * 5 + [1] * 15 + [0] * 55
    found = compare_answers(a, b)
    assert (found.n, found.only_first, found.only_second) == (100, 5, 15)
    assert found.difference == pytest.approx(0.10)
    assert found.p == pytest.approx(stats.binomtest(5, 20).pvalue)
    assert found.interval.low < 0.10 < found.interval.high
    # What could be shown is shown: at that true difference, 80% of intervals leave out 0.
    generator = np.random.default_rng(4)
    n, shown, rounds = 500, 0, 600
    discordant, truth = 0.2, compare_answers([0] * 450 + [1] * 50, [1] * 50 + [0] * 450).detectable
    assert 0.05 < truth < 0.07
    for _ in range(rounds):
        d = generator.choice([-1, 0, 1], n, p=[(discordant - truth) / 2, 1 - discordant, (discordant + truth) / 2])
        low, high = compare_answers((d < 0).astype(int), (d > 0).astype(int)).interval
        shown += low > 0 or high < 0
    assert shown / rounds == pytest.approx(0.8, abs=0.05)
    # Groups make McNemar's p-value wrong, and there is none then.
    assert compare_answers(a, b, [n // 2 for n in range(100)]).p is None


def test_ends() -> None:
    assert wilson([0] * 50).low == pytest.approx(0)
    assert 0.05 < wilson([0] * 50).high < 0.08
    assert wilson([1] * 50).high == pytest.approx(1)
    assert wilson([1] * 50, [n // 10 for n in range(50)]).low < wilson([1] * 50).low
    assert wilson([1, 0, 1], ["a", "a", "a"]) == (0, 1)
    nothing = compare_answers([0, 1] * 25, [0, 1] * 25)
    assert nothing.difference == 0
    assert nothing.p == 1
    assert nothing.interval.low < 0 < nothing.interval.high
    one = compare_answers([1, 0] * 25, [0, 1] * 25, [n // 2 for n in range(50)])  # every group comes out even
    assert one.interval.low < -0.2
    assert one.interval.high > 0.2


def test_the_bootstrap_keeps_pairs_and_groups_together() -> None:
    generator = np.random.default_rng(5)
    hits = {"plain": 0, "groups": 0}
    rounds = 150
    groups = (np.arange(200) // 10).tolist()
    for number in range(rounds):
        common = generator.normal(size=200)
        weak = generator.normal(0, 0.3, 20).repeat(10)
        a, b = common + generator.normal(0, 0.1, 200), common + 0.05 + weak + generator.normal(0, 0.1, 200)
        for name, of in (("plain", None), ("groups", groups)):
            low, high = bootstrap_difference(a, b, of, seed=number)
            hits[name] += low <= 0.05 <= high
    assert hits["groups"] / rounds > 0.88  # percentiles of 20 groups are a little short
    assert hits["plain"] / rounds < 0.7
