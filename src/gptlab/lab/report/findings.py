"""The findings of an experiment: everything that a report or a paper says of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.config.jsonfile import read_json
from gptlab.errors import GptlabError
from gptlab.lab.experiment.evidence import Evidence, evaluate_experiment
from gptlab.lab.experiment.ledger import COMPARISON, TUNING, Ledger, RunRecord
from gptlab.lab.experiment.spec import BASELINE, Experiment
from gptlab.lab.runs.store import Store
from gptlab.lab.stats.power_law import ComputeEquivalent, compute_equivalent, fit_power_law
from gptlab.planning.records import PredictionRatios, compare_prediction
from gptlab.record.metrics import read_columns

Array = NDArray[np.float64]


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
    """The findings of an experiment.

    Attributes:
        evidence: pairs, statistics and verdicts.
        runs: all finished and diverged runs, those of the comparison first.
        predictions: predicted divided by actual, of the runs for which something was predicted.
        statement: the text of experiment.yaml.
        older_than_runs: whether the file was last written before the first run of an arm began; None without a run.
    """

    evidence: Evidence
    runs: list[RunRecord]
    predictions: list[PredictionRatios]
    statement: str
    older_than_runs: bool | None

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.evidence.experiment

    @functools.cached_property
    def equivalents(self) -> dict[str, ComputeEquivalent | str]:
        """By arm, its difference as compute, or why it cannot be converted; empty without a compute curve."""
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
        """The cost of all finished runs; None where a price is not known."""
        finished = [run for run in self.runs if run.facts is not None]
        known = [run.dollars for run in finished if run.dollars is not None]
        return sum(known) if known and len(known) == len(finished) else None

    def finished_runs(self, arm: str, use: str = COMPARISON) -> list[RunRecord]:
        """The finished runs of an arm for a use."""
        return [run for run in self.runs if run.arm == arm and run.use == use and run.value is not None]


def read_findings(experiment: Experiment, store: Store) -> Findings:
    """Read everything that a report says of an experiment: its runs, what was predicted of them, its statement.

    Raises GptlabError for a run whose files are damaged or gone.
    """
    ledger = Ledger.read(experiment, store)
    runs = used_runs(ledger)
    path = experiment.folder / "experiment.yaml"
    return Findings(
        evidence=evaluate_experiment(ledger),
        runs=runs,
        predictions=[compare_prediction(r.folder) for r in runs if r.facts and (r.folder / "plan.json").is_file()],
        statement=path.read_text(encoding="utf-8"),
        older_than_runs=_is_older(path, runs),
    )


def used_runs(ledger: Ledger) -> list[RunRecord]:
    """The runs that are finished or diverged, each once: those of the comparison first, then tuning, then the curve."""
    by_folder: dict[Path, RunRecord] = {}
    for record in ledger.records:
        by_folder.setdefault(record.folder, record)
    return [record for record in by_folder.values() if not record.is_missing]


def _equivalents(evidence: Evidence, runs: Sequence[RunRecord]) -> dict[str, ComputeEquivalent | str]:
    """Each arm's difference in loss as compute on the baseline's power law."""
    statement = evidence.experiment.statement
    metric = statement.metric
    if statement.compute_curve is None or metric.key != "val/loss" or not metric.is_logged:
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


def _is_older(path: Path, runs: Sequence[RunRecord]) -> bool | None:
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
        values: dict[str, Any] = read_json(
            folder / "report.json", dict[str, Any], mend="write it again with `gptlab report`"
        )
        return str(values["statement"]["first_reported"])
    except (OSError, ValueError, KeyError, TypeError, GptlabError):
        return None
