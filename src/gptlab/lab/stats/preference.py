"""Which of two is preferred, from verdicts of a judge that has biases: towards what it reads first, and what is longer.

Every pair of answers is shown in both orders, and a pair counts only where both verdicts are there: a preference for
the first place then cancels in the win rate, and shows in `Preference.first_wins`. A preference for length does not
cancel. It is taken out as in length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475, equation 2, without
its term for the difficulty of a prompt, which takes more models than two):

    logit P(B wins) = θ + φ tanh(Δ / s),

Δ the length of B's answer less that of A's, s the root mean square of Δ. The corrected rate is that of Δ = 0, 1 / (1 +
exp(-θ)). What is fitted are scores, with ties as halves (Papke and Wooldridge 1996, Journal of Applied Econometrics
11), and φ has a weak normal prior, without which a judge that always takes the longer has no finite fit. Intervals are
those of `crossed`, on the influence of each number on θ and φ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from gptlab.errors import GptlabError
from gptlab.lab.stats.crossed import Estimate, crossed_mean, quantile, share_estimate
from gptlab.lab.stats.paired import Array

_PRIOR_SD = 5.0
"""Of φ, in logits: an answer longer by s would then win 98% of even matches and more in half of all cases."""


@dataclass(frozen=True)
class Preference:
    """What verdicts say of B against A. Shares count ties as halves.

    Attributes:
        pairs: of verdicts, one in each order, that count; `left_out` are those of which one is missing.
        wins, ties, losses: of B, in single verdicts of these pairs.
        win_rate: of B.
        corrected: the same, had both answers been of one length; None where that cannot be told: all differences are
            equal, or one of the two wins always.
        first_wins: the share of what was shown first; 0.5 for a judge without that bias.
        longer_wins: how often the judge would take the longer of two equally good answers, longer by s; None as
            `corrected`.
        orders_agree: how often both orders of a pair come to the same.
        repeats_agree: how often the same question, asked again, comes to the same; None where none was.
    """

    pairs: int
    left_out: int
    wins: int
    ties: int
    losses: int
    win_rate: Estimate
    corrected: Estimate | None
    first_wins: Estimate
    longer_wins: Estimate | None
    orders_agree: Estimate
    repeats_agree: Estimate | None


def preference(scores: ArrayLike, length_PS: ArrayLike, *, confidence: float = 0.95) -> Preference:
    """What verdicts say.

    Args:
        scores: (P, S, R, 2) of prompts, seeds, repeats, and order (A first, B first): 1 where B was preferred, 0.5 for
            a tie, 0 where A was; NaN where a verdict is missing.
        length_PS: the length of B's answer less that of A's, in any unit.

    Raises GptlabError where no pair is whole.
    """
    y = np.asarray(scores, dtype=np.float64)
    there = ~np.isnan(y)
    asked, whole = there.any(axis=-1), there.all(axis=-1)
    if not whole.any():
        raise GptlabError("no pair of answers has a verdict in both orders; there is no win rate")
    y = np.where(whole.reshape(*whole.shape, 1), y, np.nan)
    cells, first = _mean(y, (2, 3)), _mean(np.stack([1 - y[..., 0], y[..., 1]], axis=-1), (2, 3))
    same = np.where(whole, (y[..., 0] == y[..., 1]).astype(np.float64), np.nan)
    corrected, longer = _corrected(cells, np.asarray(length_PS, dtype=np.float64), confidence)
    again = _repeats(y)
    return Preference(
        pairs=int(whole.sum()),
        left_out=int((asked & ~whole).sum()),
        wins=int((y == 1).sum()),
        ties=int((y == 0.5).sum()),
        losses=int((y == 0).sum()),
        win_rate=share_estimate(cells, confidence=confidence),
        corrected=corrected,
        first_wins=share_estimate(first, confidence=confidence),
        longer_wins=longer,
        orders_agree=share_estimate(_mean(same, (2,)), confidence=confidence),
        repeats_agree=None if again is None else share_estimate(again, confidence=confidence),
    )


def _mean(values: Array, axes: tuple[int, ...]) -> Array:
    """Over what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, values, 0.0).sum(axis=axes) / there.sum(axis=axes))


def _repeats(y: Array) -> Array | None:
    """(P, S): of any two repeats of one question, the share that came to the same; None where nothing was repeated."""
    first, second = np.triu_indices(y.shape[2], k=1)
    one, other = y[:, :, first], y[:, :, second]
    both = ~np.isnan(one) & ~np.isnan(other)
    return _mean(np.where(both, (one == other).astype(np.float64), np.nan), (2, 3)) if both.any() else None


def _corrected(cells_PS: Array, length_PS: Array, confidence: float) -> tuple[Estimate | None, Estimate | None]:
    """The win rate at equal lengths, and that of the longer of two equals; None where there is no telling."""
    there = ~np.isnan(cells_PS)
    y, difference = cells_PS[there], length_PS[there]
    scale = math.sqrt(float((difference**2).mean()))
    if scale == 0 or np.ptp(difference) == 0 or not 0 < y.mean() < 1:
        return None, None
    x = np.stack([np.ones_like(y), np.tanh(difference / scale)], axis=1)
    beta, curvature = _fit(x, y)
    influence = np.full((2, *cells_PS.shape), np.nan)
    influence[:, there] = len(y) * np.linalg.solve(curvature, (x * (y - expit(x @ beta))[:, None]).T)
    bounds = [_logit_interval(float(b), rows, confidence) for b, rows in zip(beta, influence, strict=True)]
    equal, longer = bounds
    even = math.tanh(1.0)  # of an answer that is longer by s
    return (
        Estimate(*(None if value is None else float(expit(value)) for value in equal)),  # type: ignore[arg-type]
        Estimate(*(None if value is None else float(expit(even * value)) for value in longer)),  # type: ignore[arg-type]
    )


def _fit(x: Array, y: Array) -> tuple[Array, Array]:
    """The coefficients (2,) of largest posterior, by Newton's method with halved steps, and the curvature there."""
    prior = np.diag([0.0, _PRIOR_SD**-2])

    def loss(beta: Array) -> float:
        z = x @ beta
        return float((np.logaddexp(0, z) - y * z).sum() + 0.5 * beta @ prior @ beta)

    beta = np.zeros(2)
    for _ in range(100):
        p = expit(x @ beta)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + prior
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), x.T @ (y - p) - prior @ beta)
        while loss(beta + step) > loss(beta) + 1e-12 and np.abs(step).max() > 1e-10:
            step = step / 2
        beta = beta + step
        if np.abs(step).max() < 1e-9:
            break
    p = expit(x @ beta)
    return beta, (x * (p * (1 - p))[:, None]).T @ x + prior


def _logit_interval(value: float, influence_PS: Array, confidence: float) -> tuple[float, float | None, float | None]:
    found = crossed_mean(influence_PS)
    if found.variance is None or found.prompts < 3:
        return value, None, None
    # Two coefficients were fitted to as many prompts: what is left of their spread has one degree of freedom less.
    variance = found.variance * (found.prompts - 1) / (found.prompts - 2)
    reach = quantile(max(1.0, found.freedom - 1), confidence) * math.sqrt(variance)
    return value, value - reach, value + reach
