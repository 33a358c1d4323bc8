"""Runs beside each other, for Python and notebooks: `gptlab.compare(["runs/a-…", "runs/b-…"])`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError
from gptlab.lab.report.compare import (
    RunSummary,
    config_lines,
    curves,
    measure_top_k,
    read_runs,
    table,
    unlike_lines,
)
from gptlab.plotting import Png
from gptlab.shown import Sheet, Shown


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """What runs came to, what they cost, and in what their configs differ: `gptlab compare` as an object."""

    runs: tuple[RunSummary, ...]
    metric: str
    top_k: tuple[int, ...]

    def sheet(self) -> Sheet:
        """A row a run; below it what differs."""
        shown = table(self.runs, self.metric, self.top_k)
        lines = list(config_lines(self.runs))
        differ = ["configs differ in", *(f"  {line}" for line in lines)] if lines else ["configs are equal"]
        return Sheet(
            f"{len(self.runs)} runs",
            shown.rows,
            shown.header,
            [*unlike_lines(self.runs, self.metric), *differ],
            shown.left,
        )

    def curves(self, *, dark: bool = False) -> Png:
        """The metric against tokens and seconds; thin lines: the training loss, smoothed."""
        return Png(curves(self.runs, "png", self.metric, dark=dark))


def compare(runs: Sequence[Any], *, metric: str = "loss", top_k: Sequence[int] = ()) -> Comparison:
    """Compare `runs`, each a folder or a `Run`, finished or not.

    Args:
        metric: loss, bits_per_byte, or a key of metrics.jsonl.
        top_k: accuracies among the k likeliest tokens (1, 5, 10), measured where they are not known yet.

    Raises GptlabError for fewer than two runs, and as `read_runs` and `measure_top_k`.
    """
    folders = [Path(getattr(run, "folder", run)) for run in runs]
    if len(folders) < 2:
        raise GptlabError("a comparison needs two runs or more; name their folders")
    found = read_runs(folders, metric)
    if top_k:
        measure_top_k(folders, top_k)
        found = read_runs(folders, metric)
    return Comparison(tuple(found), metric, tuple(top_k))
