"""Means of numbers that come of prompts crossed with seeds, and how far they would move with others of both.

Every seed answers every prompt, so a number y_ps shares its prompt's luck with all seeds and its seed's luck with all
prompts: y_ps = μ + a_p + b_s + e_ps. Numbers that share luck are no independent sample. What is used is the analysis of
variance of two crossed random effects, because it is unbiased for as few seeds as are usual here (2 to 5), where
cluster-robust sums, which divide by the number of clusters, are too small: with mean squares MS of prompts, seeds and
the rest, and N numbers in all,

    Var(mean) = (MS_prompts + max(0, MS_seeds - MS_rest)) / N,

with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2). With one seed it is the variance of the prompts'
means. Where all numbers are there it is the two-way clustered variance of Cameron, Gelbach and Miller (2011, Journal of
Business & Economic Statistics 29) with unbiased parts. Some may be missing (NaN).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gptlab.errors import GptlabError
from gptlab.evals.intervals import score_interval
from gptlab.lab.stats.paired import Array


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval (or of whatever confidence was asked for), over other prompts and other seeds;
    `low` and `high` are None where one prompt was all."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CrossedMean:
    """The mean of numbers (P, S), prompts by seeds.

    Attributes:
        mean: of all that are there.
        variance: of that mean; None for a single prompt.
        freedom: degrees of freedom of the variance.
        prompts, seeds: how many of each have a number.
    """

    mean: float
    variance: float | None
    freedom: float
    prompts: int
    seeds: int


def crossed_mean(values_PS: ArrayLike) -> CrossedMean:
    """The mean of numbers of prompts (rows) by seeds (columns), with its variance (see the module's text).

    Raises GptlabError where there are none, or one is infinite.
    """
    y = np.asarray(values_PS, dtype=np.float64)
    if y.ndim != 2 or np.isinf(y).any() or np.isnan(y).all():
        raise GptlabError(f"means over prompts and seeds need finite numbers, prompts by seeds, got shape {y.shape}")
    y = y[~np.isnan(y).all(axis=1)][:, ~np.isnan(y).all(axis=0)]
    prompts, seeds = y.shape
    there = ~np.isnan(y)
    count, mean = int(there.sum()), float(y[there].mean())
    if prompts < 2:
        return CrossedMean(mean, None, 0.0, prompts, seeds)
    rows = _mean_square(y, there, mean, axis=1)
    variance, freedom = rows / count, float(prompts - 1)
    left = count - prompts - seeds + 1
    if seeds > 1 and left > 0:
        columns, rest = _mean_square(y, there, mean, axis=0), _rest(y, there) / left
        if columns > rest:
            spread = rows + columns - rest
            parts = rows**2 / (prompts - 1) + columns**2 / (seeds - 1) + rest**2 / left
            variance, freedom = spread / count, max(1.0, spread**2 / parts)
    return CrossedMean(mean, variance, freedom, prompts, seeds)


def _mean_square(y: Array, there: np.ndarray, mean: float, *, axis: int) -> float:
    """Between the groups that are left when `axis` is summed over."""
    sums = np.where(there, y - mean, 0.0).sum(axis=axis)
    groups = len(sums)
    return float((sums**2 / there.sum(axis=axis)).sum() / (groups - 1))


def _rest(y: Array, there: np.ndarray) -> float:
    """The sum of squares that rows and columns together leave, by least squares where numbers are missing."""
    if there.all():
        rest = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0, keepdims=True) + y.mean()
        return float((rest**2).sum())
    row, column = np.nonzero(there)
    design = np.concatenate([np.eye(y.shape[0])[row], np.eye(y.shape[1])[column]], axis=1)
    fitted = design @ np.linalg.lstsq(design, y[there], rcond=None)[0]
    return float(((y[there] - fitted) ** 2).sum())


def quantile(freedom: float, confidence: float) -> float:
    """Of Student's t: what a mean ± so many standard errors covers with `confidence`."""
    from scipy import stats

    return float(stats.t.ppf(0.5 + confidence / 2, freedom))


def mean_estimate(values_PS: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """The mean of numbers of prompts by seeds, with its t interval. Raises as `crossed_mean`."""
    found = crossed_mean(values_PS)
    if found.variance is None:
        return Estimate(found.mean)
    reach = quantile(found.freedom, confidence) * math.sqrt(found.variance)
    return Estimate(found.mean, found.mean - reach, found.mean + reach)


def share_estimate(values_PS: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """The mean of numbers from 0 to 1, such as wins with ties as halves, with an interval that stays between 0 and 1.

    Wilson's interval (1927, Journal of the American Statistical Association 22), for as many tosses of a coin as would
    have the variance that is seen, p (1 - p) / Var(mean), and with Student's t for the normal. Where all numbers are
    equal they show no noise to measure by: then each prompt counts as one toss. Raises as `crossed_mean`.
    """
    found = crossed_mean(values_PS)
    p = found.mean
    if found.variance is None:
        return Estimate(p)
    coin = p * (1 - p)
    tosses = coin / found.variance if found.variance > 1e-12 * max(coin, 1e-12) and coin > 0 else float(found.prompts)
    return Estimate(p, *score_interval(p, tosses, quantile(found.freedom, confidence)))
