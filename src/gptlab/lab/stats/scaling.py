"""Scaling laws: compute as a currency for losses, the next size predicted, the best size for a budget.

- `fit_power_law`: L(C) = E + A C^-b through a baseline's losses at several budgets; `compute_equivalent` reads a
  difference of losses as a share of compute on it.
- `fit_parametric`: L(N, D) = E + A N^-alpha + B D^-beta, Chinchilla's third approach; `ParametricLaw.optimal` is the
  size and the tokens for a budget.
- `rank_correlation`: whether arms keep their order from one size to another.

Both fits are the same problem: log L is a log-sum-exp of terms linear in log C, or log N and log D. They minimize a
Huber loss of log residuals, so that a run that went wrong bends the curve little, and are uncertain by a bootstrap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError

Array = NDArray[np.float64]

HUBER = 1e-3
"""Where Huber's loss turns from square to linear, in log L: Hoffmann et al. 2022, section 3.3."""

FLOPS_PER_TOKEN = 6.0
"""Training FLOPs a parameter and token in C = 6 N D (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""

_EFFICIENT = 1.345  # Huber's constant: 95% of least squares' efficiency where the noise is normal
_FLOOR_BUDGETS = 4  # distinct budgets from which the irreducible loss E can be told from the slope
_FLAT = 1e-6
_STARTS = 6  # starts, the best of the grid, that are followed to their minimum
_SLOPES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.9, 1.4)

Resampled = Literal["runs", "residuals"]


@dataclass(frozen=True)
class Estimate:
    """A number with the interval that it lies in with the confidence asked for."""

    value: float
    low: float
    high: float


# ---------------------------------------------------------------- loss against compute


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
        freedom: degrees of freedom that the noise is known from.
    """

    law: PowerLaw
    draws: tuple[PowerLaw, ...]
    residuals: Array
    budgets: tuple[float, float]
    resampled: Resampled
    freedom: int

    def predict(self, compute: float, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
        """The loss of one new run, with the uncertainty of the curve and the noise of a run."""
        draws = np.array([law.loss(compute) for law in self.draws])
        return _prediction(float(self.law.loss(compute)), draws, self.residuals, self.freedom, confidence, seed)


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
    c, losses = _positive(compute, "compute"), _positive(loss, "loss")
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
    problem = _Problem.of(c[:, None], losses, floor=floor, delta=delta)
    fit = problem.solve()
    if not problem.falls(fit):
        raise GptlabError(
            "the loss does not fall with compute over these budgets; check the runs, or train longer ones"
        )
    draws, resampled = problem.bootstrap(fit, group, resamples, seed)
    return PowerLawFit(
        law=_power_law(fit),
        draws=tuple(_power_law(draw) for draw in draws if problem.falls(draw)),
        residuals=problem.residuals(fit),
        budgets=(float(budgets[0]), float(budgets[-1])),
        resampled=resampled,
        freedom=problem.freedom(group, resampled),
    )


def _power_law(solution: _Solution) -> PowerLaw:
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
    baseline, arm = _positive(loss_baseline, "the baseline's loss"), _positive(loss_arm, "the arm's loss")
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
    low, high = _quantiles(drawn, confidence)
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


# ---------------------------------------------------------------- loss against parameters and tokens


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta: nats a token, N parameters, D tokens (Hoffmann et al. 2022, eq. 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str = ""

    def loss(self, parameters: ArrayLike, tokens: ArrayLike) -> Array:
        """L(N, D)."""
        n, d = np.asarray(parameters, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)

    def optimal(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens of the least loss for a budget of C = 6 N D FLOPs (Hoffmann et al. 2022, eq. 4).

        N = G (C/6)^(beta/(alpha+beta)) and D = (C/6)^(alpha/(alpha+beta)) / G, with
        G = (alpha A / (beta B))^(1/(alpha+beta)): there alpha A N^-alpha = beta B D^-beta, so that neither pays more.

        Raises GptlabError for a budget that is not positive.
        """
        if not 0 < flops < math.inf:
            raise GptlabError(f"a budget of {flops} FLOPs trains nothing; give a number above 0")
        total = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        pairs = flops / FLOPS_PER_TOKEN
        return ratio * pairs ** (self.beta / total), pairs ** (self.alpha / total) / ratio


CHINCHILLA = ParametricLaw(
    E=1.8172,
    A=482.01,
    B=2085.43,
    alpha=0.3478,
    beta=0.3658,
    source="Besiroglu et al. 2024, arXiv:2404.10102, a fit to the runs of Hoffmann et al. 2022",
)
"""For planning before anything is fitted: 18 tokens a parameter at Chinchilla's budget, near its other approaches' 20.

Its losses are those of DeepMind's text and tokenizer; only the balance of N and D carries over.
"""

HOFFMANN = ParametricLaw(
    E=1.69,
    A=406.4,
    B=410.7,
    alpha=0.34,
    beta=0.28,
    source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 10",
)
"""As first published. Besiroglu et al. could not reproduce it; at Chinchilla's budget it asks for some 90 tokens a
parameter, and the paper's other approaches for 20."""


@dataclass(frozen=True)
class ParametricFit:
    """A parametric law through runs, and how sure it is; the attributes are those of PowerLawFit.

    `parameters` and `tokens` are the smallest and largest that were fitted.
    """

    law: ParametricLaw
    draws: tuple[ParametricLaw, ...]
    residuals: Array
    parameters: tuple[float, float]
    tokens: tuple[float, float]
    resampled: Resampled
    freedom: int

    def predict(self, parameters: float, tokens: float, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
        """The loss of one new run, with the uncertainty of the surface and the noise of a run."""
        draws = np.array([law.loss(parameters, tokens) for law in self.draws])
        return _prediction(
            float(self.law.loss(parameters, tokens)), draws, self.residuals, self.freedom, confidence, seed
        )

    def optimal(self, flops: float, *, confidence: float = 0.95) -> tuple[Estimate, Estimate]:
        """The parameters and tokens of the least loss for a budget of C = 6 N D FLOPs."""
        drawn = np.array([law.optimal(flops) for law in self.draws])
        n, d = (
            _estimate(value, column, self.freedom, confidence)
            for value, column in zip(self.law.optimal(flops), drawn.T, strict=True)
        )
        return n, d

    def interval(self, name: Literal["E", "A", "B", "alpha", "beta"], *, confidence: float = 0.95) -> Estimate:
        """One of the law's numbers."""
        drawn = np.array([getattr(law, name) for law in self.draws])
        return _estimate(float(getattr(self.law, name)), drawn, self.freedom, confidence)


def fit_parametric(
    parameters: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    delta: float = HUBER,
    resamples: int = 200,
    seed: int = 0,
) -> ParametricFit:
    """Fit L(N, D) = E + A N^-alpha + B D^-beta to runs: approach 3 of Hoffmann et al. 2022 (eq. 3).

    log L is a log-sum-exp of e, a - alpha log N and b - beta log D; Huber's loss of its residuals is summed (a mean
    would meet the optimizer's tolerance before the minimum, which is what Besiroglu et al. 2024 found in the first fit)
    and minimized by a trust region from the best of a grid of starts. The bootstrap is that of `fit_power_law`, with
    runs of the same N and D in the place of a budget.

    Raises GptlabError for numbers that are not positive, fewer than three distinct N or D, fewer than six distinct
    pairs, and losses that fall with neither.
    """
    n, d, losses = _positive(parameters, "parameters"), _positive(tokens, "tokens"), _positive(loss, "loss")
    if not len(n) == len(d) == len(losses):
        raise GptlabError(
            f"{len(n)} sizes, {len(d)} numbers of tokens and {len(losses)} losses; give one of each a run"
        )
    pairs, group = np.unique(np.stack([n, d], axis=1), axis=0, return_inverse=True)
    if min(len(np.unique(n)), len(np.unique(d))) < 3 or len(pairs) < 6:
        raise GptlabError(
            f"{len(np.unique(n))} sizes and {len(np.unique(d))} numbers of tokens in {len(pairs)} pairs do not show "
            "five numbers; train three or more of each, in six or more pairs"
        )
    problem = _Problem.of(np.stack([n, d], axis=1), losses, floor=True, delta=delta)
    fit = problem.solve()
    if not problem.falls(fit):
        raise GptlabError(
            "the loss does not fall with both size and tokens over these runs; check them, or widen the range"
        )
    draws, resampled = problem.bootstrap(fit, group.reshape(-1), resamples, seed)
    return ParametricFit(
        law=_parametric_law(fit),
        draws=tuple(_parametric_law(draw) for draw in draws if problem.falls(draw)),
        residuals=problem.residuals(fit),
        parameters=(float(n.min()), float(n.max())),
        tokens=(float(d.min()), float(d.max())),
        resampled=resampled,
        freedom=problem.freedom(group.reshape(-1), resampled),
    )


def _parametric_law(solution: _Solution) -> ParametricLaw:
    (a, b), (alpha, beta) = solution.scales, solution.slopes
    return ParametricLaw(solution.floor, a, b, alpha, beta, source="fitted")


# ---------------------------------------------------------------- the fit of both


@dataclass(frozen=True)
class _Solution:
    """L = floor + Σ scale_j x_j^-slope_j; `theta` is the same in the optimizer's coordinates."""

    theta: Array
    floor: float
    scales: tuple[float, ...]
    slopes: tuple[float, ...]


@dataclass(frozen=True)
class _Problem:
    """log L against the logs of k quantities, (runs, k): a Huber loss over theta = (intercepts, slopes, log floor).

    `x` is centred, which makes intercepts and slopes nearly independent for the optimizer; `centre` was taken off.
    """

    x: Array
    centre: Array
    y: Array
    with_floor: bool
    delta: float

    @classmethod
    def of(cls, quantities: Array, loss: Array, *, floor: bool, delta: float) -> _Problem:
        """The problem of `quantities`, (runs, k), not yet in logs."""
        x = np.log(quantities)
        return cls(x - x.mean(axis=0), x.mean(axis=0), np.log(loss), floor, delta)

    @property
    def unknowns(self) -> int:
        """How many numbers are fitted."""
        return 2 * int(self.x.shape[1]) + self.with_floor

    def solve(self) -> _Solution:
        """The best minimum that is reached from the best starts of a grid."""
        starts = sorted(self._grid(), key=lambda theta: self._objective(theta, self.y))[:_STARTS]
        ends = [self._descend(start, self.y, tolerance=1e-13) for start in starts]
        return self._solution(min(ends, key=lambda theta: self._objective(theta, self.y)))

    def bootstrap(
        self, fit: _Solution, group: NDArray[np.intp], resamples: int, seed: int
    ) -> tuple[list[_Solution], Resampled]:
        """Fits to resampled runs, each begun at the fit to all."""
        rng = np.random.default_rng(seed)
        kind: Resampled = "runs" if np.bincount(group).min() > 1 else "residuals"
        if kind == "residuals" and len(self.y) <= self.unknowns:
            raise GptlabError(
                f"{len(self.y)} runs for {self.unknowns} numbers leave nothing to tell the uncertainty by; "
                "train more budgets, or each with two seeds or more"
            )
        fitted, noise = self._log_loss(fit.theta), self.residuals(fit)
        found = []
        for _ in range(resamples):
            again = (
                _resample_within(self.y, group, rng)
                if kind == "runs"
                else fitted + rng.choice(noise, len(noise), replace=True)
            )
            found.append(self._solution(self._descend(fit.theta, again, tolerance=1e-8)))
        return found, kind

    def falls(self, fit: _Solution) -> bool:
        """Whether each quantity lowers the loss over its range by more than a millionth of it."""
        x = self.x + self.centre
        ends = (np.array(fit.scales) * np.exp(-np.array(fit.slopes) * x[pick]) for pick in (x.argmin(0), x.argmax(0)))
        first, last = (np.diagonal(end) for end in ends)
        return bool((first - last > _FLAT * np.exp(self.y.min())).all())

    def freedom(self, group: NDArray[np.intp], resampled: Resampled) -> int:
        """Degrees of freedom of the noise: within groups of runs, or around the curve."""
        return len(self.y) - (int(group.max()) + 1 if resampled == "runs" else self.unknowns)

    def residuals(self, fit: _Solution) -> Array:
        """Log residuals, widened for the numbers fitted; as they are where there are no more runs than those."""
        spare = len(self.y) - self.unknowns
        found = self.y - self._log_loss(fit.theta)
        return found * (math.sqrt(len(found) / spare) if spare > 0 else 1.0)

    def _grid(self) -> list[Array]:
        """For every combination of slopes the best floor and scales, which are linear: nonnegative least squares."""
        from scipy.optimize import nnls

        loss, starts = np.exp(self.y), []
        for slopes in itertools.product(_SLOPES, repeat=self.x.shape[1]):
            columns = np.exp(-self.x * np.array(slopes))
            if self.with_floor:
                columns = np.column_stack([columns, np.ones(len(loss))])
            found, _ = nnls(columns / loss[:, None], np.ones(len(loss)))
            logs = np.log(np.maximum(found, 1e-3 * loss.min()))
            k = len(slopes)
            starts.append(np.concatenate([logs[:k], slopes, logs[k:]]))
        return starts

    def _descend(self, start: Array, y: Array, *, tolerance: float) -> Array:
        """To the minimum from `start`, by a trust region that stops where a step changes less than `tolerance`."""
        from scipy.optimize import least_squares

        k = self.x.shape[1]
        low = [-np.inf] * k + [0.0] * k + [float(y.min()) - 10] * self.with_floor
        high = [np.inf] * k + [5.0] * k + [float(y.max())] * self.with_floor
        found = least_squares(
            lambda theta: self._log_loss(theta) - y,
            np.clip(start, np.add(low, 1e-9), np.subtract(high, 1e-9)),
            self._slopes,
            bounds=(low, high),
            loss="huber",
            f_scale=self.delta,
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
            gtol=tolerance,
            max_nfev=500,
        )
        return np.asarray(found.x)

    def _slopes(self, theta: Array) -> Array:
        """By how much each log loss changes with each of theta, (runs, unknowns)."""
        k = self.x.shape[1]
        _, share = self._shares(theta)
        return np.concatenate([share[:, :k], -share[:, :k] * self.x, share[:, k:]], axis=1)

    def _shares(self, theta: Array) -> tuple[Array, Array]:
        """log L of every run, and the share of each term in L, (runs, k) or with the floor (runs, k + 1)."""
        runs, k = self.x.shape
        terms = np.empty((runs, k + self.with_floor))
        terms[:, :k] = theta[:k] - theta[k : 2 * k] * self.x
        terms[:, k:] = theta[2 * k :]
        largest = terms.max(axis=1, keepdims=True)
        parts = np.exp(terms - largest)
        whole = parts.sum(axis=1, keepdims=True)
        return (largest + np.log(whole))[:, 0], parts / whole

    def _log_loss(self, theta: Array) -> Array:
        return self._shares(theta)[0]

    def _objective(self, theta: Array, y: Array) -> float:
        """Σ Huber(residual / delta)."""
        residual = (self._log_loss(theta) - y) / self.delta
        slope = np.clip(residual, -1.0, 1.0)  # of Huber's loss, which is slope (residual - slope / 2)
        return float(slope @ (residual - slope / 2))

    def _solution(self, theta: Array) -> _Solution:
        k = self.x.shape[1]
        slopes = theta[k : 2 * k]
        return _Solution(
            theta=theta,
            floor=float(np.exp(theta[-1])) if self.with_floor else 0.0,
            scales=tuple(float(scale) for scale in np.exp(theta[:k] + slopes * self.centre)),
            slopes=tuple(float(slope) for slope in slopes),
        )


def _resample_within(y: Array, group: NDArray[np.intp], rng: np.random.Generator) -> Array:
    """Each group drawn again from its own runs, with deviations widened by sqrt(k / (k - 1))."""
    again = np.empty_like(y)
    for number in range(group.max() + 1):
        mine = np.flatnonzero(group == number)
        mean, k = y[mine].mean(), len(mine)
        again[mine] = mean + (rng.choice(y[mine], k) - mean) * math.sqrt(k / (k - 1))
    return again


def _pooled_sd(y: Array, group: NDArray[np.intp]) -> float:
    """The standard deviation within groups, 0 where no group has two."""
    counts = np.bincount(group)
    means = np.bincount(group, weights=y) / counts
    freedom = int((counts - 1).sum())
    return math.sqrt(float(np.square(y - means[group]).sum()) / freedom) if freedom else 0.0


def _prediction(value: float, draws: Array, residuals: Array, freedom: int, confidence: float, seed: int) -> Estimate:
    noise = np.random.default_rng(seed).choice(residuals, (64, len(draws)))
    return _estimate(value, (draws * np.exp(noise)).ravel(), freedom, confidence)


def _estimate(value: float, draws: Array, freedom: int, confidence: float) -> Estimate:
    """A positive number with its interval: wider than the draws, as Student's t is than the normal distribution.

    A bootstrap's quantiles are those of noise of a known size. Here the size is known from few runs, and for that the
    interval must be 1.42 times as wide with four degrees of freedom, 1.15 times with nine.
    """
    from scipy import stats

    tail = (1 - confidence) / 2
    wider = float(stats.t.isf(tail, freedom) / stats.norm.isf(tail)) if freedom > 0 else 1.0
    low, high = (value + wider * (end - value) for end in _quantiles(draws, confidence))
    return Estimate(value, max(0.0, low), high)


def _quantiles(values: Array, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _positive(values: ArrayLike, what: str) -> Array:
    row = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if row.ndim != 1 or not len(row) or not (np.isfinite(row) & (row > 0)).all():
        raise GptlabError(f"{what} must be positive numbers, a row of one or more, got {values!r}; check the runs")
    return row


# ---------------------------------------------------------------- order between sizes

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
