"""The figures of a report: loss against tokens, compute and time; paired differences; a forest plot of all arms.

An arm has the same colour in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gptlab.console import progress
from gptlab.files import write_atomic
from gptlab.lab.experiment.spec import BASELINE
from gptlab.lab.report.findings import Curve, Findings, read_curves
from gptlab.plotting import COLOURS, GREY, count_axis, few_ticks, image, loss_limits, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

GRID_POINTS = 200


def save_figures(findings: Findings, folder: Path, *, kinds: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write every figure of FIGURES to `folder`, as NAME.png and NAME.pdf."""
    paths = [folder / f"{name}.{kind}" for name in FIGURES for kind in kinds]
    with progress(unit="figures", transient=True) as bar:
        task = bar.add_task("drawing", total=len(paths))
        for path in paths:
            write_atomic(path, draw(findings, path.stem, path.suffix[1:]))
            bar.advance(task)
    return paths


def draw(findings: Findings, name: str, kind: str, *, dark: bool = False) -> bytes:
    """A figure of FIGURES as PNG, PDF or SVG."""
    return image(lambda figure, paint: FIGURES[name](findings, figure, paint), kind, dark=dark)


def colours(findings: Findings) -> dict[str, str]:
    """The colour of each arm, the same in every figure."""
    names = [arm.name for arm in findings.experiment.arms]
    return {BASELINE: GREY} | {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


# ---------------------------------------------------------------- loss against tokens, FLOPs, time


def draw_losses(findings: Findings, figure: Figure, paint: dict[str, str]) -> None:
    """Training loss, smoothed, the mean over seeds with their range; validation losses as points."""
    curves = read_curves(findings)
    figure.set_size_inches(9.5, 3.3)
    axes: list[Axes] = list(figure.subplots(1, 3, sharey=True))
    kinds: list[tuple[str, Callable[[Curve, str], Array]]] = [
        ("tokens", lambda curve, part: getattr(curve, f"{part}_tokens")),
        ("training FLOPs", lambda curve, part: getattr(curve, f"{part}_tokens") * curve.flops_per_token),
        ("seconds of training", lambda curve, part: getattr(curve, f"{part}_seconds")),
    ]
    palette = colours(findings)
    for ax, (label, at) in zip(axes, kinds, strict=True):
        for arm in palette:
            mine = [curve for curve in curves if curve.arm == arm]
            if mine:
                _arm_curve(ax, mine, at, palette[arm], arm)
        ax.set_xlabel(label)
        (few_ticks if label.startswith("seconds") else count_axis)(ax)
    axes[0].set_ylabel("loss (nats a token)")
    if curves:
        axes[0].set_ylim(*loss_limits([(c.train_loss, c.val_loss) for c in curves]))
        axes[2].legend(frameon=False, title="line: training, dots: validation", title_fontsize=8)


def _arm_curve(ax: Axes, curves: Sequence[Curve], at: Callable[[Curve, str], Array], colour: str, name: str) -> None:
    series = [(at(curve, "train"), smooth(curve.train_loss)) for curve in curves if len(curve.train_loss)]
    if series:
        x, mean, low, high = over_seeds(series)
        ax.plot(x, mean, color=colour, lw=1.4, label=name)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    points = [(at(curve, "val"), curve.val_loss) for curve in curves if len(curve.val_loss)]
    if points:
        shortest = min(len(x) for x, _ in points)
        x = np.mean([x[:shortest] for x, _ in points], axis=0)
        y = np.array([loss[:shortest] for _, loss in points])
        ax.plot(x, y.mean(0), "o:", color=colour, ms=4, lw=0.8, label=None if series else name)
        ax.vlines(x, y.min(0), y.max(0), color=colour, lw=1.2)


def over_seeds(series: Sequence[tuple[Array, Array]]) -> tuple[Array, Array, Array, Array]:
    """(x, y) of several runs on a common grid, as far as all go: x, mean, lowest and highest."""
    start, end = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
    grid = np.linspace(start, end, GRID_POINTS)
    rows = np.array([np.interp(grid, x, y) for x, y in series])
    return grid, rows.mean(0), rows.min(0), rows.max(0)


# ---------------------------------------------------------------- differences


def draw_differences(findings: Findings, figure: Figure, paint: dict[str, str]) -> None:
    """One dot a seed, joined to zero; the mean with its anytime interval; what is too small to matter, shaded."""
    found = findings.evidence.arms
    figure.set_size_inches(max(4.2, 3.3 * len(found)), 3.2)
    axes: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(found), sharey=True)))
    palette = colours(findings)
    small = findings.experiment.statement.decision.smallest_effect
    reach = [small]
    for ax, arm in zip(axes, found, strict=True):
        d = arm.differences
        places = np.arange(1, len(d) + 1)
        ax.axhspan(-small, small, color=paint["band"], lw=0, zorder=0)
        ax.axhline(0, color=paint["text"], lw=0.8)
        ax.vlines(places, 0, d, color=palette[arm.arm.name], lw=1.2)
        ax.plot(places, d, "o", color=palette[arm.arm.name], ms=5)
        reach += [float(value) for value in np.abs(d)]
        if len(d):
            low, high = arm.decision.interval
            if math.isfinite(low) and math.isfinite(high):
                ax.errorbar(
                    len(d) + 1.2,
                    d.mean(),
                    yerr=[[max(d.mean() - low, 0.0)], [max(high - d.mean(), 0.0)]],
                    fmt="D",
                    color=paint["text"],
                    capsize=4,
                    ms=5,
                )
                reach += [abs(low), abs(high)]
            else:
                ax.plot(len(d) + 1.2, d.mean(), "D", color=paint["text"], ms=5)
        ax.set_xticks([*places, len(d) + 1.2], [*(str(a.seed) for a, _ in arm.pairs), "mean"])
        ax.set_xlim(0.3, len(d) + 1.9)
        ax.set_title(arm.arm.name, fontsize=10)
        ax.set_xlabel("seed")
        ax.grid(axis="x", visible=False)
    limit = 1.12 * max(reach)
    axes[0].set_ylim(-limit, limit)
    axes[0].set_ylabel(f"arm − baseline\n{findings.experiment.statement.metric.label}")


def draw_forest(findings: Findings, figure: Figure, paint: dict[str, str]) -> None:
    """A row an arm: mean difference and anytime interval, beside what is too small to matter."""
    found = findings.evidence.arms
    figure.set_size_inches(7.6, 1.4 + 0.42 * len(found))
    ax: Axes = figure.subplots()
    palette = colours(findings)
    statement = findings.experiment.statement
    small = statement.decision.smallest_effect
    ax.axvspan(-small, small, color=paint["band"], lw=0, zorder=0)
    ax.axvline(0, color=paint["text"], lw=0.8)
    reach = [1.5 * small]
    for row, arm in enumerate(found):
        if not arm.pairs:
            continue
        mean, (low, high) = float(arm.differences.mean()), arm.decision.interval
        reach.append(abs(mean))
        if math.isfinite(low) and math.isfinite(high):
            ax.plot([low, high], [row, row], color=palette[arm.arm.name], lw=2.4, solid_capstyle="butt")
            reach += [abs(low), abs(high)]
        ax.plot(mean, row, "s", color=palette[arm.arm.name], ms=7)
    for row, arm in enumerate(found):
        seeds = len(arm.pairs)
        text = f"{arm.verdict}, {seeds} seed{'' if seeds == 1 else 's'}"
        ax.text(1.02, row, text, transform=ax.get_yaxis_transform(), va="center", clip_on=False)
    limit = 1.15 * max(reach)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_yticks(range(len(found)), [arm.arm.name for arm in found])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    side = "left" if statement.metric.lower_is_better else "right"
    ax.set_xlabel(f"difference in {statement.metric.label}\n{side} of zero is better; shaded: too small to matter")


FIGURES: dict[str, Callable[[Findings, Figure, dict[str, str]], None]] = {
    "forest": draw_forest,
    "differences": draw_differences,
    "losses": draw_losses,
}
"""Every figure by its file name."""
