"""How every picture is drawn: colours, style, figures, the axis of a loss.

Colours are those of Okabe and Ito (2008), which people with any kind of colour vision tell apart; the baseline is grey.
The same numbers always make the same bytes, so that a report that is committed changes only where its numbers do.
Figures are made without pyplot: nothing is left open, and the backend of a notebook stays what it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptlab.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "gptlab",
    "pdf.fonttype": 42,
}
_LIGHT = {"text": "#222222", "grid": "#e4e4e4", "background": "#ffffff", "band": "#eef1e6"}
_DARK = {"text": "#dddddd", "grid": "#3a3f44", "background": "#16191c", "band": "#2a2f26"}


class Png(bytes):
    """A picture, which a notebook shows."""

    def __repr__(self) -> str:
        return f"a PNG of {len(self):,} bytes; write it with Path(…).write_bytes"

    def _repr_png_(self) -> bytes:
        return bytes(self)


def image(
    draw: Callable[[Figure, dict[str, str]], None], kind: str, *, dark: bool = False, dots_per_inch: int = 100
) -> bytes:
    """What `draw` puts on a figure, as PNG, PDF or SVG.

    Args:
        draw: called with an empty figure and the colours of its parts: text, grid, background, band.
        kind: png, pdf or svg.
        dark: light on dark.
        dots_per_inch: pixels of a PNG for an inch of the figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    paint = _DARK if dark else _LIGHT
    style: Any = {
        **_STYLE,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), paint["text"]),
        "axes.edgecolor": paint["text"],
        "grid.color": paint["grid"],
        "axes.facecolor": paint["background"],
        "figure.facecolor": paint["background"],
        "savefig.facecolor": paint["background"],
    }
    with mpl.rc_context(style):
        figure = Figure(layout="constrained")
        draw(figure, paint)
        out = io.BytesIO()
        metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
        figure.savefig(out, format=kind, dpi=dots_per_inch, metadata=metadata)
    return _fewer_colours(out.getvalue()) if kind == "png" else out.getvalue()


def save_png(path: Path, draw: Callable[[Figure, dict[str, str]], None], *, dots_per_inch: int = 150) -> None:
    """Write what `draw` puts on a figure to `path`: the whole picture or none of it."""
    write_atomic(path, image(draw, "png", dots_per_inch=dots_per_inch))


def _fewer_colours(png: bytes) -> bytes:
    """The picture in 128 colours, which is enough for a figure and a third of the bytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(out, "PNG", optimize=True)
    return out.getvalue()


def smooth(values: Array) -> Array:
    """A centred moving average over a fortieth of the row; at its ends over what is there."""
    width = max(1, len(values) // 40)
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def loss_limits(losses: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    """Limits of a loss axis that leave the steep beginning (the first eighth of each run) out."""
    late = np.concatenate([values[len(values) // 8 :] for pair in losses for values in pair if len(values)])
    late = late[np.isfinite(late)]
    if not len(late):
        return 0.0, 1.0
    low, high = float(late.min()), float(np.quantile(late, 0.98))
    margin = 0.06 * max(high - low, 1e-3)
    return low - margin, high + margin


def count_axis(ax: Axes) -> None:
    """Few ticks, 100k for 100,000."""
    from matplotlib.ticker import EngFormatter

    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    few_ticks(ax)


def few_ticks(ax: Axes) -> None:
    """No more ticks than a small picture has room for."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(5))
