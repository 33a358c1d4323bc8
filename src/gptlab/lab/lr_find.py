"""The learning-rate range test: one short run whose rate grows until the loss blows up (Smith 2017, arXiv:1506.01186).

It is an ordinary run with the schedule `gptlab.lab.lr_range:Exponential`, which multiplies the rate of every group of
parameters, so that Muon's and AdamW's grow together. All is said in multiples of what the config has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gptlab.config import RunConfig, config_from
from gptlab.errors import GptlabError
from gptlab.lab.execution import Device, train_all
from gptlab.lab.experiment import hash_of
from gptlab.lab.report.drawing import COLOURS, GREY, image
from gptlab.lab.store import Store, Wanted
from gptlab.record.metrics import read_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

SCHEDULE = "gptlab.lab.lr_range:Exponential"
_MARGIN = 10.0  # how far below the rate that diverges the cautious one lies
_LEAST_STEPS = 10
_FLAT = 1e-6  # of the loss, a decade: less is rounding


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw; rates are multiples of the config's.

    Attributes:
        multipliers, losses: of every step that was taken.
        smoothed: the losses without the noise of batches.
        steepest: where the smoothed loss falls fastest per decade; None where it never falls.
        diverged: where it first rises beyond the limit; None where it never does.
    """

    multipliers: Array
    losses: Array
    smoothed: Array
    steepest: float | None
    diverged: float | None

    @property
    def cautious(self) -> float | None:
        """A tenth of the rate that diverges."""
        return None if self.diverged is None else self.diverged / _MARGIN


def range_test(config: RunConfig, *, low: float, high: float, steps: int) -> Wanted:
    """The run of a range test: `config` for `steps` steps, its rate from `low` to `high` times what it has.

    Raises GptlabError for a range or a number of steps that shows nothing.
    """
    if not 0 < low < high:
        raise GptlabError(f"--low {low:g} --high {high:g}: no range; low must be above 0 and below high")
    if steps < _LEAST_STEPS:
        raise GptlabError(f"--steps {steps}: too few to see a slope; take {_LEAST_STEPS} or more")
    values = config.plain()
    values["schedule"] = {"use": SCHEDULE, "low": low, "high": high}
    values["train"] = {**values["train"], "tokens": steps * config.train.batch_tokens}
    values["eval"] = {**values["eval"], "every": 0}
    values["log"] = {**values["log"], "every": 1}
    tested = config_from({**values, "name": f"{config.name}-lr-find"})
    return Wanted(tested, hash_of(tested), "the range test")


def run_range_test(run: Wanted, store: Store, device: Device, *, limit: float) -> RangeTest:
    """Train it, as far as the loss does not exceed `limit` times the best, and say what it shows.

    Raises GptlabError for a limit of 1 or less.
    """
    if limit <= 1:
        raise GptlabError(
            f"--limit {limit:g}: the loss is always at its best or above it; take more than 1, such as 1.5"
        )

    def is_over() -> bool:
        return store.finished(run) is not None or store.failure(folder) is not None or diverges(folder)

    def diverges(folder: Path) -> bool:
        multipliers, losses = _read(folder)
        return len(losses) >= _LEAST_STEPS and analyse(multipliers, losses, limit).diverged is not None

    folder = store.folder(run)
    train_all(lambda: [] if is_over() else [run], store, devices=[device], watch=lambda run, folder: diverges(folder))
    found = analyse(*_read(folder), limit)
    if len(found.losses) < _LEAST_STEPS:
        raise GptlabError(
            f"{folder}: the loss was gone after {len(found.losses)} steps; begin lower with --low, or take more --steps"
        )
    return found


def _read(folder: Path) -> tuple[Array, Array]:
    columns = read_columns(folder / "metrics.jsonl", ["lr_multiplier", "train/loss"])
    multipliers, losses = columns["lr_multiplier"], columns["train/loss"]
    trained = np.isfinite(multipliers)  # a row of a validation has none
    return multipliers[trained], losses[trained]


def analyse(multipliers: Array, losses: Array, limit: float = 1.5) -> RangeTest:
    """Read a range test. A loss that is not finite counts as divergence.

    The smoothed loss is an exponential mean over a twentieth of the steps, without the bias of its beginning.
    """
    decay = 1 - 1 / max(2.0, len(losses) / 20)
    mean, smoothed = 0.0, np.empty(len(losses))
    for step, loss in enumerate(losses):
        mean = decay * mean + (1 - decay) * loss
        smoothed[step] = mean / (1 - decay ** (step + 1))
    best = np.minimum.accumulate(np.where(np.isfinite(smoothed), smoothed, np.inf))
    gone = np.flatnonzero(~(smoothed <= limit * best))
    end = int(gone[0]) if len(gone) else len(losses)
    steepest = None
    if end > 2:
        slope = np.gradient(smoothed[:end], np.log10(multipliers[:end]))
        fastest = int(np.argmin(slope))
        steepest = float(multipliers[fastest]) if slope[fastest] < -_FLAT * smoothed[0] else None
    return RangeTest(multipliers, losses, smoothed, steepest, float(multipliers[end]) if len(gone) else None)


def rates(config: RunConfig) -> dict[str, float]:
    """The learning rates of the config's optimizer, by key: what a multiplier applies to."""
    found = config.optimizer.plain()
    return {
        key: float(value)
        for key, value in found.items()
        if (key == "lr" or key.endswith("_lr")) and isinstance(value, int | float)
    }


def draw(found: RangeTest, title: str) -> bytes:
    """The loss against the multiplier, with both suggestions, as PNG."""
    return image(lambda figure, paint: _draw(found, title, figure), "png")


def _draw(found: RangeTest, title: str, figure: Figure) -> None:
    figure.set_size_inches(7, 4)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(found.multipliers, found.losses, color=GREY, linewidth=0.8, alpha=0.6, label="loss of a batch")
    axes.plot(found.multipliers, found.smoothed, color=COLOURS[0], linewidth=1.8, label="smoothed")
    marks = [("steepest", found.steepest, COLOURS[2], "-"), ("a tenth of divergence", found.cautious, COLOURS[4], "--")]
    for name, where, colour, line in [*marks, ("diverged", found.diverged, COLOURS[1], ":")]:
        if where is not None:
            axes.axvline(where, color=colour, linestyle=line, linewidth=1.4, label=f"{name}: {where:.2g}×")
    finite = found.smoothed[np.isfinite(found.smoothed)]
    low, high = float(finite.min()), float(finite[: max(2, len(finite) // 4)].max())
    margin = max(high - low, 1e-3)
    axes.set_ylim(low - 0.08 * margin, high + 0.5 * margin)
    axes.set_xlabel("learning rate, as a multiple of the config's")
    axes.set_ylabel("training loss (nats a token)")
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)
