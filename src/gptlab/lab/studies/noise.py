"""Seed noise: the variance between runs of one config, by its source.

Three groups of runs, which share one: `initialization` varies only seed.init (and the seed of dropout with it), `data
order` varies only seed.data, `hardware` repeats one and the same seed. A fourth, `together`, costs nothing: the runs of
this config with seed 1, 2, 3, … that experiments have trained already.

The variance of a group is that of its own luck plus that of the hardware, which is in every run. So
    initialization = s²(initialization) - s²(hardware), not below 0, and so for data order;
    total = initialization + data order + hardware, as if luck of both kinds only added up.
Intervals are generalized confidence intervals (Weerahandi 1993): every s² of f degrees of freedom is replaced by draws
of f s² / chi²(f), and the same sums are taken of the draws. Where the hardware adds nothing this is the exact
chi-square interval. Noise is taken as normal.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptlab.config import RunConfig
from gptlab.config.jsonfile import parse_json, read_json
from gptlab.config.numbers import require_count
from gptlab.errors import GptlabError, option
from gptlab.files import write_atomic
from gptlab.lab.experiment.metric import Metric, check_alike
from gptlab.lab.experiment.spec import hash_of, with_seed
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.plotting import COLOURS, GREY, image
from gptlab.seal import sealed_json
from gptlab.shown import Sheet, Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

BASE_SEED = 1
INITIALIZATION, DATA, HARDWARE, TOGETHER = "initialization", "data order", "hardware", "together"
_DRAWS = 100_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class VarianceComponent:
    """A variance, in squared units of the metric, with its 95% interval.

    `freedom`: the degrees of freedom of the group that it was taken from; the least of its parts' for a sum.
    """

    variance: float
    low: float
    high: float
    freedom: int

    @property
    def sd(self) -> float:
        """The standard deviation, in units of the metric."""
        return math.sqrt(self.variance)

    @property
    def sd_interval(self) -> tuple[float, float]:
        """The interval of the standard deviation."""
        return math.sqrt(self.low), math.sqrt(self.high)


@dataclass(frozen=True, repr=False)
class NoiseEstimate(Shown):
    """The seed noise of a config.

    Attributes:
        name, hash: of the config.
        metric: its label, with the unit.
        groups: the metric of each run, by the name of the group; the first of each is the shared run.
        components: initialization, data order, hardware and total.
    """

    name: str
    hash: str
    metric: str
    groups: dict[str, list[float]]
    components: dict[str, VarianceComponent]

    def sheet(self) -> Sheet:
        """The standard deviation that each source of luck brings, with its interval."""
        rows = [
            [name, *(f"{value:.4g}" for value in (one.sd, *one.sd_interval))] for name, one in self.components.items()
        ]
        return Sheet(f"seed noise of {self.name}: {self.metric}", rows, ("source", "sd", "from", "to"))

    @property
    def total(self) -> VarianceComponent:
        """The variance of a run whose seeds all differ from another's."""
        return self.components["total"]

    @property
    def paired_sd(self) -> float:
        """The standard deviation expected of a paired difference: sqrt(2) times that of a run.

        That is for arms that share a seed's number but none of its luck. What a baseline alone cannot tell is how much
        luck they share; where they do, differences are less noisy than this.
        """
        return math.sqrt(2) * self.total.sd


@dataclass(frozen=True)
class NoiseDesign:
    """The runs that an estimate needs: those in the store by group, and the repeats, each in a store of its own."""

    config: RunConfig
    hash: str
    groups: dict[str, list[RunSpec]]
    repeats: list[tuple[RunSpec, Store]]

    @property
    def runs(self) -> list[RunSpec]:
        """The runs of the store, each once."""
        return list({run.suffix: run for group in self.groups.values() for run in group}.values())


def design_noise_runs(
    config: RunConfig, store: Store, *, seeds: int, repeats: int, tasks: tuple[str, ...] = ()
) -> NoiseDesign:
    """Which runs to train: `seeds` a group with one of them shared, and one run `repeats` times in all. `tasks`: what
    the runs of the store are evaluated on then.

    Raises GptlabError for fewer than two of either.
    """
    for name, number in (("seeds", seeds), ("repeats", repeats)):
        if number < 2:
            raise GptlabError(
                f"{option(name, number)}: the spread of one run cannot be seen; give 2 or more (seeds: 8)"
            )
        require_count(name, number, "runs")
    digest = hash_of(config)

    def run(label: str, init: int, data: int) -> RunSpec:
        return RunSpec(with_seed(config, init=init, data=data, dropout=init), digest, label, tasks)

    base = run("the shared run", BASE_SEED, BASE_SEED)
    others = range(BASE_SEED + 1, BASE_SEED + seeds)
    return NoiseDesign(
        config=config,
        hash=digest,
        groups={
            INITIALIZATION: [base, *(run(f"initialization {seed}", seed, BASE_SEED) for seed in others)],
            DATA: [base, *(run(f"data order {seed}", BASE_SEED, seed) for seed in others)],
        },
        repeats=[
            # The same config and seed is the same folder, so that a repeat needs another root.
            (RunSpec(base.config, digest, f"repeat {number}"), Store(_folder(store) / digest / str(number)))
            for number in range(2, repeats + 1)
        ],
    )


def estimate_noise(plan: NoiseDesign, store: Store, metric: Metric) -> NoiseEstimate:
    """The noise of finished runs. Raises GptlabError where one is missing or lacks the metric."""
    known = (store.finished(run) for run in itertools.chain(*plan.groups.values()))
    check_alike(metric, [folder for folder in known if folder is not None])
    groups = {name: [_value(run, store, metric) for run in runs] for name, runs in plan.groups.items()}
    base = groups[INITIALIZATION][0]
    groups[HARDWARE] = [base, *(_value(run, where, metric) for run, where in plan.repeats)]
    together = [base, *_fully_reseeded_values(plan, store, metric)]
    if len(together) > 1:
        groups[TOGETHER] = together
    return NoiseEstimate(plan.config.name, plan.hash, metric.label, groups, variance_components(groups))


def variance_components(groups: Mapping[str, Sequence[float]]) -> dict[str, VarianceComponent]:
    """The components of variance of three groups of runs (see the module's text). Raises GptlabError for one run."""
    variance, draws, freedom = {}, {}, {}
    rng = np.random.default_rng(0)
    for name in (INITIALIZATION, DATA, HARDWARE):
        values = np.asarray(groups[name], dtype=np.float64)
        if len(values) < 2:
            raise GptlabError(f"{name}: the spread of one run cannot be seen; train 2 or more")
        freedom[name] = len(values) - 1
        variance[name] = float(values.var(ddof=1))
        draws[name] = freedom[name] * variance[name] / rng.chisquare(freedom[name], _DRAWS)
    for name in (INITIALIZATION, DATA):
        variance[name] = max(0.0, variance[name] - variance[HARDWARE])
        draws[name] = np.maximum(0.0, draws[name] - draws[HARDWARE])
    variance["total"], draws["total"] = sum(variance.values()), sum(draws.values(), start=np.zeros(_DRAWS))
    freedom["total"] = min(freedom[INITIALIZATION], freedom[DATA])
    tail = (1 - _CONFIDENCE) / 2
    found = {}
    for name, value in variance.items():
        low, high = np.quantile(draws[name], [tail, 1 - tail])
        found[name] = VarianceComponent(value, float(low), float(high), freedom[name])
    return found


def _value(run: RunSpec, store: Store, metric: Metric) -> float:
    folder = store.finished(run)
    if folder is None:
        raise GptlabError(f"{run.label} is not finished in {store.root}; the same command goes on with it")
    return metric.value(folder)


def _fully_reseeded_values(plan: NoiseDesign, store: Store, metric: Metric) -> list[float]:
    """The metric of finished runs that differ from the shared one in all seeds."""
    found = []
    for folder in sorted(store.root.glob(f"*-{plan.hash}-seed*")):
        seed = folder.name.rpartition("-seed")[2]
        if seed.isdigit() and int(seed) != BASE_SEED and store.is_finished(folder):
            found.append(metric.value(folder))
    return found


# ---------------------------------------------------------------- the estimate on disk


def _folder(store: Store) -> Path:
    return store.root / ".noise"


def noise_path(store: Store, digest: str) -> Path:
    """Where the estimate of a config is kept, by its hash."""
    return _folder(store) / f"{digest}.json"


def write_noise(store: Store, noise: NoiseEstimate) -> list[Path]:
    """Write the estimate and its picture; returns their paths."""
    path = noise_path(store, noise.hash)
    write_atomic(path, sealed_json({"schema": 1, **asdict(noise)}))
    picture = path.with_suffix(".png")
    write_atomic(picture, image(lambda figure, paint: _draw(noise, figure, paint), "png"))
    return [path, picture]


def read_noise(store: Store, digest: str) -> NoiseEstimate | None:
    """The noise estimate of a config, None where there is none. Raises GptlabError where it is damaged."""
    path = noise_path(store, digest)
    try:
        values = read_json(path, dict[str, Any], mend="delete it")
        if values.pop("schema", None) != 1:
            raise ValueError
        return parse_json(json.dumps(values), NoiseEstimate)
    except FileNotFoundError:
        return None
    except (ValueError, GptlabError):
        raise GptlabError(f"{path}: damaged; delete it and run `gptlab noise` again, which trains nothing") from None


# ---------------------------------------------------------------- for people


def table(noise: NoiseEstimate) -> list[tuple[str, str, str, str, str]]:
    """Source, runs, standard deviation, its 95% interval, and the share of the total variance."""
    rows = []
    for name, part in noise.components.items():
        low, high = part.sd_interval
        share = f"{100 * part.variance / noise.total.variance:.0f}%" if noise.total.variance else "-"
        runs = str(len(noise.groups[name])) if name in noise.groups else ""
        rows.append((name, runs, f"{part.sd:.4g}", f"{low:.3g} to {high:.3g}", share))
    if TOGETHER in noise.groups:
        values = np.asarray(noise.groups[TOGETHER])
        rows.append(("total, seen directly", str(len(values)), f"{values.std(ddof=1):.4g}", "", ""))
    return rows


def remarks(noise: NoiseEstimate) -> list[str]:
    """Remarks beside the table."""
    found = [
        f"a paired difference is expected to vary by {noise.paired_sd:.3g} (1.41 × total), less if arms share luck"
    ]
    if noise.components[HARDWARE].variance == 0:
        found.append("hardware adds exactly nothing: repeats came to the same number")
    low, high = noise.total.sd_interval
    if noise.total.variance:
        found.append(
            f"{noise.total.freedom + 1} seeds tell the total to between {low / noise.total.sd:.2f} and "
            f"{high / noise.total.sd:.2f} times what is shown"
        )
    return found


def _draw(noise: NoiseEstimate, figure: Figure, paint: dict[str, str]) -> None:
    """A dot a run, a row a group; the shared run is the grey line."""
    names = list(noise.groups)
    figure.set_size_inches(7, 0.9 + 0.55 * len(names))
    axes = figure.subplots()
    axes.axvline(noise.groups[names[0]][0], color=GREY, linewidth=1, zorder=1)
    for row, name in enumerate(names):
        values: Array = np.asarray(noise.groups[name])
        colour = COLOURS[row % len(COLOURS)]
        sd = values.std(ddof=1)
        axes.barh(row, 2 * sd, left=values.mean() - sd, height=0.5, color=colour, alpha=0.15, linewidth=0)
        axes.scatter(values, np.full(len(values), row), color=colour, s=26, alpha=0.8, linewidths=0, zorder=3)
    axes.set_yticks(range(len(names)), [f"{name} ({len(noise.groups[name])})" for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(noise.metric)
    axes.set_title(f"{noise.name}: a dot a run, bands of ±1 standard deviation", fontsize=9, loc="left")
