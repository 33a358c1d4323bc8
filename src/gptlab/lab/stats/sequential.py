"""The anytime-valid t test: evidence about a mean difference that may be looked at after every pair.

The model: the paired differences d_i are independent draws of one normal distribution, whose mean mu is the effect and
whose standard deviation sigma is unknown. `sequential_test` gives the e-process of the t statistic, its p-value and the
confidence sequence that is its inversion; `critical_t` and `prior_variance` are their design.

docs/statistics.md explains it with tables, docs/decisions/0017-anytime-valid-t.md why it is this test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError
from gptlab.lab.stats.paired import EQUAL, Array


def log_e_value(t: ArrayLike, n: ArrayLike, g: float) -> Array:
    """log E_n of the t statistic `t` of `n` >= 2 pairs, with the prior mu / sigma ~ Normal(0, g) on the effect.

    E_n is the likelihood ratio of t, noncentral over the prior against central. With nu = n - 1 and r = 1 + n g,

        E_n = r^(-1/2) ((1 + t^2/nu) / (1 + t^2/(nu r)))^(n/2)

    (Gönen, Johnson, Lu and Westfall 2005, The American Statistician 59, eq. 4; Rouder et al. 2009, Psychonomic Bulletin
    & Review 16.) As t is the maximal invariant of the scale, E_n does not depend on sigma, and over n it is a
    nonnegative martingale of mean 1 where mu = 0, with E_1 = 1 (Pérez-Ortiz, Lardy, de Heide and Grünwald 2022,
    arXiv:2208.07610; Wang and Ramdas 2023, arXiv:2310.03722).
    """
    n = np.asarray(n, dtype=np.float64)
    r = 1 + n * g
    ratio = np.square(np.asarray(t, dtype=np.float64)) / (n - 1)
    return np.asarray(n / 2 * (np.log1p(ratio) - np.log1p(ratio / r)) - np.log(r) / 2)


def critical_t(n: ArrayLike, g: float, alpha: float) -> Array:
    """The t* at which E_n reaches 1/alpha; infinite where no t is that much evidence yet (always for n = 1).

    With r = 1 + n g and k = (r / alpha^2)^(1/n): t*^2 = (n - 1)(k - 1) r / (r - k), where k < r.
    """
    n = np.asarray(n, dtype=np.float64)
    r = 1 + n * g
    k = (r / alpha**2) ** (1 / n)
    finite = (k < r) & (n > 1)
    gap = np.where(finite, r - k, 1.0)
    return np.where(finite, np.sqrt(np.maximum(n - 1, 0) * (k - 1) * r / gap), np.inf)


def prior_variance(alpha: float, seeds: int) -> float:
    """The prior variance g with which the confidence sequence is narrowest at a planned number of seeds.

    It is part of the rule and chosen before the data: choosing it afterwards would void the guarantee. The guarantee
    holds for whatever number of seeds it comes to in the end; only the width is best near the planned one.

    Raises GptlabError for an alpha outside (0, 1) or fewer than 2 seeds.
    """
    from scipy.optimize import minimize_scalar

    check_alpha(alpha)
    if seeds < 2:
        raise GptlabError(f"{seeds} planned seeds show no noise; plan 2 or more (3 to 12 are usual)")
    # t* is finite where r > alpha^(-2/(n - 1)), and falls and rises once above it.
    least = 2 / (seeds - 1) * math.log(1 / alpha)

    def width(above: float) -> float:
        return float(critical_t(seeds, math.expm1(least + above) / seeds, alpha))

    best = minimize_scalar(width, bounds=(1e-6, 30.0), method="bounded", options={"xatol": 1e-9})
    return math.expm1(least + float(best.x)) / seeds


@dataclass(frozen=True)
class SequentialTest:
    """What paired differences have shown after each pair. The last axis of every array is n = 1 … N.

    Attributes:
        n: pairs.
        mean, sd: of the first n differences (sd 0 for one); `sd` with what the resolution adds to it.
        constant: whether the first n differences are all equal (but for rounding).
        p: the anytime p-value of "mu = 0": one over the largest E so far, at most 1.
        side: the sign of the mean where E was largest; 0 before there is evidence.
        low, high: the confidence sequence, intersected over what came before. `low` > `high` is an empty intersection.
    """

    n: Array
    mean: Array
    sd: Array
    constant: NDArray[np.bool_]
    p: Array
    side: Array
    low: Array
    high: Array

    @property
    def contradicted(self) -> NDArray[np.bool_]:
        """Whether no mean at all fits what was seen: then the noise is not what the model says."""
        return np.asarray(self.low > self.high)

    def last(self) -> SequentialTest:
        """After all pairs; arrays without their last axis."""
        return SequentialTest(
            self.n[..., -1],
            self.mean[..., -1],
            self.sd[..., -1],
            self.constant[..., -1],
            self.p[..., -1],
            self.side[..., -1],
            self.low[..., -1],
            self.high[..., -1],
        )


def sequential_test(differences: ArrayLike, *, g: float, alpha: float, resolution: float = 0.0) -> SequentialTest:
    """Evidence after every pair, valid however often it is looked at.

    `differences`: (..., N), N >= 1; leading axes are separate experiments. `g`: the prior variance (`prior_variance`).

    Where mu = 0, the probability that `p` is ever <= a is at most a, for every a (Ville's inequality: a nonnegative
    martingale of mean 1 ever reaches 1/a with probability at most a). Whatever mu and sigma are, the probability that
    the sequence ever leaves mu out is at most `alpha`; so is that of its running intersection.

    Differences that are all equal show no noise. Zeros are no evidence against zero; other equal numbers have
    probability 0 under the model and come from something else (an accuracy counted in few steps, seeds that change
    nothing). E is 1 and the sequence the whole line until a difference differs, which can only make claims rarer.

    `resolution`: the step h in which the differences are counted (1/n for an accuracy of n questions; 0: none). A
    number that jumps by h at once and seldom shows less noise in a few draws than it has, or none. Between two steps
    its variance is at most h²/4, that of a fair coin, which is added to the sample's: E gets smaller by it and the
    sequence wider, and equal differences say no more than their step allows.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = np.arange(1.0, d.shape[-1] + 1)
    shifted = d - d[..., :1]  # so that sums of squares keep their digits where the mean is large
    total = shifted.cumsum(-1)
    squares = np.maximum(np.square(shifted).cumsum(-1) - total**2 / n, 0.0)
    mean = d[..., :1] + total / n
    squares = squares + (n - 1) * resolution**2 / 4
    constant = squares <= EQUAL**2 * (squares + n * mean**2)
    sd = np.sqrt(np.where(constant, 0.0, squares) / np.maximum(n - 1, 1))
    t = np.sqrt(n) * mean / np.where(constant, 1.0, sd)
    log_e = np.where(constant, 0.0, log_e_value(t, np.maximum(n, 2), g))
    reach = np.where(constant, np.inf, critical_t(n, g, alpha) * np.where(constant, 1.0, sd) / np.sqrt(n))
    strongest = np.maximum.accumulate(np.maximum(log_e, 0.0), axis=-1)
    return SequentialTest(
        n=n,
        mean=mean,
        sd=sd,
        constant=constant,
        p=np.exp(-strongest),
        side=_side_of_strongest(log_e, strongest, mean),
        low=np.maximum.accumulate(mean - reach, axis=-1),
        high=np.minimum.accumulate(mean + reach, axis=-1),
    )


def _side_of_strongest(log_e: Array, strongest: Array, mean: Array) -> Array:
    """The sign of the mean at the prefix where E was largest so far, 0 where it never was above 1."""
    record = (log_e == strongest) & (strongest > 0)
    place = np.maximum.accumulate(np.where(record, np.arange(log_e.shape[-1]), -1), axis=-1)
    sign = np.take_along_axis(np.sign(mean), np.maximum(place, 0), axis=-1)
    return np.where(place < 0, 0.0, sign)


def check_alpha(alpha: float) -> None:
    """Raise GptlabError unless `alpha` is between 0 and 1."""
    if not 0 < alpha < 1:
        raise GptlabError(f"alpha is {alpha}; give a probability of error between 0 and 1, such as 0.05")
