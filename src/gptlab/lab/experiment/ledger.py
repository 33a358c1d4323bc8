"""The ledger: every run of an experiment, read from disk once.

`Ledger.read` is the only place where run folders are opened. Verdicts, the run queue, cost estimates and reports are
functions of the ledger, so that all of them speak of the same moment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError
from gptlab.hardware.gpus import gpu_of_driver, read_gpus
from gptlab.lab.experiment.design import comparison_run, curve_runs, tuning_runs
from gptlab.lab.experiment.spec import Arm, Experiment, apply_tuning
from gptlab.lab.experiment.tuning import TuningChoice, select_tuning
from gptlab.lab.runs.store import GRADE, RunSpec, Store, is_evaluated
from gptlab.record.facts import Facts, read_facts
from gptlab.record.measurement import Identity, unlike_pair
from gptlab.record.runfolder import FACTS, Failure, Session, State, read_failure, read_sessions, state

COMPARISON, TUNING, CURVE = "comparison", "tuning", "compute curve"
"""What a run is for."""


@dataclass(frozen=True)
class RunRecord:
    """A run as it was on disk when the ledger was read.

    Attributes:
        use: COMPARISON, TUNING or CURVE.
        finished: whether it is trained to its end and evaluated on its tasks.
        value: its metric; None unless finished, and for a compute curve whose metric is not logged.
        identity: what the metric was read from; None unless finished, and where that is not known.
        resolution: the step in which the metric is counted; 0 where it has none.
        parts: the numbers that the metric is the mean of; empty where it is no such mean.
        facts: what it was and cost; None unless finished.
        dollars: what it cost; None unless finished, and where no price is known.
        failure: how it diverged; None where it did not.
        lost: it was finished once, and its folder is another run's by now (extended by gptlab before 0.4).
        started: when its first session began, ISO 8601; empty where env.json does not say.
        commit: the commit that it was last trained at; empty outside a repository.
    """

    use: str
    spec: RunSpec
    folder: Path
    finished: bool
    value: float | None = None
    identity: Identity | None = None
    resolution: float = 0.0
    parts: tuple[float, ...] = ()
    facts: Facts | None = None
    dollars: float | None = None
    failure: Failure | None = None
    lost: bool = False
    started: str = ""
    commit: str = ""

    @property
    def arm(self) -> str:
        """The name of its arm."""
        return self.spec.arm

    @property
    def seed(self) -> int:
        """The seed by which it is paired."""
        return self.spec.config.seed.data

    @property
    def is_missing(self) -> bool:
        """Whether it is still to be trained or evaluated. A run that diverged would diverge again."""
        return not self.finished and self.failure is None


@dataclass(frozen=True)
class Ledger:
    """Every run of an experiment at one moment.

    Attributes:
        choices: each arm's tuning choice; empty where nothing is tuned, and until every tuning run has ended.
        baseline, arms: as they are compared, tuned by `choices`.
        comparison: by arm (the baseline among them) and seed; empty until every tuning run has ended.
        tuning: all tuning runs.
        curve: the baseline at the lengths of `compute_curve`.
    """

    experiment: Experiment
    choices: Mapping[str, TuningChoice]
    baseline: Arm
    arms: list[Arm]
    comparison: Mapping[str, Mapping[int, RunRecord]]
    tuning: list[RunRecord]
    curve: list[RunRecord]

    @classmethod
    def read(cls, experiment: Experiment, store: Store) -> Ledger:
        """Read every run of `experiment` in `store`, each once.

        Raises GptlabError for a run whose files are damaged or gone or that lacks the metric, and where no tuning run
        of an arm could be finished.
        """
        reader = _Reader(experiment, store)
        specs = list(tuning_runs(experiment))
        tuning = [reader.read(TUNING, spec) for _, _, spec in specs]
        _check_alike(experiment, tuning)
        choices: dict[str, TuningChoice] = {}
        if tuning and not any(record.is_missing for record in tuning):
            values: dict[tuple[str, int], list[float | None]] = {}
            for (arm, number, _), record in zip(specs, tuning, strict=True):
                values.setdefault((arm, number), []).append(record.value)
            choices = select_tuning(experiment, values)
        arms = experiment.all_arms
        if choices:
            arms = [apply_tuning(arm, choices[arm.name].point) for arm in arms]
        seeds = experiment.statement.all_seeds if choices or not experiment.grid else []
        curve = [reader.read(CURVE, spec) for spec in curve_runs(experiment, arms[0])]
        _check_alike(experiment, curve)
        return cls(
            experiment=experiment,
            choices=choices,
            baseline=arms[0],
            arms=arms[1:],
            comparison={
                arm.name: {seed: reader.read(COMPARISON, comparison_run(experiment, arm, seed)) for seed in seeds}
                for arm in arms
            },
            tuning=tuning,
            curve=curve,
        )

    @property
    def records(self) -> Iterator[RunRecord]:
        """All records: the comparison arm by arm, tuning, the compute curve. A run may serve two of them."""
        for by_seed in self.comparison.values():
            yield from by_seed.values()
        yield from self.tuning
        yield from self.curve


def _check_alike(experiment: Experiment, records: Sequence[RunRecord]) -> None:
    """Raise GptlabError where runs that are ranked, or fitted, together were measured on different things."""
    known = ((record.folder, record.identity) for record in records)
    if found := unlike_pair(known, by_byte=experiment.statement.metric.is_by_byte):
        folder, first, difference = found
        raise GptlabError(
            f"{folder} and {first} were measured on different things, {difference}; put the data back as they were, or "
            "move the older of the two away to train it anew"
        )


class _Reader:
    """Reads run folders, and remembers which it has read."""

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self.experiment, self.store = experiment, store
        self.known: dict[str, RunRecord] = {}
        self.cards = read_gpus() if experiment.statement.dollars_per_hour is None else {}

    def read(self, use: str, spec: RunSpec) -> RunRecord:
        """The record of a run."""
        key = spec.suffix + ",".join(spec.tasks) + ("" if spec.grading is None else GRADE)
        if key not in self.known:
            self.known[key] = self._read(use, spec)
        return self.known[key]

    def _read(self, use: str, spec: RunSpec) -> RunRecord:
        folder = self.store.folder(spec)
        reached = state(folder)
        if reached is State.ABSENT:
            return RunRecord(use, spec, folder, finished=False, lost=self.store.is_overwritten(spec))
        if reached is State.DAMAGED:
            if (folder / FACTS).is_file():
                read_facts(folder)  # says what is wrong where it is one of these files
            read_sessions(folder), read_failure(folder)
            raise GptlabError(
                f"{folder}: damaged, a file is missing or cut short; restore it, or move the folder out of "
                f"{folder.parent} and train it again"
            )
        sessions = read_sessions(folder)
        finished = reached is State.FINISHED and is_evaluated(folder, spec)
        facts = read_facts(folder) if finished else None
        return RunRecord(
            use=use,
            spec=spec,
            folder=folder,
            finished=finished,
            **(self._measured(use, spec, folder, sessions) if finished else {}),
            facts=facts,
            dollars=None if facts is None else self._dollars(facts),
            failure=self.store.failure(folder) if reached is State.DIVERGED else None,
            started=str(sessions[0].get("started", "")) if sessions else "",
            commit=str((sessions[-1].get("git") or {}).get("commit", "")) if sessions else "",
        )

    def _measured(self, use: str, spec: RunSpec, folder: Path, sessions: Sequence[Session]) -> dict[str, Any]:
        """Value, identity and resolution of the metric."""
        log = folder / "metrics.jsonl"
        if not log.is_file():
            raise GptlabError(
                f"the number of {spec.label!r} lost its source: {log} is gone; restore it, or move {folder.name} out "
                f"of {folder.parent} and train it again"
            )
        metric = self.experiment.statement.metric
        if use == CURVE and not metric.is_logged:
            return {}  # a short run is not evaluated, and need not reach the target
        return dataclasses.asdict(metric.measure(folder, sessions))

    def _dollars(self, facts: Facts) -> float | None:
        """Its hours times the price of the hardware; None where nobody says one."""
        rate = self.experiment.statement.dollars_per_hour
        if rate is None:
            card = gpu_of_driver(facts.hardware, self.cards)
            rate = card.dollars_per_hour if card is not None else None
        return None if rate is None else rate * facts.world_size * facts.wall_seconds / 3600
