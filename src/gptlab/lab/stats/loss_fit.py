"""The fit that both scaling laws share: a loss as a floor plus powers of one or more quantities.

log L is a log-sum-exp of terms linear in the logs of the quantities. A Huber loss of log residuals is minimized, so
that a run that went wrong bends the curve little (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3), and the
uncertainty is that of a bootstrap.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptlab.errors import GptlabError

Array = NDArray[np.float64]

HUBER = 1e-3
"""Where Huber's loss turns from square to linear, in log L: Hoffmann et al. 2022, section 3.3."""

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


@dataclass(frozen=True)
class Solution:
    """L = floor + Σ scale_j x_j^-slope_j; `theta` is the same in the optimizer's coordinates."""

    theta: Array
    floor: float
    scales: tuple[float, ...]
    slopes: tuple[float, ...]


@dataclass(frozen=True)
class FitProblem:
    """log L against the logs of k quantities, (runs, k): a Huber loss over theta = (intercepts, slopes, log floor).

    `x` is centred, which makes intercepts and slopes nearly independent for the optimizer; `centre` was taken off.
    """

    x: Array
    centre: Array
    y: Array
    with_floor: bool
    delta: float

    @classmethod
    def of(cls, quantities: Array, loss: Array, *, floor: bool, delta: float) -> FitProblem:
        """The problem of `quantities`, (runs, k), not yet in logs."""
        x = np.log(quantities)
        return cls(x - x.mean(axis=0), x.mean(axis=0), np.log(loss), floor, delta)

    @property
    def n_parameters(self) -> int:
        """How many numbers are fitted."""
        return 2 * int(self.x.shape[1]) + self.with_floor

    def solve(self) -> Solution:
        """The best minimum that is reached from the best starts of a grid."""
        starts = sorted(self._grid(), key=lambda theta: self._objective(theta, self.y))[:_STARTS]
        ends = [self._descend(start, self.y, tolerance=1e-13) for start in starts]
        return self._solution(min(ends, key=lambda theta: self._objective(theta, self.y)))

    def bootstrap(
        self, fit: Solution, group: NDArray[np.intp], resamples: int, seed: int
    ) -> tuple[list[Solution], Resampled]:
        """Fits to resampled runs, each begun at the fit to all."""
        rng = np.random.default_rng(seed)
        kind: Resampled = "runs" if np.bincount(group).min() > 1 else "residuals"
        if kind == "residuals" and len(self.y) <= self.n_parameters:
            raise GptlabError(
                f"{len(self.y)} runs for {self.n_parameters} numbers leave nothing to tell the uncertainty by; "
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

    def decreases(self, fit: Solution) -> bool:
        """Whether each quantity lowers the loss over its range by more than a millionth of it."""
        x = self.x + self.centre
        ends = (np.array(fit.scales) * np.exp(-np.array(fit.slopes) * x[pick]) for pick in (x.argmin(0), x.argmax(0)))
        first, last = (np.diagonal(end) for end in ends)
        return bool((first - last > _FLAT * np.exp(self.y.min())).all())

    def degrees_of_freedom(self, group: NDArray[np.intp], resampled: Resampled) -> int:
        """Degrees of freedom of the noise: within groups of runs, or around the curve."""
        return len(self.y) - (int(group.max()) + 1 if resampled == "runs" else self.n_parameters)

    def residuals(self, fit: Solution) -> Array:
        """Log residuals, widened for the numbers fitted; as they are where there are no more runs than those."""
        spare = len(self.y) - self.n_parameters
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
            self._jacobian,
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

    def _jacobian(self, theta: Array) -> Array:
        """By how much each log loss changes with each of theta, (runs, n_parameters)."""
        k = self.x.shape[1]
        _, share = self._log_loss_and_shares(theta)
        return np.concatenate([share[:, :k], -share[:, :k] * self.x, share[:, k:]], axis=1)

    def _log_loss_and_shares(self, theta: Array) -> tuple[Array, Array]:
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
        return self._log_loss_and_shares(theta)[0]

    def _objective(self, theta: Array, y: Array) -> float:
        """Σ Huber(residual / delta)."""
        residual = (self._log_loss(theta) - y) / self.delta
        slope = np.clip(residual, -1.0, 1.0)  # of Huber's loss, which is slope (residual - slope / 2)
        return float(slope @ (residual - slope / 2))

    def _solution(self, theta: Array) -> Solution:
        k = self.x.shape[1]
        slopes = theta[k : 2 * k]
        return Solution(
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


def prediction_interval(
    value: float, draws: Array, residuals: Array, degrees_of_freedom: int, confidence: float, seed: int
) -> Estimate:
    """A loss with the interval of one new run: `draws` of the curve times the noise of `residuals` (in logs)."""
    noise = np.random.default_rng(seed).choice(residuals, (64, len(draws)))
    return estimate_interval(value, (draws * np.exp(noise)).ravel(), degrees_of_freedom, confidence)


def estimate_interval(value: float, draws: Array, degrees_of_freedom: int, confidence: float) -> Estimate:
    """A positive number with its interval: wider than the draws, as Student's t is than the normal distribution.

    A bootstrap's quantiles are those of noise of a known size. Here the size is known from few runs, and for that the
    interval must be 1.42 times as wide with four degrees of freedom, 1.15 times with nine.
    """
    from scipy import stats

    tail = (1 - confidence) / 2
    wider = float(stats.t.isf(tail, degrees_of_freedom) / stats.norm.isf(tail)) if degrees_of_freedom > 0 else 1.0
    low, high = (value + wider * (end - value) for end in quantile_interval(draws, confidence))
    return Estimate(value, max(0.0, low), high)


def quantile_interval(values: Array, confidence: float) -> tuple[float, float]:
    """The central interval that holds a share `confidence` of `values`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def positive(values: ArrayLike, what: str) -> Array:
    """`values` as a row of numbers. Raises GptlabError, naming `what`, unless all are finite and above 0."""
    row = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if row.ndim != 1 or not len(row) or not (np.isfinite(row) & (row > 0)).all():
        raise GptlabError(f"{what} must be positive numbers, a row of one or more, got {values!r}; check the runs")
    return row
