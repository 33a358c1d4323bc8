"""Everything that a report or a paper says of an experiment, read once from its runs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.errors import GptlabError
from gptlab.lab.experiment.evidence import Evidence, choose, curve_runs, gather, run_dollars, run_of, tuning_runs
from gptlab.lab.experiment.spec import BASELINE, Experiment, tuned
from gptlab.lab.runs.store import Store, Wanted
from gptlab.lab.stats.power_law import ComputeEquivalent, compute_equivalent, fit_power_law
from gptlab.planning.plan import Comparison, compare_prediction
from gptlab.record.facts import Facts, read_facts
from gptlab.record.metrics import read_columns
from gptlab.record.runfolder import read_sessions

Array = NDArray[np.float64]

COMPARISON, TUNING, CURVE = "comparison", "tuning", "compute curve"


@dataclass(frozen=True)
class Ran:
    """A run that the experiment has used, or that failed.

    Attributes:
        use: comparison, tuning or compute curve.
        arm, seed: whose it is.
        value: its metric; None for a run that failed.
        facts: None for a run that failed before it had any.
        started: when its first session began, ISO 8601; empty where env.json does not say.
        commit: the commit that it was trained at; empty outside a repository.
        failure: why it could not be finished; empty for a finished run.
    """

    use: str
    arm: str
    seed: int
    folder: Path
    value: float | None
    facts: Facts | None
    started: str
    commit: str
    failure: str


@dataclass(frozen=True)
class Curve:
    """The losses of a run as they were logged; `at` is in tokens, and rows without the loss are left out."""

    arm: str
    seed: int
    train_tokens: Array
    train_seconds: Array
    train_loss: Array
    val_tokens: Array
    val_seconds: Array
    val_loss: Array
    flops_per_token: float


@dataclass(frozen=True)
class Findings:
    """What is known of an experiment.

    Attributes:
        evidence: pairs, statistics and verdicts.
        runs: all runs, failed ones too, those of the comparison first.
        predictions: predicted against actual, of the runs for which something was predicted.
        statement: the text of experiment.yaml.
        older_than_runs: whether the file was last written before the first run of an arm began; None without a run.
    """

    evidence: Evidence
    runs: list[Ran]
    predictions: list[Comparison]
    statement: str
    older_than_runs: bool | None

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.evidence.experiment

    @functools.cached_property
    def equivalents(self) -> dict[str, ComputeEquivalent | str]:
        """By arm, what its difference is worth in compute, or why nobody can say; empty without a compute curve."""
        return _equivalents(self.evidence, self.runs)

    @property
    def statement_hash(self) -> str:
        """SHA-256 of experiment.yaml, sixteen digits of it."""
        return hashlib.sha256(self.statement.encode()).hexdigest()[:16]

    @property
    def last_run(self) -> str:
        """The day on which the youngest run began; empty without one."""
        return max((run.started for run in self.runs), default="")[:10]

    @property
    def seconds(self) -> float:
        """Wall time of all finished runs, one after another."""
        return sum(run.facts.wall_seconds for run in self.runs if run.facts is not None)

    @property
    def dollars(self) -> float | None:
        """What all runs have cost; None where a price is not known."""
        costs = [run_dollars(self.experiment, run.facts) for run in self.runs if run.facts is not None]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if known and len(known) == len(costs) else None

    def of(self, arm: str, use: str = COMPARISON) -> list[Ran]:
        """The finished runs of an arm."""
        return [run for run in self.runs if run.arm == arm and run.use == use and run.value is not None]


def find(experiment: Experiment, store: Store) -> Findings:
    """Read the runs of an experiment. Raises GptlabError for a run whose files are damaged or gone."""
    for use, arm, wanted in _metrics_needed(experiment, store):
        if (folder := store.finished(wanted)) is not None:
            _require_metrics(
                folder, f"{use} {arm}".removeprefix(COMPARISON).strip() + f" seed {wanted.config.seed.data}"
            )
    evidence = gather(experiment, store)
    runs = list(_runs(evidence, store))
    path = experiment.folder / "experiment.yaml"
    return Findings(
        evidence=evidence,
        runs=runs,
        predictions=[compare_prediction(r.folder) for r in runs if r.facts and (r.folder / "plan.json").is_file()],
        statement=path.read_text(encoding="utf-8"),
        older_than_runs=_older(path, runs),
    )


def _require_metrics(folder: Path, whose: str) -> None:
    """Raise GptlabError where a finished run has lost its metrics."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise GptlabError(
            f"the number of {whose!r} lost its source: {path} is gone; restore it, or move {folder.name} out of "
            f"{folder.parent} and train it again"
        )


def _metrics_needed(experiment: Experiment, store: Store) -> Iterator[tuple[str, str, Wanted]]:
    """(use, arm, run); those of a tuned arm are known once the tuning runs have been looked at."""
    for arm, _, wanted in tuning_runs(experiment):
        yield TUNING, arm, wanted
    choices = choose(experiment, store)
    if choices or not experiment.grid:
        for each in experiment.all_arms:
            arm_ = tuned(each, choices[each.name].point) if choices else each
            for seed in experiment.statement.all_seeds:
                yield COMPARISON, each.name, run_of(experiment, arm_, seed)


def _runs(evidence: Evidence, store: Store) -> Iterator[Ran]:
    experiment = evidence.experiment
    arms = [evidence.baseline, *(found.arm for found in evidence.arms)]
    wanted: list[tuple[str, str, Wanted]] = []
    if evidence.choices or not experiment.grid:
        for arm in arms:
            wanted += [(COMPARISON, arm.name, run_of(experiment, arm, s)) for s in experiment.statement.all_seeds]
    wanted += [(TUNING, arm, run) for arm, _, run in tuning_runs(experiment)]
    wanted += [(CURVE, BASELINE, run) for run in curve_runs(experiment, evidence.baseline)]
    seen: set[Path] = set()
    for use, name, run in wanted:
        folder = store.folder(run)
        if folder in seen:
            continue
        seen.add(folder)
        failed = store.failure(folder)
        if store.finished(run) is None and failed is None:
            continue
        finished = store.finished(run) is not None
        sessions = read_sessions(folder)
        yield Ran(
            use=use,
            arm=name,
            seed=run.config.seed.data,
            folder=folder,
            value=experiment.statement.metric.value(folder) if finished else None,
            facts=read_facts(folder) if finished else None,
            started=str(sessions[0].get("started", "")) if sessions else "",
            commit=str((sessions[-1].get("git") or {}).get("commit", "")) if sessions else "",
            failure="" if finished or failed is None else failed.reason,
        )


def _equivalents(evidence: Evidence, runs: Sequence[Ran]) -> dict[str, ComputeEquivalent | str]:
    """What each arm's difference in loss is worth in compute."""
    statement = evidence.experiment.statement
    metric = statement.metric
    derived = (metric.accuracy, metric.tokens_to, metric.seconds_to)
    if statement.compute_curve is None or metric.key != "val/loss" or derived != (None, None, None):
        return {}
    points = [
        (run.facts.flops, run.value)
        for run in runs
        if run.arm == BASELINE and run.use != TUNING and run.value is not None and run.facts is not None
    ]
    found: dict[str, ComputeEquivalent | str] = {}
    try:
        fit = fit_power_law([flops for flops, _ in points], [loss for _, loss in points])
    except GptlabError as error:
        return {arm.arm.name: str(error) for arm in evidence.arms if arm.pairs}
    for arm in evidence.arms:
        if arm.pairs:
            try:
                found[arm.arm.name] = compute_equivalent(
                    fit, [b.value for _, b in arm.pairs], [a.value for a, _ in arm.pairs]
                )
            except GptlabError as error:
                found[arm.arm.name] = str(error)
    return found


def _older(path: Path, runs: Sequence[Ran]) -> bool | None:
    """Whether the statement was last written before the first run of an arm; a copy of the file looks younger."""
    from datetime import datetime

    own = [run.started for run in runs if run.arm != BASELINE and run.started]
    if not own:
        return None
    return path.stat().st_mtime <= min(datetime.fromisoformat(start).timestamp() for start in own)


def read_curves(findings: Findings) -> list[Curve]:
    """The losses of the comparison's finished runs, baseline first."""
    keys = ("tokens", "seconds", "train/loss", "val/loss")
    curves = []
    for run in findings.runs:
        if run.use != COMPARISON or run.facts is None:
            continue
        row = read_columns(run.folder / "metrics.jsonl", keys)
        train, val = ~np.isnan(row["train/loss"]), ~np.isnan(row["val/loss"])
        curves.append(
            Curve(
                arm=run.arm,
                seed=run.seed,
                train_tokens=row["tokens"][train],
                train_seconds=row["seconds"][train],
                train_loss=row["train/loss"][train],
                val_tokens=row["tokens"][val],
                val_seconds=row["seconds"][val],
                val_loss=row["val/loss"][val],
                flops_per_token=run.facts.flops_per_token,
            )
        )
    return curves


def first_hash(folder: Path) -> str | None:
    """The hash of the statement when the first report was written; None where there is no earlier report."""
    try:
        values: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return str(values["statement"]["first_reported"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
