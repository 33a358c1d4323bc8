"""The statistics of an experiment: is an arm better than its baseline, and is that still sure after looking every day?

Everything is about paired differences d_i = metric(arm, seed i) - metric(baseline, seed i), in the order of the seeds.
The model behind every guarantee: d_i are independent draws of one normal distribution, whose mean mu is the effect and
whose standard deviation sigma nobody knows.

Three layers:

- a fixed number of pairs, looked at once: `paired_summary`, `effect_size` (SciPy's t and permutation tests, BCa);
- evidence that may be looked at after every pair: `follow` gives the e-process of the t statistic, its p-value and the
  confidence sequence that is its inversion; `critical_t` and `prior_variance` are their design;
- a verdict: `Rule` states it before any run, `decide` applies it to all arms together, `seeds_to_settle` looks ahead.

docs/statistics.md explains it with tables, docs/decisions/0017-anytime-valid-t.md why it is this test.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError

Array = NDArray[np.float64]

_EQUAL = 1e-9
"""Differences whose standard deviation is below this share of their size are equal but for floating-point rounding."""

_FLIPS = 2**16
"""Sign flips of the permutation test: all of them up to 16 pairs, so many random ones beyond."""


class Interval(NamedTuple):
    """From `low` to `high`, in the metric's units; infinite where nothing is known yet."""

    low: float
    high: float


# ---------------------------------------------------------------- a fixed number of pairs


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
    seed: that is `follow`. `seed` is that of the bootstrap (and of the sign flips from 17 pairs on).

    Raises GptlabError where there are no differences, or one is not finite.
    """
    from scipy import stats

    d = _finite(differences)
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
    a, b = _finite(arm), _finite(baseline)
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
    return sd if sd > _EQUAL * np.abs(values).max() else None


def _finite(values: ArrayLike, what: str = "") -> Array:
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


# ---------------------------------------------------------------- evidence at any time


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

    _check_alpha(alpha)
    if seeds < 2:
        raise GptlabError(f"{seeds} planned seeds show no noise; plan 2 or more (3 to 12 are usual)")
    # t* is finite where r > alpha^(-2/(n - 1)), and falls and rises once above it.
    least = 2 / (seeds - 1) * math.log(1 / alpha)

    def width(above: float) -> float:
        return float(critical_t(seeds, math.expm1(least + above) / seeds, alpha))

    best = minimize_scalar(width, bounds=(1e-6, 30.0), method="bounded", options={"xatol": 1e-9})
    return math.expm1(least + float(best.x)) / seeds


@dataclass(frozen=True)
class Course:
    """What paired differences have shown after each pair. The last axis of every array is n = 1 … N.

    Attributes:
        n: pairs.
        mean, sd: of the first n differences (sd 0 for one).
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

    def last(self) -> Course:
        """After all pairs; arrays without their last axis."""
        return Course(
            self.n[..., -1],
            self.mean[..., -1],
            self.sd[..., -1],
            self.constant[..., -1],
            self.p[..., -1],
            self.side[..., -1],
            self.low[..., -1],
            self.high[..., -1],
        )


def follow(differences: ArrayLike, *, g: float, alpha: float) -> Course:
    """Evidence after every pair, valid however often it is looked at.

    `differences`: (..., N), N >= 1; leading axes are separate experiments. `g`: the prior variance (`prior_variance`).

    Where mu = 0, the probability that `p` is ever <= a is at most a, for every a (Ville's inequality: a nonnegative
    martingale of mean 1 ever reaches 1/a with probability at most a). Whatever mu and sigma are, the probability that
    the sequence ever leaves mu out is at most `alpha`; so is that of its running intersection.

    Differences that are all equal show no noise. Zeros are no evidence against zero; other equal numbers have
    probability 0 under the model and come from something else (an accuracy counted in few steps, seeds that change
    nothing). E is 1 and the sequence the whole line until a difference differs, which can only make claims rarer.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = np.arange(1.0, d.shape[-1] + 1)
    shifted = d - d[..., :1]  # so that sums of squares keep their digits where the mean is large
    total = shifted.cumsum(-1)
    squares = np.maximum(np.square(shifted).cumsum(-1) - total**2 / n, 0.0)
    mean = d[..., :1] + total / n
    constant = squares <= _EQUAL**2 * (squares + n * mean**2)
    sd = np.sqrt(np.where(constant, 0.0, squares) / np.maximum(n - 1, 1))
    t = np.sqrt(n) * mean / np.where(constant, 1.0, sd)
    log_e = np.where(constant, 0.0, log_e_value(t, np.maximum(n, 2), g))
    reach = np.where(constant, np.inf, critical_t(n, g, alpha) * np.where(constant, 1.0, sd) / np.sqrt(n))
    strongest = np.maximum.accumulate(np.maximum(log_e, 0.0), axis=-1)
    return Course(
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


def holm(p: ArrayLike) -> Array:
    """p-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6), in the order given.

    The smallest of m times m, the next times m - 1, and so on, never below the one before, at most 1. Rejecting those
    <= alpha errs anywhere with probability at most alpha, however the tests depend on one another; for anytime
    p-values also at whatever time.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(values) else steps
    return adjusted


# ---------------------------------------------------------------- verdicts


class Verdict(enum.Enum):
    """What an experiment says of an arm."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference that matters"
    INCONCLUSIVE = "inconclusive"


VERDICTS = tuple(Verdict)
"""The verdict of each code that `judge` returns."""


@dataclass(frozen=True)
class Rule:
    """The decision rule of an experiment, stated before any run.

    Attributes:
        alpha: the share of experiments in which an error is accepted, over all arms together.
        smallest_effect: the smallest difference that matters, in the metric's units.
        g: the prior variance of the standardized effect (see `prior_variance`).
        lower_is_better: true for losses, false for accuracies.
        minimum: pairs before any verdict.
    """

    alpha: float
    smallest_effect: float
    g: float
    lower_is_better: bool = True
    minimum: int = 3

    def __post_init__(self) -> None:
        """Raises GptlabError for a number that cannot be a rule."""
        _check_alpha(self.alpha)
        if not 0 < self.smallest_effect < math.inf:
            raise GptlabError(
                f"the smallest effect that matters is {self.smallest_effect}; give one above 0, in units of the metric"
            )
        if not 0 < self.g < math.inf:
            raise GptlabError(f"the prior variance g is {self.g}; give a number above 0, as prior_variance() does")
        if self.minimum < 2:
            raise GptlabError(f"a minimum of {self.minimum} seeds shows no noise; give 2 or more")

    @classmethod
    def planned(
        cls,
        *,
        seeds: int,
        smallest_effect: float,
        alpha: float = 0.05,
        lower_is_better: bool = True,
        minimum: int = 3,
        arms: int = 1,
    ) -> Rule:
        """The rule whose confidence sequences are narrowest after `seeds` pairs, for as many arms."""
        _check_alpha(alpha)
        if arms < 1:
            raise GptlabError(f"an experiment of {arms} arms decides nothing; give 1 or more beside the baseline")
        return cls(alpha, smallest_effect, prior_variance(alpha / arms, seeds), lower_is_better, minimum)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise GptlabError(f"alpha is {alpha}; give a probability of error between 0 and 1, such as 0.05")


def judge(course: Course, adjusted_p: ArrayLike, rule: Rule) -> NDArray[np.int8]:
    """The rule itself: the index in VERDICTS for every entry of a course, whose sequence is that of alpha / arms.

    `decide` and the simulation of gptlab.lab.stats.power both call this, so that power is that of this very rule.
    """
    delta = rule.smallest_effect
    ready = (course.n >= rule.minimum) & ~course.contradicted
    same = course.constant & (course.mean == 0)
    negligible = ready & (same | ((course.low > -delta) & (course.high < delta)))
    sided = (course.side != 0) & (course.side == np.sign(course.mean))
    differs = ready & sided & (np.asarray(adjusted_p) <= rule.alpha) & ~negligible
    improved = course.mean < 0 if rule.lower_is_better else course.mean > 0
    code = np.full(np.shape(differs), VERDICTS.index(Verdict.INCONCLUSIVE), dtype=np.int8)
    code[negligible] = VERDICTS.index(Verdict.NO_DIFFERENCE)
    code[differs & improved] = VERDICTS.index(Verdict.BETTER)
    code[differs & ~improved] = VERDICTS.index(Verdict.WORSE)
    return code


@dataclass(frozen=True)
class Decision:
    """The verdict on one arm, and what it rests on.

    Attributes:
        verdict: what is concluded.
        sentence: why, in plain words.
        n: pairs so far.
        mean: mean difference, arm - baseline, in the metric's units; None before the first pair.
        sd: of the differences; None before the second pair.
        interval: the confidence sequence at level 1 - alpha / arms. Those of all arms hold together, at all times, with
            confidence 1 - alpha. Empty (`low` > `high`) where `contradicted`.
        p: the anytime p-value, adjusted by Holm's method for the number of arms.
        contradicted: no mean fits what was seen at different times; the differences are not one normal sample.
        constant: all differences are equal.
    """

    verdict: Verdict
    sentence: str
    n: int
    mean: float | None
    sd: float | None
    interval: Interval
    p: float
    contradicted: bool
    constant: bool


def decide(differences: Mapping[str, ArrayLike], rule: Rule) -> dict[str, Decision]:
    """The verdict on every arm, after any number of seeds.

    `differences`: for each arm of the experiment its paired differences so far, in the order of the seeds. Name all
    arms from the beginning, with an empty row for those that have no pair yet: their number m sets the levels.

    In this order, for each arm:

    1. fewer pairs than `rule.minimum`, or a confidence sequence that contradicts itself: inconclusive;
    2. the sequence at level 1 - alpha/m lies inside ±smallest_effect: no difference that matters, also where it
       leaves out 0. So too where all differences are exactly 0, which says the arm trains the baseline's runs;
    3. the anytime p-value, adjusted by Holm's method, is <= alpha, and the mean has the sign that it had when evidence
       was strongest: better or worse. The effect may still be smaller than what matters; the sentence says so;
    4. inconclusive.

    What is guaranteed, where differences are normal, whatever their variances and however arms depend on one another
    (they share the baseline's runs), looked at any number of times and stopped for any reason:

    - the probability that any arm with mu = 0 is ever called better or worse is at most alpha (Ville, Holm);
    - the probability that any arm with |mu| >= smallest_effect is ever said not to matter is at most alpha (sequences
      at alpha/m, added up);
    - with one arm these exclude each other, and with the wrong sign included any error has probability at most alpha.
      With more, a wrong sign is bounded by alpha for claims whose sequence leaves out 0 (added up again); for those
      that only Holm's later steps allow, a proof exists for independent arms only (Shaffer 1980, The Annals of
      Statistics 8), and simulation stays far below alpha.

    Raises GptlabError where there are no arms or a difference is not finite.
    """
    if not differences:
        raise GptlabError("there are no arms to decide on; an experiment needs one beside its baseline")
    alpha = rule.alpha / len(differences)
    courses = {
        arm: follow(_finite(row, f"arm {arm!r}"), g=rule.g, alpha=alpha).last() if np.size(row) else None
        for arm, row in differences.items()
    }
    adjusted = holm([1.0 if course is None else float(course.p) for course in courses.values()])
    return {
        arm: _nothing_yet(rule) if course is None else _decision(course, float(p), rule, len(differences))
        for (arm, course), p in zip(courses.items(), adjusted, strict=True)
    }


def _nothing_yet(rule: Rule) -> Decision:
    sentence = f"inconclusive: no pair of runs yet, of at least {rule.minimum}."
    everything = Interval(-math.inf, math.inf)
    return Decision(Verdict.INCONCLUSIVE, sentence, 0, None, None, everything, 1.0, contradicted=False, constant=False)


def _decision(course: Course, p: float, rule: Rule, arms: int) -> Decision:
    verdict = VERDICTS[int(judge(course, p, rule))]
    return Decision(
        verdict=verdict,
        sentence=f"{verdict.value}: {_reason(verdict, course, rule, arms)}",
        n=int(course.n),
        mean=float(course.mean),
        sd=float(course.sd) if course.n > 1 else None,
        interval=Interval(float(course.low), float(course.high)),
        p=p,
        contradicted=bool(course.contradicted),
        constant=bool(course.constant and course.n > 1),
    )


def _reason(verdict: Verdict, course: Course, rule: Rule, arms: int) -> str:
    n, mean, delta = int(course.n), float(course.mean), rule.smallest_effect
    seeds = f"{n} seed{'s' * (n > 1)}"
    sure = f"{100 * (1 - rule.alpha):.4g}% confidence" + (f" for all {arms} arms together" if arms > 1 else "")
    if verdict in (Verdict.BETTER, Verdict.WORSE):
        return f"{_by(mean)} on average over {seeds}; {_size(course, delta, sure)}."
    if n < rule.minimum:
        return f"{n} of at least {rule.minimum} pairs of runs so far."
    if course.contradicted:
        return (
            f"what the first seeds and the later of {n} showed excludes each other, so the differences are not "
            "normal noise around one mean; look for an outlier, or for seeds run differently."
        )
    if course.constant and mean == 0:
        return f"all {n} differences are exactly 0: this arm trains the same runs as the baseline."
    if course.constant:
        return (
            f"all {n} differences are exactly {mean:+.3g}, which noise does not do; see whether seeds change anything."
        )
    between = f"between {float(course.low):+.3g} and {float(course.high):+.3g} with {sure}"
    if verdict is Verdict.NO_DIFFERENCE:
        return f"over {seeds} the difference is {between}, inside the ±{delta:.3g} that matters."
    if not (math.isfinite(course.low) and math.isfinite(course.high)):
        return f"{mean:+.3g} on average over {seeds}, too few to bound the difference with {sure}."
    return f"{mean:+.3g} on average over {seeds}; the difference may be anything {between}, and ±{delta:.3g} matters."


def _by(difference: float) -> str:
    return f"{abs(difference):.3g} {'lower' if difference < 0 else 'higher'}"


def _size(course: Course, delta: float, sure: str) -> str:
    """What is known of the size of a difference whose sign is known."""
    near, far = sorted((float(course.low), float(course.high)), key=abs)
    if course.low <= 0 <= course.high:
        return f"the sign is sure, the size ({float(course.low):+.3g} to {float(course.high):+.3g}) is not yet"
    more = "" if abs(near) >= delta else f", perhaps less than the {delta:.3g} that matters"
    return f"with {sure} {abs(near):.3g} to {_by(far)}{more}"


def seeds_to_settle(differences: ArrayLike, rule: Rule, *, arms: int = 1, cap: int = 64) -> int | None:
    """How many more seeds would bring a verdict on an arm if its mean and standard deviation stayed as they are.

    0 where there is one. None where `cap` more would not do, or nothing can be said: fewer than two pairs, differences
    all equal, or a contradicted sequence. A guess with wide spread, not a promise: the mean of few seeds is itself
    noisy. With several arms the first step of Holm's method is assumed, which later steps can only ease.

    Raises GptlabError where a difference is not finite.
    """
    if np.size(differences) == 0:
        return None
    now = follow(_finite(differences), g=rule.g, alpha=rule.alpha / arms).last()
    inconclusive = VERDICTS.index(Verdict.INCONCLUSIVE)
    if judge(now, min(1.0, arms * float(now.p)), rule) != inconclusive:
        return 0
    if now.constant or now.contradicted:
        return None
    ahead = _ahead(now, rule, arms, cap)
    decided = judge(ahead, np.minimum(1.0, arms * ahead.p), rule) != inconclusive
    return int(np.argmax(decided)) + 1 if decided.any() else None


def _ahead(now: Course, rule: Rule, arms: int, cap: int) -> Course:
    """The course of the next `cap` pairs, were they to leave mean and standard deviation alone."""
    n = now.n + np.arange(1.0, cap + 1)
    log_e = log_e_value(np.sqrt(n) * now.mean / now.sd, n, rule.g)
    reach = critical_t(n, rule.g, rule.alpha / arms) * now.sd / np.sqrt(n)
    p = np.minimum(now.p, np.exp(-np.maximum.accumulate(np.maximum(log_e, 0.0))))
    return Course(
        n=n,
        mean=np.full_like(n, now.mean),
        sd=np.full_like(n, now.sd),
        constant=np.zeros(cap, dtype=bool),
        p=p,
        side=np.where(p < now.p, np.sign(now.mean), now.side),
        low=np.maximum.accumulate(np.maximum(now.mean - reach, now.low)),
        high=np.minimum.accumulate(np.minimum(now.mean + reach, now.high)),
    )
