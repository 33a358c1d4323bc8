"""loss.png: the curve of a run, worth looking at."""

from __future__ import annotations

import io
from pathlib import Path

from gptlab.files import write_atomic
from gptlab.record.metrics import Row


def plot_loss(rows: list[Row], path: Path, title: str) -> None:
    """Training loss (each step faint, a moving average over it) and validation loss against tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import EngFormatter

    train = np.array([(r["tokens"], r["train/loss"]) for r in rows if r.get("train/loss") is not None]).reshape(-1, 2)
    val = np.array([(r["tokens"], r["val/loss"]) for r in rows if r.get("val/loss") is not None]).reshape(-1, 2)
    figure, axes = plt.subplots(figsize=(8, 4.8), dpi=150)
    if len(train):
        window = max(1, len(train) // 50)
        kernel = np.ones(window) / window
        smooth = np.convolve(train[:, 1], kernel, mode="valid")
        axes.plot(*train.T, color="#9bb8d8", lw=0.6, alpha=0.7)
        axes.plot(train[window - 1 :, 0], smooth, color="#1f4e8c", lw=1.6, label=f"training (mean of {window} steps)")
    if len(val):
        axes.plot(*val.T, color="#c8501e", lw=1.8, marker="o", ms=4, label="validation")
        best = val[val[:, 1].argmin()]
        axes.annotate(
            f"{best[1]:.4f}",
            best,
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            color="#c8501e",
            fontsize=9,
        )
    # The first steps fall from ln V and would squeeze everything after them into the bottom of the picture.
    settled = np.concatenate([train[len(train) // 10 :, 1], val[len(val) // 10 :, 1]])
    if len(settled):
        low, high = settled.min(), settled.max()
        margin = 0.06 * max(high - low, 0.05)
        axes.set_ylim(low - margin, high + 3 * margin)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write_atomic(path, picture.getvalue())
