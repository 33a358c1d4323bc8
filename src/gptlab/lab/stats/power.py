"""How likely an experiment is to find an effect, before it is paid for.

`power` simulates the very rule that `decision.decide` applies (both call `judge`): pairs come one by one, the rule
is looked at after each, and the experiment stops at the first verdict. `fixed_power` is the textbook's test of
a fixed number of pairs looked at once, for comparison: what looking early costs is the gap between the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptlab.errors import GptlabError
from gptlab.lab.stats.decision import VERDICTS, Rule, Verdict, judge
from gptlab.lab.stats.paired import Array
from gptlab.lab.stats.sequential import sequential_test

PATHS = 20_000
"""Simulated experiments; the standard error of a probability is then at most 0.0036."""


@dataclass(frozen=True)
class Power:
    """What becomes of an experiment with a known true effect; all are shares of simulated experiments.

    Attributes:
        probability: that it ends in better or worse, on the side of the true effect (on either where that is 0).
        error: the standard error of `probability`, from the number of simulated experiments.
        wrong_side: that it ends in better or worse on the other side.
        no_difference: that it ends in "no difference that matters".
        inconclusive: that it comes to the maximum without a verdict.
        expected_seeds: the mean number of pairs used, stopping at the first verdict.
        found_by: `probability` within 1, 2, … maximum pairs.
    """

    probability: float
    error: float
    wrong_side: float
    no_difference: float
    inconclusive: float
    expected_seeds: float
    found_by: tuple[float, ...]


def power(
    effect: float, sd: float, rule: Rule, *, maximum: int, arms: int = 1, paths: int = PATHS, seed: int = 0
) -> Power:
    """The power of a rule for a true mean difference `effect` (arm - baseline) and noise `sd`.

    `sd` is the standard deviation of the *paired differences*, in the metric's units: sqrt(2 (1 - rho)) times that of
    single runs, with rho their correlation over seeds. `maximum`: pairs after which the experiment ends without a
    verdict. `arms`: how many are compared with the baseline; the arm is held to alpha / arms, the first step of Holm's
    method, so that the true power is this or more. Noise is normal. The same `seed` gives the same noise.

    Raises GptlabError for a standard deviation that is not positive, or a maximum below the rule's minimum.
    """
    return _outcome(effect, sd * _noise(sd, rule, maximum, paths, seed), rule, arms)


def minimum_detectable_effect(
    sd: float,
    rule: Rule,
    *,
    maximum: int,
    arms: int = 1,
    power: float = 0.8,
    paths: int = PATHS,
    seed: int = 0,
) -> float:
    """The smallest effect (its size, in the metric's units) that the rule finds with probability `power`.

    By bisection to a thousandth, on the same simulated noise for every effect. Arguments as for `power()`.

    Raises GptlabError as `power()` does, for a `power` outside (0, 1), and where no effect however large is found with
    that probability, because `maximum` is too few for the rule.
    """
    if not 0 < power < 1:
        raise GptlabError(f"a power of {power} cannot be planned; give a probability between 0 and 1, such as 0.8")
    noise = sd * _noise(sd, rule, maximum, paths, seed)
    low, high = 0.0, max(sd, rule.smallest_effect)
    while _outcome(high, noise, rule, arms).probability < power:
        low, high = high, 2 * high
        if high > 1e6 * max(sd, rule.smallest_effect):
            raise GptlabError(
                f"within {maximum} seeds this rule finds no effect with probability {power:g}, however large; "
                "allow more seeds, a larger alpha or fewer arms"
            )
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if _outcome(middle, noise, rule, arms).probability < power:
            low = middle
        else:
            high = middle
    return high


def _noise(sd: float, rule: Rule, maximum: int, paths: int, seed: int) -> Array:
    """Standard normal draws, (paths, maximum)."""
    _check_sd(sd)
    if maximum < rule.minimum:
        raise GptlabError(f"at most {maximum} seeds, but the rule wants {rule.minimum} before a verdict; allow more")
    return np.random.default_rng(seed).standard_normal((paths, maximum))


def _outcome(effect: float, noise: Array, rule: Rule, arms: int) -> Power:
    """Stop each path of `noise` + `effect` at its first verdict, and count."""
    step = rule.resolution
    differences = np.round((noise + effect) / step) * step if step else noise + effect
    test = sequential_test(differences, g=rule.g, alpha=rule.alpha / arms, resolution=step)
    codes = judge(test, np.minimum(1.0, arms * test.p), rule)
    decided = codes != VERDICTS.index(Verdict.INCONCLUSIVE)
    paths, maximum = codes.shape
    stop = np.where(decided.any(axis=1), decided.argmax(axis=1), maximum - 1)
    final = codes[np.arange(paths), stop]
    good, bad = VERDICTS.index(Verdict.BETTER), VERDICTS.index(Verdict.WORSE)
    right, wrong = (good, bad) if (effect < 0) == rule.lower_is_better else (bad, good)
    found = (final == right) | ((final == wrong) & (effect == 0))
    found_by = np.cumsum(np.bincount(stop[found], minlength=maximum)) / paths
    probability = float(found.mean())
    return Power(
        probability=probability,
        error=math.sqrt(probability * (1 - probability) / paths),
        wrong_side=float(((final == wrong) & ~found).mean()),
        no_difference=float((final == VERDICTS.index(Verdict.NO_DIFFERENCE)).mean()),
        inconclusive=float((final == VERDICTS.index(Verdict.INCONCLUSIVE)).mean()),
        expected_seeds=float(stop.mean()) + 1,
        found_by=tuple(float(share) for share in found_by),
    )


# ---------------------------------------------------------------- a fixed number of pairs


def fixed_power(effect: float, sd: float, *, seeds: int, alpha: float = 0.05) -> float:
    """The power of the two-sided paired t test of `seeds` pairs, looked at once.

    t^2 is then noncentral F with 1 and seeds - 1 degrees of freedom and noncentrality seeds (effect / sd)^2.

    Raises GptlabError for a standard deviation that is not positive, or fewer than 2 seeds.
    """
    from scipy import stats

    _check_sd(sd)
    if seeds < 2:
        raise GptlabError(f"a t test of {seeds} seeds has no power; plan 2 or more")
    bound = stats.t.isf(alpha / 2, seeds - 1)
    # Not sf(), which is wrong where the noncentrality is 0 (SciPy 1.17).
    return float(1 - stats.ncf.cdf(bound**2, 1, seeds - 1, seeds * (effect / sd) ** 2))


def fixed_minimum_detectable_effect(sd: float, *, seeds: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The effect (its size, in the metric's units) for which `fixed_power` is `power`.

    Raises GptlabError as `fixed_power` does, and for a power outside (alpha, 1).
    """
    from scipy.optimize import brentq

    if not alpha < power < 1:
        raise GptlabError(f"a power of {power} cannot be planned; give a probability between alpha = {alpha} and 1")
    high = sd
    while fixed_power(high, sd, seeds=seeds, alpha=alpha) < power:
        high *= 2
    return float(brentq(lambda effect: fixed_power(effect, sd, seeds=seeds, alpha=alpha) - power, 0.0, high))


def _check_sd(sd: float) -> None:
    if not 0 < sd < math.inf:
        raise GptlabError(
            f"the noise of paired differences is {sd}; give a standard deviation above 0, from a few pairs of runs"
        )
