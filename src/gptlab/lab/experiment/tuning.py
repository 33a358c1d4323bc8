"""Tuning: each arm's best point of the grid, by the mean of the metric over the tuning seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.errors import GptlabError
from gptlab.lab.experiment.spec import Experiment


@dataclass(frozen=True)
class TuningChoice:
    """The point of the grid that an arm takes into the comparison.

    Attributes:
        point: {dotted key: value}.
        value: the mean of the metric over the tuning seeds.
        table: every point of the grid and its mean.
    """

    point: dict[str, object]
    value: float
    table: list[tuple[dict[str, object], float]]

    @property
    def on_grid_edge(self) -> list[str]:
        """Keys whose chosen value is the first or last of its grid: `optimizer.lr = x0.25`; a better may lie beyond."""
        found = []
        for key, chosen in self.point.items():
            sizes = sorted({size for point, _ in self.table if (size := _size(point[key])) is not None})
            if len(sizes) > 1 and _size(chosen) in (sizes[0], sizes[-1]):
                found.append(f"{key} = {chosen}")
        return found


def _size(value: object) -> float | None:
    """A number, or the factor of `x0.5`; None for what has no size."""
    if isinstance(value, str):
        try:
            return float(value.strip().lstrip("x×"))
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def select_tuning(
    experiment: Experiment, values: Mapping[tuple[str, int], Sequence[float | None]]
) -> dict[str, TuningChoice]:
    """Each arm's best point of the grid by its mean over the tuning seeds.

    `values`: the metric of every tuning run by arm and index of the grid point; None for a run that diverged, which
    counts as the worst there is. Raises GptlabError where all points of an arm diverged.
    """
    lower = experiment.statement.metric.lower_is_better
    worst = float("inf") if lower else float("-inf")
    chosen = {}
    for name in (arm.name for arm in experiment.all_arms):
        means = [
            float(np.mean([worst if value is None else value for value in values[name, number]]))
            for number in range(len(experiment.grid))
        ]
        table = list(zip(experiment.grid, means, strict=True))
        best = (min if lower else max)(table, key=lambda row: row[1])
        if not np.isfinite(best[1]):
            raise GptlabError(f"arm {name!r}: no tuning run of it could be finished; try other values in `tune`")
        chosen[name] = TuningChoice(*best, table)
    return chosen
