"""Loss against compute: L(C) = E + A C^-b through a baseline's losses, and what a difference is worth in compute.

`fit_power_law` fits runs at several budgets; `compute_equivalent` reads a difference of losses as a share of compute on
that curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError
from gptlab.lab.stats.loss_fit import (
    HUBER,
    Array,
    Estimate,
    FitProblem,
    Resampled,
    Solution,
    positive,
    prediction_interval,
    quantile_interval,
)

_EFFICIENT = 1.345  # Huber's constant: 95% of least squares' efficiency where the noise is normal
_FLOOR_BUDGETS = 4  # distinct budgets from which the irreducible loss E can be told from the slope


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = E + A C^-b, in nats a token and FLOPs (or whatever unit of compute it was fitted in)."""

    E: float
    A: float
    b: float

    def loss(self, compute: ArrayLike) -> Array:
        """L(C)."""
        return np.asarray(self.E + self.A * np.asarray(compute, dtype=np.float64) ** -self.b)

    def compute(self, loss: ArrayLike) -> Array:
        """C(L) = (A / (L - E))^(1/b), infinite at and below E."""
        above = np.asarray(loss, dtype=np.float64) - self.E
        return np.where(above > 0, (self.A / np.where(above > 0, above, 1.0)) ** (1 / self.b), np.inf)


@dataclass(frozen=True)
class PowerLawFit:
    """A power law through runs, and how sure it is.

    Attributes:
        law: the fit to all runs.
        draws: the fits to resampled runs.
        residuals: log residuals of the runs, scaled by sqrt(n / (n - parameters)): the noise of a single run.
        budgets: the smallest and the largest compute that was fitted.
        resampled: "runs" within their budgets, where every budget has two or more; else "residuals" of the curve.
        degrees_of_freedom: degrees of freedom that the noise is known from.
    """

    law: PowerLaw
    draws: tuple[PowerLaw, ...]
    residuals: Array
    budgets: tuple[float, float]
    resampled: Resampled
    degrees_of_freedom: int

    def predict(self, compute: float, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
        """The loss of one new run, with the uncertainty of the curve and the noise of a run."""
        draws = np.array([law.loss(compute) for law in self.draws])
        return prediction_interval(
            float(self.law.loss(compute)), draws, self.residuals, self.degrees_of_freedom, confidence, seed
        )


def fit_power_law(
    compute: ArrayLike,
    loss: ArrayLike,
    *,
    floor: bool | None = None,
    delta: float | None = None,
    resamples: int = 400,
    seed: int = 0,
) -> PowerLawFit:
    """Fit L(C) = E + A C^-b to runs; several runs of one budget are its seeds.

    `floor`: whether to fit E; by default from four distinct budgets on, below E is 0. `delta`: Huber's threshold in
    log L, by default 1.345 standard deviations between runs of one budget, and at least 1e-3.

    The bootstrap resamples runs within their budgets, with their distances to the budget's mean widened by
    sqrt(k / (k - 1)) for k runs, because the spread of few runs is too small on average. It does not see that a
    power law may be the wrong curve. Where a budget has a single run, residuals of the curve are resampled instead.

    Raises GptlabError for numbers that are not positive, fewer than two budgets (four with a floor), as few runs as
    numbers to fit where residuals must serve, and losses that do not fall with compute.
    """
    c, losses = positive(compute, "compute"), positive(loss, "loss")
    if len(c) != len(losses):
        raise GptlabError(f"{len(c)} budgets do not go with {len(losses)} losses; give one loss a budget")
    budgets, group = np.unique(c, return_inverse=True)
    floor = len(budgets) >= _FLOOR_BUDGETS if floor is None else floor
    need = _FLOOR_BUDGETS if floor else 2
    if len(budgets) < need:
        raise GptlabError(
            f"{len(budgets)} distinct budgets do not show a power law{' with a floor' * floor}; train {need} or more"
        )
    if delta is None:
        delta = max(_EFFICIENT * _pooled_sd(np.log(losses), group), HUBER)
    problem = FitProblem.of(c[:, None], losses, floor=floor, delta=delta)
    fit = problem.solve()
    if not problem.decreases(fit):
        raise GptlabError(
            "the loss does not fall with compute over these budgets; check the runs, or train longer ones"
        )
    draws, resampled = problem.bootstrap(fit, group, resamples, seed)
    return PowerLawFit(
        law=_power_law(fit),
        draws=tuple(_power_law(draw) for draw in draws if problem.decreases(draw)),
        residuals=problem.residuals(fit),
        budgets=(float(budgets[0]), float(budgets[-1])),
        resampled=resampled,
        degrees_of_freedom=problem.degrees_of_freedom(group, resampled),
    )


def _power_law(solution: Solution) -> PowerLaw:
    return PowerLaw(solution.floor, solution.scales[0], solution.slopes[0])


@dataclass(frozen=True)
class ComputeEquivalent:
    """A difference of losses as compute. `str()` of it reads "11% ± 3% less compute".

    Attributes:
        saved: 1 - C(baseline's loss) / C(arm's loss) on the baseline's curve: the share of its compute that an arm
            needs less for the baseline's loss, if it is worth the same factor there; negative where it needs more.
        low, high: the interval of `saved`.
        multiplier: C(arm's loss) / C(baseline's loss): how many times the compute the baseline would need.
        half_width: half of the interval's width.
    """

    saved: float
    low: float
    high: float
    multiplier: float
    half_width: float

    def __str__(self) -> str:
        kind, half = "less" if self.saved >= 0 else "more", 100 * self.half_width
        digits = 0 if half >= 1 else 1 if half >= 0.1 else 2
        return f"{100 * abs(self.saved):.{digits}f}% ± {half:.{digits}f}% {kind} compute"


def compute_equivalent(
    fit: PowerLawFit,
    loss_baseline: ArrayLike,
    loss_arm: ArrayLike,
    *,
    confidence: float = 0.95,
    reach: float = 2.0,
    seed: int = 0,
) -> ComputeEquivalent:
    """What a difference of losses is worth in compute, on the baseline's curve of loss against compute.

    Losses: one of each a seed, paired; or two numbers, which are then taken as exact. The interval holds the
    uncertainty of the curve (its bootstrap) and of the mean difference (Student's t with seeds - 1 degrees of freedom).
    `reach`: how many times outside of the fitted budgets a loss may lie.

    Raises GptlabError for losses that do not pair, an arm at or below the curve's floor, and a loss that the baseline
    would have only more than `reach` times outside of the fitted budgets.
    """
    baseline, arm = positive(loss_baseline, "the baseline's loss"), positive(loss_arm, "the arm's loss")
    if len(baseline) != len(arm):
        raise GptlabError(f"{len(arm)} losses of the arm do not pair with {len(baseline)}; give one of each a seed")
    ours, theirs = float(arm.mean()), float(baseline.mean())
    for name, loss in (("the baseline", theirs), ("the arm", ours)):
        _within_reach(fit, name, loss, reach)
    rng = np.random.default_rng(seed)
    differences = arm - baseline
    noise = np.zeros(len(fit.draws))
    if (k := len(differences)) > 1:
        noise = rng.standard_t(k - 1, len(fit.draws)) * differences.std(ddof=1) / math.sqrt(k)
    drawn = np.array([_saved(law, theirs, ours + shift) for law, shift in zip(fit.draws, noise, strict=True)])
    low, high = quantile_interval(drawn, confidence)
    saved = _saved(fit.law, theirs, ours)
    return ComputeEquivalent(saved, low, high, 1 / (1 - saved), (high - low) / 2)


def _saved(law: PowerLaw, baseline: float, arm: float) -> float:
    """1 - C(baseline) / C(arm) = 1 - ((arm - E) / (baseline - E))^(1/b); all of it for an arm at the floor."""
    return float(1 - (max(arm - law.E, 0.0) / max(baseline - law.E, 1e-300)) ** (1 / law.b))


def _within_reach(fit: PowerLawFit, name: str, loss: float, reach: float) -> None:
    compute = float(fit.law.compute(loss))
    low, high = fit.budgets
    if not math.isfinite(compute):
        raise GptlabError(
            f"{name} has a loss of {loss:.4g}, below the floor {fit.law.E:.4g} of the baseline's curve, which no "
            "compute reaches; fit the curve with larger budgets"
        )
    outside = max(low / compute, compute / high)
    if outside > reach:
        raise GptlabError(
            f"the baseline's curve has the loss of {name}, {loss:.4g}, at {compute:.3g} FLOPs, {outside:.3g} times "
            f"outside of the fitted {low:.3g} to {high:.3g}; train the baseline there, or allow it with "
            f"reach={math.ceil(outside * 10) / 10:g}"
        )


def _pooled_sd(y: Array, group: NDArray[np.intp]) -> float:
    """The standard deviation within groups, 0 where no group has two."""
    counts = np.bincount(group)
    means = np.bincount(group, weights=y) / counts
    degrees_of_freedom = int((counts - 1).sum())
    return math.sqrt(float(np.square(y - means[group]).sum()) / degrees_of_freedom) if degrees_of_freedom else 0.0
