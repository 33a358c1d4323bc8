"""Verdicts: a rule stated before any run, applied to all arms together after any number of seeds.

`Rule` is the statement, `judge` the rule itself, `decide` applies it to what has been measured, and `seeds_to_verdict`
extrapolates. What it rests on is the anytime-valid t test of `sequential`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError
from gptlab.lab.stats.paired import Array, Interval, finite_sample
from gptlab.lab.stats.sequential import (
    SequentialTest,
    check_alpha,
    critical_t,
    log_e_value,
    prior_variance,
    sequential_test,
)


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
        resolution: the step in which the metric is counted; 0 for one that has none (`sequential_test`).
    """

    alpha: float
    smallest_effect: float
    g: float
    lower_is_better: bool = True
    minimum: int = 3
    resolution: float = 0.0

    def __post_init__(self) -> None:
        """Raises GptlabError for a number that cannot be a rule."""
        check_alpha(self.alpha)
        if not 0 < self.smallest_effect < math.inf:
            raise GptlabError(
                f"the smallest effect that matters is {self.smallest_effect}; give one above 0, in units of the metric"
            )
        if not 0 < self.g < math.inf:
            raise GptlabError(f"the prior variance g is {self.g}; give a number above 0, as prior_variance() does")
        if not 0 <= self.resolution < math.inf:
            raise GptlabError(f"the resolution is {self.resolution}; give the metric's step, 0 where it has none")
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
        resolution: float = 0.0,
    ) -> Rule:
        """The rule whose confidence sequences are narrowest after `seeds` pairs, for as many arms."""
        check_alpha(alpha)
        if arms < 1:
            raise GptlabError(f"an experiment of {arms} arms decides nothing; give 1 or more beside the baseline")
        return cls(alpha, smallest_effect, prior_variance(alpha / arms, seeds), lower_is_better, minimum, resolution)


def judge(test: SequentialTest, adjusted_p: ArrayLike, rule: Rule) -> NDArray[np.int8]:
    """The rule itself: the index in VERDICTS for every entry of a test, whose sequence is that of alpha / arms.

    `decide` and the simulation of gptlab.lab.stats.power both call this, so that power is that of this very rule.
    """
    delta = rule.smallest_effect
    ready = (test.n >= rule.minimum) & ~test.contradicted
    same = test.constant & (test.mean == 0)
    negligible = ready & (same | ((test.low > -delta) & (test.high < delta)))
    sided = (test.side != 0) & (test.side == np.sign(test.mean))
    differs = ready & sided & (np.asarray(adjusted_p) <= rule.alpha) & ~negligible
    improved = test.mean < 0 if rule.lower_is_better else test.mean > 0
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


def decide(differences: Mapping[str, ArrayLike], rule: Rule, *, distinct: Collection[str] = ()) -> dict[str, Decision]:
    """The verdict on every arm, after any number of seeds.

    `differences`: for each arm of the experiment its paired differences so far, in the order of the seeds. Name all
    arms from the beginning, with an empty row for those that have no pair yet: their number m sets the levels.
    `distinct`: arms whose runs are known to have come to other weights than the baseline's.

    In this order, for each arm:

    1. fewer pairs than `rule.minimum`, or a confidence sequence that contradicts itself: inconclusive;
    2. the sequence at level 1 - alpha/m lies inside ±smallest_effect: no difference that matters, also where it
       leaves out 0. So too where all differences are exactly 0, which says the arm trains the baseline's runs; but not
       where the arm is `distinct`: then the metric is too coarse to see a difference, and the verdict inconclusive;
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
    tests = {
        arm: _test(finite_sample(row, f"arm {arm!r}"), rule, alpha) if np.size(row) else None
        for arm, row in differences.items()
    }
    adjusted = holm([1.0 if test is None else float(test.p) for test in tests.values()])
    return {
        arm: _nothing_yet(rule) if test is None else _decision(test, float(p), rule, len(differences), arm in distinct)
        for (arm, test), p in zip(tests.items(), adjusted, strict=True)
    }


def _test(row: Array, rule: Rule, alpha: float) -> SequentialTest:
    return sequential_test(row, g=rule.g, alpha=alpha, resolution=rule.resolution).last()


def _nothing_yet(rule: Rule) -> Decision:
    sentence = f"inconclusive: no pair of runs yet, of at least {rule.minimum}."
    everything = Interval(-math.inf, math.inf)
    return Decision(Verdict.INCONCLUSIVE, sentence, 0, None, None, everything, 1.0, contradicted=False, constant=False)


def _decision(test: SequentialTest, p: float, rule: Rule, arms: int, distinct: bool) -> Decision:
    unseen = distinct and bool(test.constant and test.mean == 0)
    verdict = Verdict.INCONCLUSIVE if unseen else VERDICTS[int(judge(test, p, rule))]
    reason = _reason(verdict, test, rule, arms)
    if unseen and test.n >= rule.minimum:
        reason = (
            f"all {int(test.n)} differences are exactly 0 though the weights differ: the metric is too coarse to see a "
            "difference; choose a finer one."
        )
    return Decision(
        verdict=verdict,
        sentence=f"{verdict.value}: {reason}",
        n=int(test.n),
        mean=float(test.mean),
        sd=float(test.sd) if test.n > 1 else None,
        interval=Interval(float(test.low), float(test.high)),
        p=p,
        contradicted=bool(test.contradicted),
        constant=bool(test.constant and test.n > 1),
    )


def _reason(verdict: Verdict, test: SequentialTest, rule: Rule, arms: int) -> str:
    n, mean, delta = int(test.n), float(test.mean), rule.smallest_effect
    seeds = f"{n} seed{'s' * (n > 1)}"
    sure = f"{100 * (1 - rule.alpha):.4g}% confidence" + (f" for all {arms} arms together" if arms > 1 else "")
    if verdict in (Verdict.BETTER, Verdict.WORSE):
        return f"{_by(mean)} on average over {seeds}; {_size(test, delta, sure)}."
    if n < rule.minimum:
        return f"{n} of at least {rule.minimum} pairs of runs so far."
    if test.contradicted:
        return (
            f"what the first seeds and the later of {n} showed excludes each other, so the differences are not "
            "normal noise around one mean; look for an outlier, or for seeds run differently."
        )
    if test.constant and mean == 0:
        return f"all {n} differences are exactly 0: this arm trains the same runs as the baseline."
    if test.constant:
        return (
            f"all {n} differences are exactly {mean:+.3g}, which noise does not do; see whether seeds change anything."
        )
    between = f"between {float(test.low):+.3g} and {float(test.high):+.3g} with {sure}"
    if verdict is Verdict.NO_DIFFERENCE:
        return f"over {seeds} the difference is {between}, inside the ±{delta:.3g} that matters."
    if not (math.isfinite(test.low) and math.isfinite(test.high)):
        return f"{mean:+.3g} on average over {seeds}, too few to bound the difference with {sure}."
    return f"{mean:+.3g} on average over {seeds}; the difference may be anything {between}, and ±{delta:.3g} matters."


def _by(difference: float) -> str:
    return f"{abs(difference):.3g} {'lower' if difference < 0 else 'higher'}"


def _size(test: SequentialTest, delta: float, sure: str) -> str:
    """What is known of the size of a difference whose sign is known."""
    near, far = sorted((float(test.low), float(test.high)), key=abs)
    if test.low <= 0 <= test.high:
        return f"the sign is sure, the size ({float(test.low):+.3g} to {float(test.high):+.3g}) is not yet"
    more = "" if abs(near) >= delta else f", perhaps less than the {delta:.3g} that matters"
    return f"with {sure} {abs(near):.3g} to {_by(far)}{more}"


def seeds_to_verdict(differences: ArrayLike, rule: Rule, *, arms: int = 1, cap: int = 64) -> int | None:
    """How many more seeds would bring a verdict on an arm if its mean and standard deviation stayed as they are.

    0 where there is one. None where `cap` more would not do, or nothing can be said: fewer than two pairs, differences
    all equal, or a contradicted sequence. A guess with wide spread, not a promise: the mean of few seeds is itself
    noisy. With several arms the first step of Holm's method is assumed, which later steps can only ease.

    Raises GptlabError where a difference is not finite.
    """
    if np.size(differences) == 0:
        return None
    now = _test(finite_sample(differences), rule, rule.alpha / arms)
    inconclusive = VERDICTS.index(Verdict.INCONCLUSIVE)
    if judge(now, min(1.0, arms * float(now.p)), rule) != inconclusive:
        return 0
    if now.constant or now.contradicted:
        return None
    future = _extrapolate(now, rule, arms, cap)
    decided = judge(future, np.minimum(1.0, arms * future.p), rule) != inconclusive
    return int(np.argmax(decided)) + 1 if decided.any() else None


def _extrapolate(now: SequentialTest, rule: Rule, arms: int, cap: int) -> SequentialTest:
    """The test of the next `cap` pairs, were they to leave mean and standard deviation alone."""
    n = now.n + np.arange(1.0, cap + 1)
    log_e = log_e_value(np.sqrt(n) * now.mean / now.sd, n, rule.g)
    reach = critical_t(n, rule.g, rule.alpha / arms) * now.sd / np.sqrt(n)
    p = np.minimum(now.p, np.exp(-np.maximum.accumulate(np.maximum(log_e, 0.0))))
    return SequentialTest(
        n=n,
        mean=np.full_like(n, now.mean),
        sd=np.full_like(n, now.sd),
        constant=np.zeros(cap, dtype=bool),
        p=p,
        side=np.where(p < now.p, np.sign(now.mean), now.side),
        low=np.maximum.accumulate(np.maximum(now.mean - reach, now.low)),
        high=np.minimum.accumulate(np.minimum(now.mean + reach, now.high)),
    )
