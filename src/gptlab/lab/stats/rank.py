"""Rank correlation: whether arms keep their order from one model size to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError

Array = NDArray[np.float64]

_PAIRINGS = 50_000  # all orders of up to eight arms; so many random ones beyond


@dataclass(frozen=True)
class RankCorrelation:
    """How well the order of arms at one size tells that at another.

    Attributes:
        arms: how many.
        spearman, kendall: rho, and tau-b; 1 is the same order, -1 the reverse.
        spearman_p, kendall_p: two-sided permutation p-values: the share of all orders that agree (or disagree) as much.
            With three arms none is below 1/3, with four below 1/12.
    """

    arms: int
    spearman: float
    spearman_p: float
    kendall: float
    kendall_p: float


def rank_correlation(small: ArrayLike, large: ArrayLike, *, seed: int = 0) -> RankCorrelation:
    """Rank correlations of arms between two sizes; a metric of each arm at each, in the same order.

    The p-values are exact up to eight arms and from 50,000 random orders beyond (`seed`).

    Raises GptlabError for fewer than two arms, unequal numbers, values that are not finite, or all equal at a size.
    """
    from scipy import stats

    x, y = (np.asarray(values, dtype=np.float64) for values in (small, large))
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or not np.isfinite([x, y]).all():
        raise GptlabError(
            f"an order needs a number of each of two arms or more at both sizes, got {small!r}, {large!r}"
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise GptlabError("all arms are equal at one size, so they have no order there; take a finer metric")
    return RankCorrelation(
        arms=len(x),
        spearman=float(stats.spearmanr(x, y).statistic),
        spearman_p=_pairing_p(x, y, stats.rankdata, seed),
        kendall=float(stats.kendalltau(x, y).statistic),
        kendall_p=_pairing_p(x, y, _orders, seed),
    )


def _pairing_p(x: Array, y: Array, describe: Callable[..., Array], seed: int) -> float:
    """The share of pairings of x with y whose descriptions have as large a product; the correlations follow it."""
    from scipy import stats

    fixed = describe(y, axis=-1)
    fixed = fixed - fixed.mean()

    def product(sample: Array, axis: int) -> Array:
        return np.asarray((describe(sample, axis=axis) * fixed).sum(axis=axis))

    found = stats.permutation_test(
        (x,),
        product,
        permutation_type="pairings",
        n_resamples=_PAIRINGS,
        batch=5000,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _orders(values: Array, axis: int = -1) -> Array:
    """Of every two values along the last axis which is the larger: -1, 0 or 1, all pairs in one axis."""
    signs = np.sign(values[..., :, None] - values[..., None, :])
    return np.asarray(signs.reshape(*values.shape[:-1], -1))
