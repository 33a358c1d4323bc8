"""loss.png: the curve of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gptlab.plotting import COLOURS, count_axis, save_png
from gptlab.record.metrics import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION = COLOURS[0], COLOURS[1]


def plot_loss(rows: list[Row], path: Path, title: str) -> None:
    """Write loss.png: training loss (each step faint, its moving average) and validation loss against tokens."""
    save_png(path, lambda figure, _: _draw(_series(rows, "train/loss"), _series(rows, "val/loss"), title, figure))


def _series(rows: list[Row], key: str) -> NDArray[np.float64]:
    """(points, 2): tokens and value, where the value was measured."""
    return np.array([(row["tokens"], row[key]) for row in rows if row.get(key) is not None]).reshape(-1, 2)


def _draw(train: NDArray[np.float64], val: NDArray[np.float64], title: str, figure: Figure) -> None:
    figure.set_size_inches(8, 4.8)
    axes = figure.subplots()
    if len(train):
        window = max(1, len(train) // 50)
        averaged = np.convolve(train[:, 1], np.ones(window) / window, mode="valid")
        axes.plot(*train.T, color=_TRAINING, lw=0.6, alpha=0.35)
        label = f"training (mean of {window} steps)" if window > 1 else "training"
        axes.plot(train[window - 1 :, 0], averaged, color=_TRAINING, lw=1.6, label=label)
    if len(val):
        axes.plot(*val.T, color=_VALIDATION, lw=1.8, marker="o", ms=4, label="validation")
        best = val[val[:, 1].argmin()]
        place = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{best[1]:.4f}", best, color=_VALIDATION, **place)
    # The first steps fall from ln V and would squeeze everything after them into the bottom of the picture.
    settled = np.concatenate([train[len(train) // 10 :, 1], val[len(val) // 10 :, 1]])
    if len(settled):
        low, high = settled.min(), settled.max()
        margin = 0.06 * max(high - low, 0.05)
        axes.set_ylim(low - margin, high + 3 * margin)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    count_axis(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
