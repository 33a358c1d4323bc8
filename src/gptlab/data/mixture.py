"""Mixtures: how the rows of a batch are shared between data sets. Home of the slot `mix`.

A mixture is built with `(sources)`, the names of the run's data sets with the number of tokens that each holds, and
called with the progress of training in [0, 1]; it answers with one weight a source, in their order. `Weights` stays the
same throughout; `Schedule` moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.errors import ConfigError, did_you_mean


class Weights:
    """Constant weights.

    Args:
        sources: name → tokens, in the order of the run's data sets.
        weights: share of the rows that each source gives; they need not sum to 1, and 0 leaves a source out.
            Without it every source weighs what it holds, so that all are read at the same pace.

    Raises ConfigError for a source that is unknown or not named, and for weights that are no shares.
    """

    slot = "mix"

    def __init__(self, sources: Mapping[str, int], *, weights: dict[str, float] | None = None) -> None:
        given = {name: float(tokens) for name, tokens in sources.items()} if weights is None else weights
        self._weights = _normalized(sources, given, "weights")

    def __call__(self, progress: float) -> NDArray[np.float64]:
        """Weights at `progress` in [0, 1]: (sources,), summing to 1."""
        return self._weights


class Schedule:
    """Piecewise linear weights: interpolated between stages, constant before the first and after the last.

    Args:
        sources: name → tokens, in the order of the run's data sets.
        stages: `[{at: 0.0, weights: {web: 1, books: 0}}, {at: 0.8, weights: {web: 1, books: 1}}]`, with `at`
            in [0, 1] and rising. Each stage's weights are scaled to sum to 1 before lines are drawn between
            them.

    Raises ConfigError as `Weights` does, and for stages that are missing or out of order.
    """

    slot = "mix"

    def __init__(self, sources: Mapping[str, int], *, stages: list[dict[str, Any]]) -> None:
        if not stages or any(set(stage) != {"at", "weights"} for stage in stages):
            raise ConfigError(
                "mix Schedule: stages are a list of {at: 0.0, weights: {…}}, at least one", key="data.mix.stages"
            )
        self._at = np.array([float(stage["at"]) for stage in stages])
        if (np.diff(self._at) <= 0).any() or self._at[0] < 0 or self._at[-1] > 1:
            raise ConfigError(
                f"mix Schedule: stages must rise within [0, 1], not {self._at.tolist()}", key="data.mix.stages"
            )
        self._weights = np.stack(
            [_normalized(sources, stage["weights"], f"the stage at {stage['at']}") for stage in stages]
        )

    def __call__(self, progress: float) -> NDArray[np.float64]:
        """Weights at `progress` in [0, 1]: (sources,), summing to 1."""
        return np.array([np.interp(progress, self._at, column) for column in self._weights.T])


def _normalized(sources: Mapping[str, int], given: Mapping[str, float], where: str) -> NDArray[np.float64]:
    for name in given:
        if name not in sources:
            raise ConfigError(
                f"mix: {where} names {name!r}, which is no data set here; {did_you_mean(name, sources)}", key="data.mix"
            )
    for name in sources:
        if name not in given:
            raise ConfigError(f"mix: {where} leaves out {name!r}; give it a weight (0 for none of it)", key="data.mix")
    weights = np.array([float(given[name]) for name in sources])
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ConfigError(f"mix: {where} must be shares of at least 0, not all 0: {dict(given)}", key="data.mix")
    normalized: NDArray[np.float64] = weights / weights.sum()
    return normalized
