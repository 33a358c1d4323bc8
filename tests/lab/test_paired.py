"""Paired differences looked at once: equal to SciPy's tests, and to examples by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gptlab.errors import GptlabError
from gptlab.lab.stats.paired import effect_size, paired_summary
from gptlab.lab.stats.sequential import critical_t, sequential_test


def test_an_example_by_hand() -> None:
    # Differences -1, -2, -3, -2: sum -8, mean -2, deviations 1, 0, -1, 0, so squares 2, variance 2/3.
    d = [-1.0, -2.0, -3.0, -2.0]
    found = paired_summary(d)
    assert found.mean == -2
    assert found.sd == pytest.approx(math.sqrt(2 / 3))
    assert found.standard_error == pytest.approx(math.sqrt(2 / 3) / 2)  # sqrt(1/6)
    assert found.t == pytest.approx(-math.sqrt(24))  # -2 / sqrt(1/6)
    # All four have one sign: of 16 flips two are as far from 0.
    assert found.permutation_p == pytest.approx(2 / 16)
    # t at 0.975 with three degrees of freedom is 3.182446 in every table.
    assert found.t_interval == pytest.approx((-2 - 3.182446 / math.sqrt(6), -2 + 3.182446 / math.sqrt(6)), abs=1e-6)
    # E with g = 1. n = 2: r = 3, t^2/nu = 9, E = (10 / 4)^1 / sqrt(3) = 1.4434.
    # n = 3: r = 4, t^2/nu = 12/2 = 6, E = (7 / 2.5)^1.5 / 2 = 2.3426.
    # n = 4: r = 5, t^2/nu = 24/3 = 8, E = (9 / 2.6)^2 / sqrt(5) = 5.3586.
    course = sequential_test(d, g=1.0, alpha=0.05)
    assert 1 / course.p == pytest.approx([1, 1.4434, 2.3426, 5.3586], abs=1e-4)
    # t* at g = 4, alpha = 0.05, n = 4: r = 17, k = (17 * 400)^(1/4) = 9.0808, t*^2 = 3 * 8.0808 * 17 / 7.9192 = 52.041.
    assert critical_t(4, 4.0, 0.05) == pytest.approx(math.sqrt(52.041), abs=1e-4)
    low, high = (
        float(end[-1])
        for end in (sequential_test(d, g=4.0, alpha=0.05).low, sequential_test(d, g=4.0, alpha=0.05).high)
    )
    assert (low, high) == pytest.approx((-2 - 7.2140 / math.sqrt(6), -2 + 7.2140 / math.sqrt(6)), abs=1e-4)


def test_the_summary_is_scipys() -> None:
    rng = np.random.default_rng(3)
    arm, baseline = rng.normal(3.2, 0.05, 7), rng.normal(3.25, 0.05, 7)
    found = paired_summary(arm - baseline, confidence=0.9)
    expected = stats.ttest_rel(arm, baseline)
    assert (found.t, found.t_p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.t_interval == pytest.approx(tuple(expected.confidence_interval(0.9)))
    bca = stats.bootstrap(
        (arm - baseline,), np.mean, confidence_level=0.9, method="BCa", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.bootstrap == pytest.approx((bca.low, bca.high))


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_the_permutation_p_counts_every_flip(n: int) -> None:
    d = np.random.default_rng(n).normal(0.8, 1, n)
    means = np.array([np.mean(d * signs) for signs in itertools.product([1, -1], repeat=n)])
    expected = np.mean(np.abs(means) >= abs(d.mean()) - 1e-12)
    assert paired_summary(d).permutation_p == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_a_summary_says_what_it_cannot_know() -> None:
    one, two, equal = paired_summary([0.3]), paired_summary([0.3, 0.4]), paired_summary([0.1 + 0.2, 0.3, 0.3])
    assert (one.mean, one.sd, one.t_interval) == (0.3, None, None)
    assert two.bootstrap is None
    assert two.t_interval is not None
    assert (equal.sd, equal.t, equal.t_p, equal.bootstrap, equal.permutation_p) == (0.0, None, None, None, None)
    with pytest.raises(GptlabError, match="run a seed first"):
        paired_summary([])
    with pytest.raises(GptlabError, match="value 2 is nan"):
        paired_summary([0.1, math.nan])


def test_effect_sizes() -> None:
    # Baseline 2, 3, 4: mean 3, sd 1. Arm 1, 3, 2: mean 2, variance 1. Differences -1, 0, -2: mean -1, variance 1.
    found = effect_size([1.0, 3.0, 2.0], [2.0, 3.0, 4.0])
    assert (found.raw, found.noise_units, found.standardized) == pytest.approx((-1, -1, -1))
    assert found.percent == pytest.approx(-100 / 3)
    assert found.correlation == pytest.approx(0.5)  # covariance 1/2
    assert found.pairing_gain == pytest.approx(2.0)  # (1 + 1) / 1 = 1 / (1 - 0.5)
    same = effect_size([1.0, 2.0], [1.0, 2.0])
    assert (same.raw, same.standardized, same.pairing_gain) == (0, None, None)
    assert effect_size([1.0], [0.0]).percent is None
    with pytest.raises(GptlabError, match="2 values of the arm do not pair with 1"):
        effect_size([1.0, 2.0], [1.0])
