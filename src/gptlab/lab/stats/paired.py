"""Paired differences of a fixed number of runs, looked at once: means, tests, intervals, effect sizes.

d_i = metric(arm, seed i) - metric(baseline, seed i), in the order of the seeds. The tests are SciPy's; for evidence
that may be looked at after every pair see `sequential`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError
from gptlab.evals.intervals import Interval as Interval

Array = NDArray[np.float64]

EQUAL = 1e-9
"""Differences whose standard deviation is below this share of their size are equal but for floating-point rounding."""

_FLIPS = 2**16
"""Sign flips of the permutation test: all of them up to 16 pairs, so many random ones beyond."""


@dataclass(frozen=True)
class PairedSummary:
    """Paired differences, looked at once.

    Everything but `n` and `mean` is None for one pair, and for differences that are all equal (`sd` is 0 then): they
    show no noise to measure by. `bootstrap` is None for two pairs too, whose resamples have only three means.

    Attributes:
        n: pairs.
        mean, sd, standard_error: of the differences; `sd` with n - 1.
        t: the t statistic, mean / standard_error.
        t_interval: for the mean, of the confidence asked for.
        t_p: two-sided p-value of the t test.
        bootstrap: the BCa bootstrap interval of the mean, same confidence. It is too narrow below some 10 pairs.
        permutation_p: two-sided p-value over all 2^n flips of the differences' signs (a sample of them from n = 17). It
            is never below 2^(1 - n), so five pairs cannot reach 0.05.
    """

    n: int
    mean: float
    sd: float | None = None
    standard_error: float | None = None
    t: float | None = None
    t_interval: Interval | None = None
    t_p: float | None = None
    bootstrap: Interval | None = None
    permutation_p: float | None = None


def paired_summary(
    differences: ArrayLike, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> PairedSummary:
    """What a fixed number of paired differences says, with SciPy's tests.

    These intervals and p-values hold for one look at a number of pairs chosen beforehand, not for looking after every
    seed: that is `sequential_test`. `seed` is that of the bootstrap (and of the sign flips from 17 pairs on).

    Raises GptlabError where there are no differences, or one is not finite.
    """
    from scipy import stats

    d = finite_sample(differences)
    mean = float(d.mean())
    if len(d) < 2:
        return PairedSummary(len(d), mean)
    if (sd := _sd(d)) is None:
        return PairedSummary(len(d), mean, sd=0.0)
    test = stats.ttest_1samp(d, 0.0)
    interval = test.confidence_interval(confidence)
    return PairedSummary(
        n=len(d),
        mean=mean,
        sd=sd,
        standard_error=sd / math.sqrt(len(d)),
        t=float(test.statistic),
        t_interval=Interval(float(interval.low), float(interval.high)),
        t_p=float(test.pvalue),
        bootstrap=_bca(d, confidence, resamples, seed) if len(d) > 2 else None,
        permutation_p=_sign_flip_p(d, seed),
    )


def _bca(d: Array, confidence: float, resamples: int, seed: int) -> Interval:
    """The bias-corrected and accelerated bootstrap interval of the mean (Efron 1987, "Better bootstrap intervals")."""
    from scipy import stats

    found = stats.bootstrap(
        (d,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _sign_flip_p(d: Array, seed: int) -> float:
    """Fisher's test: where the arm is the baseline, each difference is as likely with the other sign."""
    from scipy import stats

    found = stats.permutation_test(
        (d,),
        np.mean,
        permutation_type="samples",
        n_resamples=_FLIPS,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


@dataclass(frozen=True)
class EffectSize:
    """A difference in units that can be compared; None where a unit is 0 or needs a second pair.

    Attributes:
        raw: mean difference, arm - baseline, in the metric's units.
        percent: of the size of the baseline's mean.
        noise_units: in standard deviations of the baseline over seeds, the noise that a single run is read through.
        standardized: in standard deviations of the paired differences (Cohen's d_z).
        correlation: of arm and baseline over seeds, what they share by seeing the same data from the same weights.
        pairing_gain: (variance of the arm + variance of the baseline) / variance of the differences. As many times the
            seeds would be needed without pairing; below 1 pairing did harm.
    """

    raw: float
    percent: float | None
    noise_units: float | None
    standardized: float | None
    correlation: float | None
    pairing_gain: float | None


def effect_size(arm: ArrayLike, baseline: ArrayLike) -> EffectSize:
    """How large the difference is between the metric of an arm and of its baseline, seed by seed.

    Raises GptlabError where they are not as many, none, or not finite.
    """
    a, b = finite_sample(arm), finite_sample(baseline)
    if len(a) != len(b):
        raise GptlabError(
            f"{len(a)} values of the arm do not pair with {len(b)} of the baseline; give one of each a seed"
        )
    raw, level = float((a - b).mean()), float(abs(b.mean()))
    sd_a, sd_b, sd_d = _sd(a), _sd(b), _sd(a - b)
    return EffectSize(
        raw=raw,
        percent=100 * raw / level if level else None,
        noise_units=raw / sd_b if sd_b else None,
        standardized=raw / sd_d if sd_d else None,
        correlation=float(np.corrcoef(a, b)[0, 1]) if sd_a and sd_b else None,
        pairing_gain=((sd_a or 0.0) ** 2 + (sd_b or 0.0) ** 2) / sd_d**2 if sd_d else None,
    )


def _sd(values: Array) -> float | None:
    """The standard deviation with n - 1; None for one value, and for values that are equal but for rounding."""
    if len(values) < 2:
        return None
    sd = float(values.std(ddof=1))
    return sd if sd > EQUAL * np.abs(values).max() else None


def finite_sample(values: ArrayLike, what: str = "") -> Array:
    """A row of numbers. Raises GptlabError for none, and for the first that is not finite."""
    row = np.asarray(values, dtype=np.float64)
    of = f" of {what}" if what else ""
    if row.ndim != 1 or not len(row):
        raise GptlabError(f"statistics{of} need a row of one number or more, got shape {row.shape}; run a seed first")
    if len(bad := np.flatnonzero(~np.isfinite(row))):
        raise GptlabError(
            f"value {bad[0] + 1}{of} is {row[bad[0]]}, not a number to compute with; a diverged run has no difference: "
            "repair the arm, or leave that seed out for all arms and say so"
        )
    return row
