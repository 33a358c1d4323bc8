"""The run folders on disk: which runs exist, which are finished, and where a new one will be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptlab.config import RunConfig
from gptlab.files import is_held
from gptlab.record.evaluation import Evaluation, read_evaluation
from gptlab.record.facts import read_facts
from gptlab.record.runfolder import DIVERGED, FACTS, Failure, State, lock_path, read_failure, state

GRADE = "grade"
"""The evaluation that a judge leaves (`gptlab.lab.judge.grading`)."""


class Grading(Protocol):
    """What a judge is asked about a run (`gptlab.lab.judge.session.GradeRequest`)."""

    def arguments(self, run: Path) -> list[str]:
        """The arguments of gptlab that have `run` graded."""

    def is_done(self, run: Path) -> bool:
        """Whether a run has the grade that this asks for."""


@dataclass(frozen=True)
class RunSpec:
    """A run, whether or not it has been trained: its config (seed included) and its hash.

    Attributes:
        label: what it is called in messages, such as "swiglu seed 3".
        tasks: of `gptlab eval`, to be evaluated after training.
        arm, experiment: what it belongs to, where it does.
        grading: who is asked to grade it after training; None: nobody.
    """

    config: RunConfig
    hash: str
    label: str
    tasks: tuple[str, ...] = ()
    arm: str = ""
    experiment: str = ""
    grading: Grading | None = None

    @property
    def suffix(self) -> str:
        """How the folder of every run of this config and seed ends, whatever its name."""
        return f"-{self.hash}-seed{self.config.seed}"


class Store:
    """The run folders in `root`."""

    def __init__(self, root: str | Path = "runs") -> None:
        self.root = Path(root)

    def folder(self, run: RunSpec) -> Path:
        """The folder of a run: a finished one of its config and seed under any name, else the one of its own name."""
        own = self.root / f"{run.config.name}{run.suffix}"
        existing = sorted(path for path in self.root.glob(f"*{run.suffix}") if not path.name.startswith("."))
        if (found := next((path for path in existing if self.is_finished(path)), None)) is not None:
            return found
        return self.root / f"{run.config.name}-again{run.suffix}" if self.is_overwritten(run) else own

    def is_overwritten(self, run: RunSpec) -> bool:
        """Whether another run lives under this one's name: gptlab before 0.4 extended runs where they were."""
        return state(self.root / f"{run.config.name}{run.suffix}") is State.RECONFIGURED

    def finished(self, run: RunSpec) -> Path | None:
        """The folder of a run that is trained and evaluated on its tasks; None where it is not."""
        folder = self.folder(run)
        return folder if self.is_finished(folder) and is_evaluated(folder, run) else None

    @staticmethod
    def is_finished(folder: Path) -> bool:
        """Whether the run in a folder is trained to its end, as the config that its name promises."""
        return state(folder) is State.FINISHED

    @staticmethod
    def is_busy(folder: Path) -> bool:
        """Whether a process is training in a folder now."""
        return is_held(lock_path(folder))

    @staticmethod
    def failure(folder: Path) -> Failure | None:
        """How the run in a folder diverged; None where it did not.

        An error of another kind (a missing device, a full disk) is not a property of the run and is not returned.
        """
        failure = read_failure(folder)
        return failure if failure is not None and failure.kind == DIVERGED else None


def is_evaluated(folder: Path, run: RunSpec) -> bool:
    """Whether the results of all of a run's tasks, and the grade that is asked for, are in its folder: whole, and of
    the weights that it has now."""
    if run.grading is not None and not run.grading.is_done(folder):
        return False
    asked = run.tasks if run.grading is None else (*run.tasks, GRADE)
    found = [read_evaluation(folder, task) for task in asked]
    return all(one is not None and not outdated(one, folder) for one in found)


def outdated(found: Evaluation, folder: Path) -> str:
    """Why an evaluation does not tell of the finished run in `folder`: other weights, or a part of the questions; empty
    where it does."""
    limit, weights, step = (found.settings.get(name) for name in ("limit", "weights", "step"))
    if limit is not None:
        return f"of {limit} questions or windows only"
    if (folder / FACTS).is_file():
        facts = read_facts(folder)
        if None not in (weights, facts.weights) and weights != facts.weights:
            return "of other weights than the run has now"
        if step not in (None, facts.steps):
            return f"of step {step}, and the run has come to {facts.steps}"
    return ""
