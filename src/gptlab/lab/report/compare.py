"""A comparison of any runs: losses, cost, differences of their configs, learning curves.

Nothing is assumed of the runs. One that is not finished is compared as far as it went.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptlab.config import difference, format_count
from gptlab.config.yamlfile import parse_yaml
from gptlab.console import progress, say, waiting
from gptlab.errors import GptlabError, option
from gptlab.files import write_atomic
from gptlab.lab.report import page
from gptlab.lab.report.blocks import Block, Heading, Paragraph, Picture, Table
from gptlab.lab.runs.store import outdated
from gptlab.planning.formatting import format_bytes, format_seconds
from gptlab.plotting import COLOURS, count_axis, few_ticks, image, loss_limits, smooth
from gptlab.record.evaluation import read_evaluation
from gptlab.record.facts import Facts, read_facts
from gptlab.record.measurement import Identity, unlike_first, unlike_pair
from gptlab.record.metrics import read_columns
from gptlab.record.runfolder import State, made_elsewhere, read_sessions, require_run, say_edited_config, state

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

METRICS = {"loss": "val/loss", "bits_per_byte": "val/bits_per_byte"}
"""Short names of `--metric`; any other is a key of metrics.jsonl."""

TOP_K = (1, 5, 10)
"""The k that `gptlab eval --tasks topk` measures."""

CURVE_POINTS = 400
"""Of one run; fewer where many are drawn (`PICTURE_POINTS`)."""

PICTURE_POINTS = 8_000
"""Of all runs together: a page of a hundred runs stays small, and its lines are a pixel apart all the same."""

_MAX_LABELLED = 8
"""Runs that a legend names, and whose validations are dots."""

MAX_VALUES = 12
"""Of a key of the configs; where runs have more, a line says how many."""

NONE = "–"


@dataclass(frozen=True)
class RunSummary:
    """A run as far as it went. What is not known is None.

    Attributes:
        config: the resolved config, as plain values; of a run that was not trained here, the model's section alone.
        finished: whether it was trained to its end.
        facts: of a finished run.
        step, steps: optimizer steps done, and planned.
        tokens: trained on so far.
        seconds: of training so far.
        final, best: of the metric; best is the lowest.
        bits_per_byte: the last.
        curve: (tokens, seconds, value) of the metric.
        train: the same of the training loss, smoothed and thinned.
        top_k: accuracy by k, where it was measured.
        identity: what its validations were read from.
    """

    folder: Path
    config: Mapping[str, Any]
    finished: bool
    facts: Facts | None
    step: int
    steps: int
    tokens: int
    seconds: float | None
    final: float | None
    best: float | None
    bits_per_byte: float | None
    curve: tuple[Array, Array, Array]
    train: tuple[Array, Array, Array]
    top_k: Mapping[int, float]
    identity: Identity | None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.resolve().name

    @property
    def state(self) -> str:
        """finished, or how far it is."""
        return "finished" if self.finished else f"unfinished, step {self.step:,} of {self.steps:,}"


def read_runs(folders: Sequence[Path], metric: str = "loss") -> list[RunSummary]:
    """Read run folders. `metric`: a key of METRICS or of metrics.jsonl.

    Raises GptlabError for a folder that is no run, or whose files are damaged or of another schema; for the same run
    named twice; and where no run logs the metric.
    """
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise GptlabError(f"{folder} is named twice; a run is equal to itself")
        seen.add(folder.resolve())
        require_run(folder)
    key = METRICS.get(metric, metric)
    with progress(unit="runs", transient=True) as bar:
        task = bar.add_task("reading", total=len(folders))
        runs = []
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # Arrow parses without the interpreter's lock
            for run in pool.map(lambda folder: _read(folder, key), folders):
                runs.append(run)
                bar.advance(task)
    for run in runs:
        say_edited_config(run.folder)
    if any(run.step for run in runs) and all(run.final is None for run in runs):
        raise GptlabError(
            f"{option('metric', metric)}: none of these runs logs {key!r}; name a key of their metrics.jsonl"
        )
    return runs


def _read(folder: Path, key: str) -> RunSummary:
    config = read_plain_config(folder / "config.yaml")
    facts = read_facts(folder) if (folder / "facts.json").is_file() else None
    row = read_columns(
        folder / "metrics.jsonl", ("step", "tokens", "seconds", "train/loss", "val/bits_per_byte", "val/loss", key)
    )
    curve, train = _series(row, key), _series(row, "train/loss")
    values, bytes_ = curve[2], _series(row, "val/bits_per_byte")[2]
    training, sessions = config["train"], read_sessions(folder)
    elsewhere = made_elsewhere(sessions)
    seconds = row["seconds"][~np.isnan(row["seconds"])]
    return RunSummary(
        folder=folder,
        # config.yaml is whole, that it may be read as any; but nobody chose these rates and sizes
        config={key: config[key] for key in ("name", "model") if key in config} if elsewhere else config,
        finished=state(folder) in (State.FINISHED, State.RECONFIGURED),
        facts=facts,
        step=int(row["step"][-1]) if len(row["step"]) else 0,
        steps=facts.steps if facts is not None else -(-int(training["tokens"]) // int(training["batch_tokens"])),
        tokens=int(row["tokens"][-1]) if len(row["tokens"]) else 0,
        seconds=float(seconds[-1]) if len(seconds) else None,
        final=float(values[-1]) if len(values) else None,
        best=float(values.min()) if len(values) else None,
        bits_per_byte=float(bytes_[-1]) if len(bytes_) else None,
        curve=curve,
        train=_smooth_and_thin(train),
        top_k=_read_top_k(folder),
        identity=sessions[-1].get("validation") if sessions else None,
    )


def _series(row: Mapping[str, Array], key: str) -> tuple[Array, Array, Array]:
    there = ~np.isnan(row[key])
    return row["tokens"][there], row["seconds"][there], row[key][there]


def _smooth_and_thin(series: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Smoothed, and no more points than a picture shows."""
    if not len(series[2]):
        return series
    keep = np.unique(np.linspace(0, len(series[2]) - 1, min(CURVE_POINTS, len(series[2]))).astype(int))
    return series[0][keep], series[1][keep], smooth(series[2])[keep]


def read_plain_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values, neither checked nor built: it was when the run began.

    Section by section, and an equal section only once: the configs of a hundred runs are equal but for a few lines.
    Raises GptlabError where it is not a config.
    """
    values: dict[str, Any] = {}
    for section in re.split(r"^(?=\S)", path.read_text(encoding="utf-8"), flags=re.M):
        if section.strip():
            values |= _parse_section(section, str(path.name), str(path))
    if not isinstance(values.get("train"), dict) or not {"tokens", "batch_tokens"} <= set(values["train"]):
        raise GptlabError(f"{path}: no train.tokens and train.batch_tokens; this is not the config of a run")
    return values


def _parse_section(section: str, file: str, path: str) -> dict[str, Any]:
    try:
        return _parsed(section, file)
    except GptlabError as error:
        raise GptlabError(f"{path}: damaged, {error}; restore it from the config that was trained") from None


@functools.cache
def _parsed(section: str, file: str) -> dict[str, Any]:
    values, _ = parse_yaml(section, file)
    if values is not None and not isinstance(values, dict):
        raise GptlabError("not a mapping")
    return values or {}


# ---------------------------------------------------------------- top-k accuracy


def _read_top_k(folder: Path) -> dict[int, float]:
    found = read_evaluation(folder, "topk")
    if found is None or outdated(found, folder):
        return {}
    try:
        return {k: float(found.results[f"top_{k}"]) for k in TOP_K}
    except (ValueError, KeyError, TypeError):
        raise GptlabError(
            f"{folder / 'evals' / 'topk.json'}: damaged; run `gptlab eval {folder} --tasks topk` again"
        ) from None


def measure_top_k(folders: Sequence[Path], ks: Sequence[int]) -> None:
    """Evaluate top-k accuracy (evals/topk.json) by `gptlab eval` in a process of its own, where a run has none of its
    weights and all of its text.

    Raises GptlabError for a k that is not measured, and with its last line where the evaluation fails.
    """
    for k in ks:
        if k not in TOP_K:
            raise GptlabError(f"{option('top_k', k)}: measured are {', '.join(map(str, TOP_K))}; choose among them")
    missing = [folder for folder in folders if not _read_top_k(folder)]
    if missing:
        say(f"measuring top-k accuracy of {len(missing)} runs")
        command = [sys.executable, "-m", "gptlab", "eval", *map(str, missing), "--tasks", "topk"]
        with waiting("top-k accuracy"):
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
            raise GptlabError(f"top-k accuracy: {last}")
    check_alike(folders)


def check_alike(folders: Sequence[Path]) -> None:
    """Raise GptlabError where the top-k accuracies of two runs were read from different things."""
    found = ((folder, read_evaluation(folder, "topk")) for folder in folders)
    if unlike := unlike_pair((folder, None if one is None else one.identity) for folder, one in found):
        folder, first, difference = unlike
        raise GptlabError(
            f"{folder} and {first}: top-k accuracies of different things, {difference}; compare them without "
            f"{option('top_k')}, "
            f"or evaluate both on one {option('data')} and {option('sequence_length')}"
        )


# ---------------------------------------------------------------- what is said


def table(runs: Sequence[RunSummary], metric: str = "loss", ks: Sequence[int] = ()) -> Table:
    """A row a run; they are numbered in the order given."""
    header = ["", "run", "state", "parameters", "tokens", "FLOPs", metric, "best", "bits/byte"]
    header += ["time", "tokens/s", "memory", *(f"top-{k}" for k in ks)]
    return Table(header, [[str(number), *_row(run, ks)] for number, run in enumerate(runs, start=1)], left=3)


def _row(run: RunSummary, ks: Sequence[int]) -> list[str]:
    facts = run.facts
    speed = run.tokens / run.seconds if run.seconds else None
    return [
        run.name,
        run.state,
        NONE if facts is None else format_count(facts.parameters),
        format_count(run.tokens),
        NONE if facts is None else f"{facts.flops:.3g}",
        *(NONE if value is None else f"{value:.4f}" for value in (run.final, run.best, run.bits_per_byte)),
        NONE if run.seconds is None else format_seconds(run.seconds),
        NONE if speed is None else f"{speed:,.0f}",
        NONE if facts is None else format_bytes(facts.peak_memory_bytes),
        *(f"{100 * run.top_k[k]:.2f}%" if k in run.top_k else NONE for k in ks),
    ]


def unlike_lines(runs: Sequence[RunSummary], metric: str = "loss") -> Iterator[str]:
    """Which runs' metric was read from something else than that of the first of which that is known, and in what they
    differ: such numbers stand in one table, and say nothing of each other."""
    if not (key := METRICS.get(metric, metric)).startswith("val/"):
        return
    first, unlike = unlike_first([run.identity for run in runs], by_byte=key == "val/bits_per_byte")
    for what, numbers in unlike.items():
        yield f"do not compare {metric} of {format_ranges([n + 1 for n in numbers])} with that of {first + 1}: {what}"


def config_differences(runs: Sequence[RunSummary]) -> list[tuple[str, list[tuple[str, list[int]]]]]:
    """(key, [(value, numbers of the runs that have it)]) for every key of the configs that is not equal in all."""
    first: Mapping[str, Any] = {}
    for run in runs:  # sections that a run lacks say nothing of it
        first = {**run.config, **first}
    keys: dict[str, None] = {}
    for run in runs:
        differences = difference(first, {**first, **run.config})
        keys |= dict.fromkeys(key for key, _, _ in differences if key != "name")
    # Where a slot holds another component in one run, the slot differs, not one or another of its arguments.
    whole = [key for key in keys if not any(key.startswith(f"{other}.") for other in keys)]
    found = []
    for key in whole:
        values: dict[str, list[int]] = {}
        for number, run in enumerate(runs, start=1):
            known = key.partition(".")[0] in run.config
            values.setdefault(_format_value(_lookup(run.config, key)) if known else NONE, []).append(number)
        found.append((key, list(values.items())))
    return found


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {_format_value(item)}" for key, item in value.items() if key != "use")
        name = str(value.get("use", ""))
        return f"{name}({inner})" if name and inner else name or f"{{{inner}}}"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def config_lines(runs: Sequence[RunSummary]) -> Iterator[str]:
    """The differences, a line a key: `optimizer.lr: 0.02 (1-3), 0.04 (4)`."""
    for key, values in config_differences(runs):
        if len(values) > MAX_VALUES:
            yield f"{key}: {len(values)} different values, from {values[0][0]} (1) to {values[-1][0]}"
        else:
            yield f"{key}: " + ", ".join(f"{value} ({format_ranges(numbers)})" for value, numbers in values)


def format_ranges(numbers: Sequence[int]) -> str:
    """1-3, 7 for 1, 2, 3, 7."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)


# ---------------------------------------------------------------- pictures and files


def curves(runs: Sequence[RunSummary], kind: str, metric: str = "loss", *, dark: bool = False) -> bytes:
    """The metric (and the training loss, thin, where the metric is a loss) against tokens and seconds of training."""
    return image(lambda figure, _: _draw_curves(runs, metric, figure), kind, dark=dark)


def _draw_curves(runs: Sequence[RunSummary], metric: str, figure: Figure) -> None:
    figure.set_size_inches(9.5, 3.6)
    axes: list[Axes] = list(figure.subplots(1, 2, sharey=True))
    with_train = METRICS.get(metric, metric) == "val/loss"
    shades, few = _shades(len(runs)), len(runs) <= _MAX_LABELLED
    for place, (ax, label) in enumerate(zip(axes, ("tokens", "seconds of training"), strict=True)):
        if with_train:
            _add_lines(ax, [_few_points(run.train, place, len(runs)) for run in runs], shades, lw=0.7, alpha=0.6)
        _add_lines(ax, [_few_points(run.curve, place, len(runs)) for run in runs], shades, lw=1.4)
        for shade, run in zip(shades, runs if few else (), strict=False):
            ax.plot(run.curve[place], run.curve[2], "o", color=shade, ms=3)
        ax.autoscale_view()
        ax.set_xlabel(label)
        (few_ticks if label.startswith("seconds") else count_axis)(ax)
    axes[0].set_ylabel(metric)
    rows = [(run.train[2] if with_train else run.curve[2], run.curve[2]) for run in runs]
    if any(len(values) for pair in rows for values in pair):
        axes[0].set_ylim(*loss_limits(rows))
    if few:
        _name_runs(axes[1], runs, shades)


def _few_points(series: tuple[Array, Array, Array], place: int, runs: int) -> Array:
    """(points, 2): x and y of a line, no more than are this run's share of the picture."""
    most = max(50, PICTURE_POINTS // runs)
    keep = np.unique(np.linspace(0, max(len(series[2]) - 1, 0), min(most, len(series[2]))).astype(int))
    return np.column_stack((series[place][keep], series[2][keep]))


def _add_lines(ax: Axes, lines: Sequence[Array], shades: Sequence[Any], *, lw: float, alpha: float = 1.0) -> None:
    """All as one artist: a hundred runs are a hundred paths, not a hundred lines to lay out."""
    from matplotlib.collections import LineCollection

    ax.add_collection(LineCollection(lines, colors=shades, linewidths=lw, alpha=alpha))


def _name_runs(ax: Axes, runs: Sequence[RunSummary], shades: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=shade, marker="o", ms=3, lw=1.4, label=f"{number}  {run.name}")
        for number, (shade, run) in enumerate(zip(shades, runs, strict=True), start=1)
    ]
    ax.legend(handles=keys, frameon=False, fontsize=7)


def _shades(count: int) -> list[Any]:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.9 * number / (count - 1)) for number in range(count)]


def write_comparison(runs: Sequence[RunSummary], folder: Path, metric: str = "loss", ks: Sequence[int] = ()) -> None:
    """Write comparison.html, comparison.csv and curves.png into `folder`."""
    shown = table(runs, metric, ks)
    rows = [
        (key, *(f"{value} ({format_ranges(numbers)})" for value, numbers in found))
        for key, found in config_differences(runs)
    ]
    width = max((len(row) for row in rows), default=1)
    blocks: list[Block] = [
        Heading(f"{len(runs)} runs", 1),
        shown,
        *map(Paragraph, unlike_lines(runs, metric)),
        Picture("curves", f"{metric}; thin lines: training loss, smoothed. The steep beginning is cut off."),
        Heading("In what their configs differ"),
        Table(["key", *[""] * (width - 1)], [[*row, *[""] * (width - len(row))] for row in rows], left=width)
        if rows
        else Paragraph("In nothing."),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", *shown.header[1:]])
    writer.writerows(["" if cell == NONE else cell for cell in row] for row in shown.rows)
    html = page.render(blocks, "comparison of runs", lambda _, dark: curves(runs, "svg", metric, dark=dark))
    contents: dict[str, str | bytes] = {
        "comparison.html": html,
        "comparison.csv": text.getvalue(),
        "curves.png": curves(runs, "png", metric),
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
