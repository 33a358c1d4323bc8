"""The jobs of a run or an experiment: for each missing run what is to be called, one after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gptlab.config import RunConfig, dump_yaml
from gptlab.errors import BusyError, GptlabError, option
from gptlab.files import atomic_folder
from gptlab.lab.experiment.evidence import evaluate_experiment
from gptlab.lab.experiment.ledger import Ledger
from gptlab.lab.experiment.run_queue import missing_runs
from gptlab.lab.experiment.spec import Experiment, hash_of, load_experiment
from gptlab.lab.runs.store import RunSpec, Store

_CHECKPOINTS = 4  # a run: what a kill can cost is a quarter of it


@dataclass(frozen=True)
class Question:
    """Whether a run of an experiment is still needed when its turn comes: its arm may have its verdict by then.

    Attributes:
        experiment: the experiment's folder.
        seeds: no more than the first so many.
        suffix: of the run's folder.
    """

    experiment: Path
    seeds: int | None
    suffix: str

    def is_needed(self) -> bool:
        """Whether `gptlab run` would train this run now. Raises GptlabError for an experiment that cannot be read."""
        evidence = evaluate_experiment(Ledger.read(load_experiment(self.experiment), Store()))
        return self.suffix in {run.suffix for run in missing_runs(evidence, seeds=self.seeds)}


@dataclass(frozen=True)
class Job:
    """A run to be trained somewhere else.

    Attributes:
        label: what it is called in messages.
        config: the YAML of its config, which is written into the folder of the submission.
        folder: its run folder.
        file: the name of its config there.
        after: what to call after training, as arguments of gptlab: evaluations.
        question: asked before it begins; None: it is needed.
    """

    label: str
    config: str
    folder: Path
    file: str
    after: tuple[tuple[str, ...], ...] = ()
    question: Question | None = None

    def commands(self, place: Path) -> tuple[tuple[str, ...], ...]:
        """Arguments of gptlab, one call after the other; the config is in `place`. The first call trains, by all
        processes of the job; the others are made by the first of them alone."""
        train = ("train", str(place / self.file), "--out", str(self.folder), "--resume")
        return (train, *self.after)


def job_of(run: RunSpec, store: Store, question: Question | None = None) -> Job:
    """The job that trains `run` in `store` and evaluates what it asks for."""
    folder = store.folder(run)
    config = run.config
    if not config.checkpoint.every:
        every = max(1, config.total_steps // _CHECKPOINTS)
        config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": every})})
    after: list[tuple[str, ...]] = []
    if run.grading is not None:
        after.append(tuple(run.grading.arguments(folder)))
    elif run.tasks:
        after.append(("eval", str(folder), "--tasks", ",".join(run.tasks)))
    text = dump_yaml(config.plain())
    return Job(run.label, text, folder, f"{run.hash}-seed{config.seed}.yaml", tuple(after), question)


def job_of_config(config: RunConfig, store: Store) -> Job:
    """The job of a single run. Raises GptlabError where the run is finished, diverged, or in training."""
    run = RunSpec(config, hash_of(config), config.name)
    folder = store.folder(run)
    if store.is_finished(folder):
        raise GptlabError(
            f"{folder} is finished already; change a value of its config, or {option('set', 'seed=2')} for another run"
        )
    if (failure := store.failure(folder)) is not None:
        raise GptlabError(f"{folder} would come to this again: {failure.message}")
    if store.is_busy(folder):
        raise BusyError(f"{folder}: a process is training this run; wait for it, or stop it")
    return job_of(run, store)


def jobs_of_experiment(experiment: Experiment, store: Store, *, seeds: int | None = None) -> list[Job]:
    """A job for every run that the experiment still needs, in the order in which `gptlab run` would train them.

    Raises GptlabError where none is missing.
    """
    missing = missing_runs(evaluate_experiment(Ledger.read(experiment, store)), seeds=seeds)
    waiting = [run for run in missing if not store.is_busy(store.folder(run))]
    if not missing:
        raise GptlabError(
            f"{experiment.folder} has every run that it needs; `gptlab run {experiment.folder}` gives its verdict"
        )
    if not waiting:
        raise BusyError(f"every run that {experiment.folder} still needs is in training; wait for them")
    return [job_of(run, store, Question(experiment.folder, seeds, run.suffix)) for run in waiting]


def submission_folder(name: str, store: Store) -> Path:
    """Where a submission keeps its configs, scripts and logs."""
    plain = re.sub(r"[^\w.-]+", "-", name)[:60]
    return store.root / ".jobs" / f"{plain}-{datetime.now():%Y%m%d-%H%M%S-%f}"


def write_configs(jobs: Sequence[Job], place: Path) -> None:
    """Write the config of every job into the new folder `place`."""
    with atomic_folder(place) as aside:
        for job in jobs:
            (aside / job.file).write_text(job.config, encoding="utf-8")
