"""Loss against parameters and tokens: L(N, D) = E + A N^-alpha + B D^-beta, Chinchilla's third approach.

`fit_parametric` fits it to runs, and `ParametricLaw.optimal` is the size and the tokens for a budget.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from gptlab.errors import DataError, GptlabError
from gptlab.lab.stats.loss_fit import (
    HUBER,
    Array,
    Estimate,
    FitProblem,
    Resampled,
    Solution,
    estimate_interval,
    positive,
    prediction_interval,
)
from gptlab.shown import Sheet, Shown

FLOPS_PER_TOKEN = 6.0
"""Training FLOPs a parameter and token in C = 6 N D (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""


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


PUBLISHED = "https://raw.githubusercontent.com/epoch-research/analyzing-chinchilla/main/data/svg_extracted_data.csv"


def published_runs(source: Path | str = PUBLISHED) -> tuple[Array, Array, Array]:
    """Parameters N, tokens D and loss (nats a token) of 245 runs of Hoffmann et al. 2022, the lowest losses first.

    They were read off the paper's figure 4 by Besiroglu et al. 2024 (arXiv:2404.10102, section 3), who found N and the
    FLOPs C of each dot from its place and the loss from its colour; D = C / 6N. Their fit (`CHINCHILLA`) leaves out the
    five of highest loss: here the last five.

    `source`: their table, a file or a URL, which is downloaded once. Raises DataError where it is not to be had, or is
    another table.
    """
    from gptlab.data.sources.download import download

    path = download(source) if isinstance(source, str) and "://" in source else Path(source)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [[float(row[column]) for column in _COLUMNS] for row in csv.DictReader(file)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check the path") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source} is not the table of Besiroglu et al.: it lacks {error}") from None
    n, flops, loss = np.array(sorted(rows, key=lambda row: row[2])).reshape(-1, 3).T
    return n, flops / (FLOPS_PER_TOKEN * n), loss


_COLUMNS = ("Model Size", "Training FLOP", "loss")


@dataclass(frozen=True, repr=False)
class ParametricFit(Shown):
    """A parametric law through runs, and how sure it is; the attributes are those of PowerLawFit.

    `parameters` and `tokens` are the smallest and largest that were fitted.
    """

    law: ParametricLaw
    draws: tuple[ParametricLaw, ...]
    residuals: Array
    parameters: tuple[float, float]
    tokens: tuple[float, float]
    resampled: Resampled
    degrees_of_freedom: int

    def sheet(self) -> Sheet:
        """The law's numbers with their intervals."""
        names: tuple[Literal["E", "A", "B", "alpha", "beta"], ...] = ("E", "A", "alpha", "B", "beta")
        rows = [
            [name, *(f"{x:.4g}" for x in (found.value, found.low, found.high))]
            for name, found in ((name, self.interval(name)) for name in names)
        ]
        of = f"{len(self.residuals)} runs"
        return Sheet(f"L = E + A N^-alpha + B D^-beta through {of}", rows, ("", "value", "from", "to"))

    def predict(self, parameters: float, tokens: float, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
        """The loss of one new run, with the uncertainty of the surface and the noise of a run."""
        draws = np.array([law.loss(parameters, tokens) for law in self.draws])
        return prediction_interval(
            float(self.law.loss(parameters, tokens)), draws, self.residuals, self.degrees_of_freedom, confidence, seed
        )

    def optimal(self, flops: float, *, confidence: float = 0.95) -> tuple[Estimate, Estimate]:
        """The parameters and tokens of the least loss for a budget of C = 6 N D FLOPs."""
        drawn = np.array([law.optimal(flops) for law in self.draws])
        n, d = (
            estimate_interval(value, column, self.degrees_of_freedom, confidence)
            for value, column in zip(self.law.optimal(flops), drawn.T, strict=True)
        )
        return n, d

    def interval(self, name: Literal["E", "A", "B", "alpha", "beta"], *, confidence: float = 0.95) -> Estimate:
        """One of the law's numbers."""
        drawn = np.array([getattr(law, name) for law in self.draws])
        return estimate_interval(float(getattr(self.law, name)), drawn, self.degrees_of_freedom, confidence)


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
    n, d, losses = positive(parameters, "parameters"), positive(tokens, "tokens"), positive(loss, "loss")
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
    problem = FitProblem.of(np.stack([n, d], axis=1), losses, floor=True, delta=delta)
    fit = problem.solve()
    if not problem.decreases(fit):
        raise GptlabError(
            "the loss does not fall with both size and tokens over these runs; check them, or widen the range"
        )
    draws, resampled = problem.bootstrap(fit, group.reshape(-1), resamples, seed)
    return ParametricFit(
        law=_parametric_law(fit),
        draws=tuple(_parametric_law(draw) for draw in draws if problem.decreases(draw)),
        residuals=problem.residuals(fit),
        parameters=(float(n.min()), float(n.max())),
        tokens=(float(d.min()), float(d.max())),
        resampled=resampled,
        degrees_of_freedom=problem.degrees_of_freedom(group.reshape(-1), resampled),
    )


def _parametric_law(solution: Solution) -> ParametricLaw:
    (a, b), (alpha, beta) = solution.scales, solution.slopes
    return ParametricLaw(solution.floor, a, b, alpha, beta, source="fitted")
