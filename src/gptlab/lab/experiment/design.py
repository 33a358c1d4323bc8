"""The runs that an experiment consists of: the comparison, the tuning grid, the compute curve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gptlab.config.load import override
from gptlab.lab.experiment.spec import Arm, Experiment, apply_tuning, hash_of, with_seed
from gptlab.lab.runs.store import RunSpec


def comparison_run(experiment: Experiment, arm: Arm, seed: int) -> RunSpec:
    """The run of an arm with a seed."""
    metric = experiment.statement.metric
    tasks = (metric.accuracy,) if metric.accuracy else ()
    grading = None if metric.grade is None else metric.grade.request
    return RunSpec(arm.seeded(seed), arm.hash, f"{arm.name} seed {seed}", tasks, arm.name, experiment.name, grading)


def tuning_runs(experiment: Experiment) -> Iterator[tuple[str, int, RunSpec]]:
    """(arm, index of the grid point, run) for every tuning run: the same grid and seeds for every arm."""
    for number, point in enumerate(experiment.grid):
        for seed in experiment.statement.tune_seeds:
            for arm in experiment.all_arms:
                setting = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
                run = comparison_run(experiment, apply_tuning(arm, point), seed)
                yield arm.name, number, replace(run, label=f"tune {arm.name} {setting} seed {seed}")


def curve_runs(experiment: Experiment, baseline: Arm) -> Iterator[RunSpec]:
    """The baseline at the lengths of `compute_curve`."""
    curve = experiment.statement.compute_curve
    for tokens in curve.tokens if curve is not None else ():
        config = override(baseline.config, [f"train.tokens={tokens}"], {})
        digest = hash_of(config)
        for seed in curve.seeds if curve is not None else ():
            seeded = with_seed(config, init=seed, data=seed, dropout=seed)
            yield RunSpec(seeded, digest, f"baseline, {tokens} tokens, seed {seed}", arm=baseline.name)
