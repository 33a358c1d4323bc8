"""Rank correlation of arms between sizes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gptlab.errors import GptlabError
from gptlab.lab.stats.rank import rank_correlation


@pytest.mark.parametrize("arms", [3, 4, 5])
def test_the_order_of_arms_has_exact_p_values(arms: int) -> None:
    rng = np.random.default_rng(arms)
    small = rng.normal(size=arms)
    large = small + rng.normal(0, 0.7, arms)
    found = rank_correlation(small, large)
    for name, function in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        observed = function(small, large).statistic
        every = np.array([function(small, order).statistic for order in itertools.permutations(large)])
        assert getattr(found, name) == pytest.approx(observed)
        # SciPy's two-sided p: twice the smaller tail.
        tails = [np.mean(every >= observed - 1e-9), np.mean(every <= observed + 1e-9)]
        assert getattr(found, f"{name}_p") == pytest.approx(min(1, 2 * min(tails)))


def test_three_arms_in_one_order_prove_little() -> None:
    found = rank_correlation([3.1, 3.2, 3.3], [2.9, 2.95, 3.2])
    assert (found.spearman, found.kendall) == pytest.approx((1, 1))
    assert (found.spearman_p, found.kendall_p) == pytest.approx((1 / 3, 1 / 3))
    assert rank_correlation([1.0, 2.0], [2.0, 1.0]).kendall_p == 1


def test_many_arms_and_ties() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=12).round(1)
    large = (small + rng.normal(0, 0.3, 12)).round(1)
    found = rank_correlation(small, large)
    assert found.kendall == pytest.approx(stats.kendalltau(small, large).statistic)
    assert found.kendall_p < 0.01
    assert found == rank_correlation(small, large)
    with pytest.raises(GptlabError, match="all arms are equal"):
        rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(GptlabError, match="two arms or more"):
        rank_correlation([1.0, math.nan], [1.0, 2.0])
