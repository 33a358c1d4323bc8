"""The anytime-valid t test: equal to numerical integration, true in simulation, and as the manual says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.samples import PAGE, table
from scipy import integrate, stats

from gptlab.lab.stats.sequential import critical_t, log_e_value, prior_variance, sequential_test


@pytest.mark.parametrize(("t", "n", "g"), list(itertools.product([0, 0.7, -2.5, 8], [2, 3, 7, 12], [0.3, 2.0, 30.0])))
def test_e_is_the_likelihood_ratio_of_t(t: float, n: int, g: float) -> None:
    def weighed(delta: float) -> float:
        return float(stats.nct.pdf(t, n - 1, math.sqrt(n) * delta) * stats.norm.pdf(delta, scale=math.sqrt(g)))

    edge = 8 * math.sqrt(g)
    alternative = integrate.quad(weighed, -edge, edge, points=[0, t / math.sqrt(n)], limit=400)[0]
    assert math.exp(log_e_value(t, n, g)) == pytest.approx(alternative / stats.t.pdf(t, n - 1), rel=1e-5)


def test_e_is_a_martingale_under_the_null_at_every_scale() -> None:
    rng = np.random.default_rng(1)
    paths = 200_000
    d = rng.standard_normal((paths, 6)) * rng.lognormal(0, 3, (paths, 1))
    n = np.arange(2, 7)
    t = np.stack([stats.ttest_1samp(d[:, :k], 0, axis=1).statistic for k in n], axis=1)
    e = np.exp(log_e_value(t, n, 0.5))
    assert np.abs(e.mean(0) - 1).max() < 4 * (e.std(0) / math.sqrt(paths)).max()
    # Stopped when it is large, small, or at the end: a martingale still has mean 1, whatever the rule.
    stop = np.where((e > 1.3) | (e < 0.6), np.arange(5), 4).min(axis=1)
    stopped = e[np.arange(paths), stop]
    assert len(np.unique(stop)) == 5
    assert abs(stopped.mean() - 1) < 4 * stopped.std() / math.sqrt(paths)


def test_p_is_one_over_the_largest_e() -> None:
    d = np.random.default_rng(5).normal(0.5, 1, 12)
    log_e = [0.0]
    for n in range(2, 13):
        log_e.append(float(log_e_value(stats.ttest_1samp(d[:n], 0).statistic, n, 2.0)))
    assert sequential_test(d, g=2.0, alpha=0.05).p == pytest.approx(np.exp(-np.maximum.accumulate(log_e)))


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.001])
@pytest.mark.parametrize("g", [0.5, 3.0, 40.0])
def test_the_sequence_inverts_the_test(alpha: float, g: float) -> None:
    n = np.arange(2, 40)
    bound = critical_t(n, g, alpha)
    finite = np.isfinite(bound)
    assert finite.any()
    assert log_e_value(bound[finite], n[finite], g) == pytest.approx(math.log(1 / alpha))
    assert (log_e_value(1e9, n[~finite], g) < math.log(1 / alpha)).all()
    assert critical_t(1, g, alpha) == math.inf


@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 12])
def test_the_prior_makes_the_sequence_narrowest_where_planned(seeds: int) -> None:
    best = prior_variance(0.05, seeds)
    others = best * np.geomspace(0.1, 10, 2001)
    assert critical_t(seeds, best, 0.05) <= min(float(critical_t(seeds, g, 0.05)) for g in others) + 1e-9


def ever_missed(d: np.ndarray, mean: float) -> float:
    course = sequential_test(d, g=prior_variance(0.05, 8), alpha=0.05)
    return float(((course.low > mean) | (course.high < mean)).any(axis=1).mean())


def test_the_sequence_covers_the_mean_at_all_times_at_once() -> None:
    paths, pairs = 40_000, 24
    missed = ever_missed(np.random.default_rng(2).normal(0.7, 3.0, (paths, pairs)), 0.7)
    assert missed <= 0.05
    assert missed > 0.01  # a bound that never misses would be too wide to be this one


def test_the_page_says_what_peeking_does_to_a_t_test() -> None:
    d, n = np.random.default_rng(0).standard_normal((20_000, 12)), np.arange(3, 13)
    t = np.stack([stats.ttest_1samp(d[:, :k], 0, axis=1).statistic for k in n], axis=1)
    wrong = (np.abs(t) > stats.t.isf(0.025, n - 1)).any(axis=1).mean()
    assert f"in {100 * wrong:.0f}% of all experiments" in " ".join(PAGE.read_text(encoding="utf-8").split())


NOISES = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "Student's t, 3 degrees of freedom": lambda rng, size: rng.standard_t(3, size),
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "exponential": lambda rng, size: rng.exponential(1, size) - 1,
    "lognormal": lambda rng, size: rng.lognormal(0, 1, size) - math.exp(0.5),
    "two values, ±1": lambda rng, size: rng.choice([-1.0, 1.0], size),
}


@pytest.mark.parametrize("row", range(len(NOISES)))
def test_the_page_says_what_other_noise_does(row: int) -> None:
    name, documented = table("What it assumes")[row]
    missed = ever_missed(NOISES[name](np.random.default_rng(4), (40_000, 12)), 0.0)
    assert f"{100 * missed:.1f}%" == documented


def test_the_page_says_the_price_of_peeking() -> None:
    for cells in table("The price of peeking"):
        n = int(cells[0])
        g = prior_variance(0.05, n)
        values = [stats.t.isf(0.025, n - 1), critical_t(n, g, 0.05), critical_t(n, prior_variance(0.05, 6), 0.05)]
        shown = [f"{value:.2f}" if math.isfinite(value) else "∞" for value in values]
        assert cells[1:] == [shown[0], f"{g:.2f}", shown[1], shown[2]]


numbers = st.lists(st.integers(-5000, 5000).map(lambda thousandths: thousandths / 1000), min_size=1, max_size=9)


@settings(deadline=None, max_examples=150)
@given(numbers, st.floats(0.01, 100), st.floats(-50, 50))
def test_units_and_sign_do_not_matter(values: list[float], scale: float, shift: float) -> None:
    d = np.array(values)
    course, scaled, flipped = (sequential_test(x, g=2.0, alpha=0.05) for x in (d, d * scale, -d))
    assert scaled.p == pytest.approx(course.p, rel=1e-6)
    assert flipped.p == pytest.approx(course.p)
    assert scaled.low == pytest.approx(scale * course.low, rel=1e-6, abs=1e-9)
    assert flipped.low == pytest.approx(-course.high)
    assert (np.diff(course.p) <= 0).all()
    moved = sequential_test(d + shift, g=2.0, alpha=0.05)
    assert moved.low == pytest.approx(course.low + shift, rel=1e-6, abs=1e-6)


def test_experiments_side_by_side_are_each_on_its_own() -> None:
    d = np.random.default_rng(0).normal(0.3, 1, (5, 4, 7))
    together, alone = sequential_test(d, g=2.0, alpha=0.05), sequential_test(d[3, 2], g=2.0, alpha=0.05)
    for name in ("mean", "sd", "p", "side", "low", "high"):
        assert getattr(together, name)[3, 2] == pytest.approx(getattr(alone, name))
