"""A ladder: one config at several sizes and lengths, the scaling law through them, and a prediction of the next rung.

N is the number of parameters without embeddings, as Kaplan et al. 2020 (arXiv:2001.08361) count: at the sizes of a
small budget embeddings are most of a model, and what they add to the loss follows the vocabulary and not the size.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptlab.config import RunConfig, dump_yaml, format_count, parse_number
from gptlab.config.load import override
from gptlab.config.numbers import require_count
from gptlab.console import progress
from gptlab.errors import ConfigError, GptlabError, option
from gptlab.files import write_atomic
from gptlab.lab.experiment.spec import Arm, hash_of, with_seed
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.lab.stats.chinchilla import ParametricFit, fit_parametric
from gptlab.lab.stats.loss_fit import Estimate
from gptlab.lab.stats.rank import RankCorrelation, rank_correlation
from gptlab.planning.subprocesses import plan_in_subprocess
from gptlab.plotting import COLOURS, Png, image
from gptlab.shown import Sheet, Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

HEADER = ("arm", "size", "N", "tokens", "loss", "law")
"""Of `table`."""

_NUMBERS: tuple[Literal["E", "A", "B", "alpha", "beta"], ...] = ("E", "A", "alpha", "B", "beta")


@dataclass(frozen=True)
class Size:
    """A rung: `dim` wide, `layers` deep; `parameters` without embeddings."""

    dim: int
    layers: int
    parameters: int = 0

    def __str__(self) -> str:
        return f"{self.dim}x{self.layers}"


def parse_sizes(text: str) -> list[Size]:
    """`64x2,96x3` as sizes. Raises GptlabError."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)x(\d+)\s*", part)
        if match is None or not int(match[1]) * int(match[2]):
            raise GptlabError(
                f"{option('sizes', text)}: {part!r} is no size; write DIMxLAYERS, for example 64x2,96x3,128x4"
            )
        found.append(Size(int(match[1]), int(match[2])))
    return _distinct(found, option("sizes"), text)


def parse_tokens(text: str) -> list[int]:
    """`200k,400k` as numbers, in order. Raises GptlabError."""
    try:
        found = [int(parse_number(part.strip())) for part in text.split(",")]
    except ValueError:
        raise GptlabError(
            f"{option('tokens', text)}: not numbers of tokens; write for example 200k,400k,800k"
        ) from None
    return sorted(_distinct(found, option("tokens"), text))


def _distinct(values: list[Any], option: str, text: str) -> list[Any]:
    if len(set(values)) < len(values):
        raise GptlabError(f"{option} {text}: one is there twice; a repeated run is the same run")
    if len(values) < 3:
        raise GptlabError(f"{option} {text}: a law of five numbers wants three or more sizes and three or more lengths")
    return values


def at_size(config: RunConfig, size: Size, tokens: int) -> RunConfig:
    """`config` at a size and a length; heads stay as wide as they are. Raises GptlabError where that cannot be."""
    model = config.plain()["model"]
    if not all(isinstance(model.get(key), int) for key in ("dim", "layers", "heads")):
        raise GptlabError("a ladder sets model.dim, model.layers and model.heads, and this model has not all of them")
    width = model["dim"] // model["heads"]
    if size.dim % width:
        raise GptlabError(
            f"{option('sizes')}: {size} cannot be shared by heads {width} wide; make the width a multiple of that"
        )
    what = {"dim": size.dim, "layers": size.layers, "heads": size.dim // width}
    try:
        return override(
            config, [*(f"model.{key}={value}" for key, value in what.items()), f"train.tokens={tokens}"], {}
        )
    except ConfigError as error:
        raise GptlabError(f"{option('sizes')}: {size} with {tokens} tokens: {error}") from None


@dataclass(frozen=True)
class Rung:
    """A size and a length of one arm, and its runs, one a seed."""

    arm: str
    size: Size
    tokens: int
    runs: tuple[RunSpec, ...]


def rungs(configs: Mapping[str, RunConfig], sizes: Sequence[Size], tokens: Sequence[int], *, seeds: int) -> list[Rung]:
    """The first config at every size and length; the others, which are arms, at every size and the greatest length.

    The sizes come back with their parameters counted. Raises GptlabError for what cannot be trained.
    """
    if seeds < 1:
        raise GptlabError(f"{option('seeds', seeds)}: nothing would be trained; give 1 or more")
    require_count("seeds", seeds, "runs")
    first, *others = configs
    todo = [(first, size, length) for size in sizes for length in tokens]
    todo += [(arm, size, tokens[-1]) for arm in others for size in sizes]
    every = [(arm, size, length, at_size(configs[arm], size, length)) for arm, size, length in todo]
    counted = _count_parameters(sizes, configs[first], tokens[0])
    found = []
    for arm, size, length, config in every:
        digest = hash_of(config)
        label = f"{arm} {size} {format_count(length)}"
        runs = tuple(
            RunSpec(with_seed(config, init=seed, data=seed, dropout=seed), digest, f"{label} seed {seed}")
            for seed in range(1, seeds + 1)
        )
        found.append(Rung(arm, counted[size], length, runs))
    return found


def _count_parameters(sizes: Sequence[Size], config: RunConfig, tokens: int) -> dict[Size, Size]:
    """Each size with its parameters, counted on the real model by a process that may import torch."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="gptlab-ladder-") as folder, progress(unit="sizes", transient=True) as bar:
        task = bar.add_task("counting parameters", total=len(sizes))
        for size in sizes:
            path = Path(folder) / f"{size}.yaml"
            write_atomic(path, dump_yaml(at_size(config, size, tokens).plain()))
            footprint = plan_in_subprocess(path, options=["--no-probe"]).footprint
            found[size] = Size(size.dim, size.layers, footprint.parameters_without_embeddings)
            bar.advance(task)
    return found


def arm_configs(arms: Sequence[Arm]) -> dict[str, RunConfig]:
    """The configs of an experiment's arms by name, the baseline first; A/A arms are left out."""
    return {arm.name: arm.config for arm in arms if not arm.repeats_baseline}


# ---------------------------------------------------------------- what it shows


@dataclass(frozen=True)
class Point:
    """A finished run: its arm, size, length and loss (nats a token)."""

    arm: str
    size: Size
    tokens: int
    loss: float


@dataclass(frozen=True)
class HeldOut:
    """The largest rung, predicted from all others: how far the law can be trusted."""

    size: Size
    tokens: int
    predicted: Estimate
    measured: float


@dataclass(frozen=True, repr=False)
class Ladder(Shown):
    """A ladder and its fit; `rank_correlations` of arms are between each size and the largest, by size."""

    name: str
    points: list[Point]
    fit: ParametricFit
    held_out: HeldOut | None
    target: tuple[float, float]
    predicted: Estimate
    rank_correlations: dict[str, RankCorrelation]

    def sheet(self) -> Sheet:
        """A row a run, and what the law says."""
        return Sheet(f"ladder of {self.name}", table(self), HEADER, lines(self), left=2)

    def picture(self) -> Png:
        """The runs, the law through them, and the prediction."""
        return Png(image(lambda figure, paint: _draw(self, figure), "png"))


def read_points(found: Sequence[Rung], store: Store) -> list[Point]:
    """The validation losses of finished rungs."""
    from gptlab.lab.experiment.metric import Metric, check_alike

    loss = Metric.model_validate("loss")
    check_alike(loss, (store.folder(run) for rung in found for run in rung.runs))
    return [
        Point(rung.arm, rung.size, rung.tokens, loss.value(store.folder(run))) for rung in found for run in rung.runs
    ]


def fit_ladder(
    name: str,
    points: Sequence[Point],
    *,
    target: tuple[float, float] | None = None,
    hold_out: bool = True,
    resamples: int = 200,
) -> Ladder:
    """Fit the law to the first arm's points, predict `target` (N, D), and correlate the ranks of arms between sizes.

    `target` is by default a rung further: N and D grow as they did from the second largest to the largest.
    `resamples`: of the bootstrap that the intervals are from.
    Raises GptlabError where the points show no law.
    """
    own = [point for point in points if point.arm == points[0].arm]
    fit = _fit(own, resamples)
    sizes = sorted({point.size.parameters for point in own})
    lengths = sorted({point.tokens for point in own})
    if target is None:
        target = (sizes[-1] ** 2 / sizes[-2], lengths[-1] ** 2 / lengths[-2])
    held_out = _predict_held_out(own, resamples) if hold_out else None
    return Ladder(name, list(points), fit, held_out, target, fit.predict(*target), _rank_correlations(points))


def _fit(points: Sequence[Point], resamples: int) -> ParametricFit:
    return fit_parametric(
        [point.size.parameters for point in points],
        [point.tokens for point in points],
        [point.loss for point in points],
        resamples=resamples,
    )


def _predict_held_out(points: Sequence[Point], resamples: int) -> HeldOut:
    size = max((point.size for point in points), key=lambda size: size.parameters)
    tokens = max(point.tokens for point in points)
    out = [point for point in points if (point.size, point.tokens) == (size, tokens)]
    fit = _fit([point for point in points if point not in out], resamples)
    return HeldOut(size, tokens, fit.predict(size.parameters, tokens), float(np.mean([point.loss for point in out])))


def _rank_correlations(points: Sequence[Point]) -> dict[str, RankCorrelation]:
    """By size: how the arms' order there agrees with that at the largest, at the greatest length."""
    arms = list(dict.fromkeys(point.arm for point in points))
    if len(arms) < 2:
        return {}
    tokens = max(point.tokens for point in points)
    sizes = sorted({point.size for point in points}, key=lambda size: size.parameters)

    def losses(size: Size) -> list[float]:
        here = [point for point in points if point.size == size and point.tokens == tokens]
        return [float(np.mean([point.loss for point in here if point.arm == arm])) for arm in arms]

    return {str(size): rank_correlation(losses(size), losses(sizes[-1])) for size in sizes[:-1]}


def table(ladder: Ladder) -> list[list[str]]:
    """Arm, size, N, tokens, loss, and what the law says there for the first arm."""
    first = ladder.points[0].arm
    return [
        [
            point.arm,
            str(point.size),
            format_count(point.size.parameters),
            format_count(point.tokens),
            f"{point.loss:.4f}",
            f"{float(ladder.fit.law.loss(point.size.parameters, point.tokens)):.4f}" if point.arm == first else "",
        ]
        for point in ladder.points
    ]


def lines(ladder: Ladder) -> list[str]:
    """What the ladder shows, a sentence each."""
    found = [
        "L = E + A N^-alpha + B D^-beta with "
        + ", ".join(_format_interval(name, ladder.fit.interval(name)) for name in _NUMBERS)
    ]
    if (held_out := ladder.held_out) is not None:
        off = held_out.predicted.value - held_out.measured
        inside = held_out.predicted.low <= held_out.measured <= held_out.predicted.high
        found.append(
            f"held out: {held_out.size} with {format_count(held_out.tokens)} tokens was predicted from the others as "
            f"{_format_loss(held_out.predicted)} and came to {held_out.measured:.4f}: {off:+.4f} off, "
            f"{'inside' if inside else 'OUTSIDE'} the interval"
        )
    n, d = ladder.target
    found.append(
        f"predicted: {format_count(round(n))} parameters without embeddings and {format_count(round(d))} tokens "
        f"come to {_format_loss(ladder.predicted)}"
    )
    for size, order in ladder.rank_correlations.items():
        found.append(
            f"order of {order.arms} arms at {size} against the largest size: Spearman {order.spearman:+.2f} "
            f"(p {order.spearman_p:.2f}), Kendall {order.kendall:+.2f} (p {order.kendall_p:.2f})"
        )
    return found


def _format_interval(name: str, found: Estimate) -> str:
    return f"{name} {found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def _format_loss(found: Estimate) -> str:
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def write_ladder(ladder: Ladder, folder: Path) -> list[Path]:
    """Write ladder.json, ladder.md and ladder.png; their paths."""
    law = {name: asdict(ladder.fit.interval(name)) for name in _NUMBERS}
    plain = {
        "schema": 1,
        "name": ladder.name,
        "points": [asdict(point) for point in ladder.points],
        "law": law,
        "held_out": None if ladder.held_out is None else asdict(ladder.held_out),
        "target": {"parameters": ladder.target[0], "tokens": ladder.target[1]},
        "predicted": asdict(ladder.predicted),
        "orders": {size: asdict(order) for size, order in ladder.rank_correlations.items()},
    }
    rows = ["| arm | size | N | tokens | loss | law |", "|---|---|---:|---:|---:|---:|"]
    rows += [f"| {' | '.join(row)} |" for row in table(ladder)]
    text = "\n".join([f"# Ladder of {ladder.name}", "", *(f"- {line}" for line in lines(ladder)), "", *rows, ""])
    text += "\nIntervals are 95%, from a bootstrap; none of them knows whether the law is the right curve.\n"
    contents: dict[str, str | bytes] = {
        "ladder.json": json.dumps(plain, indent=1) + "\n",
        "ladder.md": text,
        "ladder.png": ladder.picture(),
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return [folder / name for name in contents]


def _draw(ladder: Ladder, figure: Figure) -> None:
    """Loss against tokens, a colour a size; points are runs, lines the law, the prediction with its interval."""
    figure.set_size_inches(7, 4.2)
    axes = figure.subplots()
    axes.set_xscale("log")
    own = [point for point in ladder.points if point.arm == ladder.points[0].arm]
    sizes = sorted({point.size for point in own}, key=lambda size: size.parameters)
    n, d = ladder.target
    grid: Array = np.geomspace(min(point.tokens for point in own), max(d, max(point.tokens for point in own)), 100)
    for number, size in enumerate(sizes):
        colour, here = COLOURS[number % len(COLOURS)], [point for point in own if point.size == size]
        axes.scatter([point.tokens for point in here], [point.loss for point in here], color=colour, s=24, zorder=3)
        label = f"{size}: {format_count(size.parameters)}"
        axes.plot(grid, ladder.fit.law.loss(size.parameters, grid), color=colour, linewidth=1.2, label=label)
    colour, found = COLOURS[len(sizes) % len(COLOURS)], ladder.predicted
    axes.plot(grid, ladder.fit.law.loss(n, grid), color=colour, linewidth=1.2, linestyle="--")
    error = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
    label = f"predicted: {format_count(round(n))}"
    axes.errorbar([d], [found.value], yerr=error, color=colour, marker="D", capsize=4, linestyle="none", label=label)
    lengths = sorted({*(point.tokens for point in own), round(d)})
    axes.set_xticks(lengths, [format_count(length) for length in lengths])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens")
    axes.set_ylabel("validation loss (nats a token)")
    axes.set_title(f"{ladder.name}: runs and the law through them", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, title="parameters without embeddings", title_fontsize=8)
