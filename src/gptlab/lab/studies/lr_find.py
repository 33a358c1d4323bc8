"""The learning-rate range test: a short run whose rate grows until it diverges (Smith 2017, arXiv:1506.01186).

It is an ordinary run with the schedule `gptlab.lab.studies.lr_range:Exponential`, which multiplies the rate of every
group of parameters, so that Muon's and AdamW's grow together. All is said in multiples of what the config has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gptlab.config import RunConfig, config_from
from gptlab.config.numbers import require_count
from gptlab.errors import ConfigError, GptlabError, option
from gptlab.lab.experiment.spec import hash_of
from gptlab.lab.runs.execution import Device, train_all
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.plotting import COLOURS, GREY, image
from gptlab.record.metrics import read_columns
from gptlab.shown import Sheet, Shown, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

SCHEDULE = "gptlab.lab.studies.lr_range:Exponential"
_SAFETY_FACTOR = 10.0  # how far below the rate that diverges the cautious one lies
_LEAST_STEPS = 10
_FLAT = 1e-6  # of the loss, a decade: less is rounding
_MEDIAN = 20  # a running median over a twentieth of the steps
_LINE = 7  # a straight line over a seventh of them


@dataclass(frozen=True, repr=False)
class RangeTest(Shown):
    """The result of a range test; learning rates are multiples of the config's.

    Attributes:
        multipliers, losses: of every step that was taken.
        smoothed: their running median, without the noise of batches; infinite where they are not numbers.
        steepest: where the smoothed loss falls fastest per decade; None where it never falls.
        diverged: where it first rises beyond the limit; None where it never does.
        divergence_loss: the loss that counts as divergence, the limit times the lowest before it.
    """

    multipliers: Array
    losses: Array
    smoothed: Array
    steepest: float | None
    diverged: float | None
    divergence_loss: float

    def sheet(self) -> Sheet:
        """Where the loss falls fastest and where it diverges, in multiples of the config's rate."""
        found = {"falls fastest at": self.steepest, "diverges at": self.diverged, "a tenth of that": self.cautious}
        return Sheet(
            f"learning rates, {len(self.losses)} steps", [[name, *cells([x], ".3g")] for name, x in found.items()]
        )

    @property
    def cautious(self) -> float | None:
        """A tenth of the rate that diverges."""
        return None if self.diverged is None else self.diverged / _SAFETY_FACTOR


def range_test(config: RunConfig, *, low: float, high: float, steps: int) -> RunSpec:
    """The run of a range test: `config` for `steps` steps, its rate from `low` to `high` times what it has.

    Raises GptlabError for a range or a number of steps that shows nothing.
    """
    if not 0 < low < high < np.inf:
        raise GptlabError(
            f"{option('low', low)} {option('high', high)}: no range; low must be above 0 and "
            f"below high, and high finite"
        )
    if steps < _LEAST_STEPS:
        raise GptlabError(f"{option('steps', steps)}: too few to see a slope; take {_LEAST_STEPS} or more")
    require_count("steps", steps, "steps")
    if config.train.growth is not None:
        raise ConfigError(
            "train.growth: a range test raises the rate at every batch, and steps that take several would hide where "
            f"the loss turns; test without, by {option('set', 'train.growth=null')}",
            key="train.growth",
        )
    values = config.plain()
    values["schedule"] = {"use": SCHEDULE, "low": low, "high": high}
    # What is too much is decided here: a run that stops at a spike would end before it is seen.
    values["train"] = {**values["train"], "tokens": steps * config.train.batch_tokens, "spike": None}
    values["eval"] = {**values["eval"], "every": 0, "at_start": False}
    values["log"] = {**values["log"], "every": 1}
    tested = config_from({**values, "name": f"{config.name}-lr-find"})
    return RunSpec(tested, hash_of(tested), "the range test")


def run_range_test(run: RunSpec, store: Store, device: Device, *, limit: float) -> RangeTest:
    """Train the run of a range test until its loss exceeds `limit` times the lowest, and analyse it.

    Raises GptlabError for a limit of 1 or less.
    """
    if not limit > 1:
        raise GptlabError(
            f"{option('limit', limit)}: the loss is always at its best or above it; take more than 1, such as 1.5"
        )

    folder, steps = store.folder(run), run.config.total_steps

    def is_over() -> bool:
        return store.finished(run) is not None or store.failure(folder) is not None or diverges(folder)

    def diverges(folder: Path) -> bool:
        multipliers, losses = _read(folder)
        if len(losses) < _LEAST_STEPS:
            return False
        diverged = analyse(multipliers, losses, limit, steps).diverged
        # Half a window more, so that the median there has its other side, and a single bad batch stops nothing.
        return diverged is not None and int(np.sum(multipliers > diverged)) >= _window(steps, _MEDIAN) // 2

    train_all(
        lambda: [] if is_over() else [run], store, devices=[device], should_stop=lambda run, folder: diverges(folder)
    )
    found = analyse(*_read(folder), limit, steps)
    if found.diverged is None and len(found.losses) and store.failure(folder) is not None:
        found = replace(found, diverged=float(found.multipliers[-1]))  # a gradient that is not finite: no loss shows it
    if len(found.losses) < _LEAST_STEPS:
        raise GptlabError(
            f"{folder}: the loss was gone after {len(found.losses)} steps; begin lower with {option('low')}, "
            f"or take more {option('steps')}"
        )
    return found


def _read(folder: Path) -> tuple[Array, Array]:
    columns = read_columns(folder / "metrics.jsonl", ["lr_multiplier", "train/loss"])
    multipliers, losses = columns["lr_multiplier"], columns["train/loss"]
    trained = np.isfinite(multipliers)  # a row of a validation has none
    return multipliers[trained], losses[trained]


def analyse(multipliers: Array, losses: Array, limit: float = 1.5, steps: int | None = None) -> RangeTest:
    """Analyse a range test. A loss that is not finite counts as divergence. `steps`: as planned; else those taken.

    The curve is complete when it is read, so that what smooths it may look ahead, and does not lag: a running median,
    which is true to whatever only rises or only falls within its window, and blind to a single bad batch. Its slope is
    that of a straight line fitted around each step. Multipliers must grow by one factor, as those of the schedule do.
    """
    steps = steps or len(losses)
    smoothed = _running_median(np.where(np.isfinite(losses), losses, np.inf), _window(steps, _MEDIAN))
    lowest = np.minimum.accumulate(smoothed)
    gone = np.flatnonzero(~np.isfinite(smoothed) | (smoothed > limit * lowest))
    end = int(gone[0]) if len(gone) else len(losses)
    diverged = float(multipliers[end]) if len(gone) else None
    divergence_loss = limit * float(lowest[end - 1]) if end else np.inf
    return RangeTest(
        multipliers, losses, smoothed, _steepest(multipliers[:end], smoothed[:end], steps), diverged, divergence_loss
    )


def _window(steps: int, share: int) -> int:
    """An odd number of steps, of which one is in the middle: that share of them, and 3 or more."""
    return max(3, steps // share) | 1


def _running_median(values: Array, width: int) -> Array:
    """The median around each value; towards the ends over less, but over as much to the left as to the right."""
    from scipy.ndimage import median_filter

    half, last = width // 2, len(values) - 1
    smoothed: Array = median_filter(values, size=width, mode="nearest") if len(values) else values.copy()
    for index in {*range(min(half, last + 1)), *range(max(0, last - half + 1), last + 1)}:
        reach = min(index, last - index)
        smoothed[index] = np.median(values[index - reach : index + reach + 1])
    return smoothed


def _steepest(multipliers: Array, smoothed: Array, steps: int) -> float | None:
    """Where a straight line fitted around a step falls fastest; None where none falls. Only whole windows count."""
    half = min(_window(steps, _LINE), len(smoothed) - 1) // 2
    if half < 1:
        return None
    around = np.arange(-half, half + 1)
    slopes = np.correlate(smoothed, around / np.sum(around**2), "valid") / np.log10(multipliers[1] / multipliers[0])
    fastest = int(np.argmin(slopes))
    return float(multipliers[fastest + half]) if slopes[fastest] < -_FLAT * smoothed[0] else None


def learning_rates(config: RunConfig) -> dict[str, float]:
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
    smoothed = np.where(np.isfinite(found.smoothed), found.smoothed, np.nan)
    axes.plot(found.multipliers, smoothed, color=COLOURS[0], linewidth=1.8, label="running median")
    marks = [("steepest", found.steepest, COLOURS[2], "-"), ("a tenth of divergence", found.cautious, COLOURS[4], "--")]
    for name, where, colour, line in [*marks, ("diverged", found.diverged, COLOURS[1], ":")]:
        if where is not None:
            axes.axvline(where, color=colour, linestyle=line, linewidth=1.4, label=f"{name}: {where:.3g}×")
    if found.diverged is not None and np.isfinite(found.divergence_loss):
        axes.axhline(
            found.divergence_loss, color=COLOURS[1], linewidth=0.6, label=f"too much: {found.divergence_loss:.3g} nats"
        )
    finite = found.smoothed[np.isfinite(found.smoothed)]
    low, high = float(finite.min()), float(finite[: max(2, len(finite) // 4)].max())
    margin = max(high - low, 1e-3)
    if found.diverged is not None and np.isfinite(found.divergence_loss):
        high = max(high, found.divergence_loss)
    axes.set_ylim(low - 0.08 * margin, high + 0.5 * margin)
    axes.set_xlabel("learning rate, as a multiple of the config's")
    axes.set_ylabel("training loss (nats a token)")
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)
