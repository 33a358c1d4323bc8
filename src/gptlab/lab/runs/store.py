"""The runs on disk: which exist, which are finished, and where one that does not exist yet will be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gptlab.config import RunConfig
from gptlab.files import is_held, write_atomic
from gptlab.record.runfolder import State, lock_path, state


@dataclass(frozen=True)
class Wanted:
    """A run that somebody asks for: a config with its seed, and its hash."""

    config: RunConfig
    hash: str
    label: str  # for people: "swiglu seed 3"
    tasks: tuple[str, ...] = ()  # of `gptlab eval`, to be run when it is trained
    arm: str = ""  # of an experiment

    @property
    def suffix(self) -> str:
        """How the folder of every run of this config and seed ends, whatever its name."""
        return f"-{self.hash}-seed{self.config.seed}"


@dataclass(frozen=True)
class Failure:
    """A run that cannot be finished: training stopped by itself, and would again."""

    folder: Path
    reason: str


class Store:
    """The run folders in `root`."""

    def __init__(self, root: str | Path = "runs") -> None:
        self.root = Path(root)

    def folder(self, wanted: Wanted) -> Path:
        """The folder of a run: the one that is there, finished before begun, under whatever name; else its own."""
        own = self.root / f"{wanted.config.name}{wanted.suffix}"
        there = sorted(path for path in self.root.glob(f"*{wanted.suffix}") if not path.name.startswith("."))
        return next((path for path in there if self.is_finished(path)), own)

    def finished(self, wanted: Wanted) -> Path | None:
        """The folder of a run that is finished; None where there is none."""
        folder = self.folder(wanted)
        done = self.is_finished(folder) and all((folder / "evals" / f"{t}.json").is_file() for t in wanted.tasks)
        return folder if done else None

    @staticmethod
    def is_finished(folder: Path) -> bool:
        """Whether the training in a folder reached its end, and no one has changed its length since."""
        return state(folder) is State.FINISHED

    @staticmethod
    def is_busy(folder: Path) -> bool:
        """Whether a process is training in a folder now."""
        return is_held(lock_path(folder))

    @staticmethod
    def failure(folder: Path) -> Failure | None:
        """Why a run cannot be finished; None where nothing is known against it."""
        try:
            return Failure(folder, str(json.loads((folder / "failed.json").read_text(encoding="utf-8"))["reason"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def mark_failed(folder: Path, reason: str) -> None:
        """Remember that a run stopped by itself, so that it is not trained again and again."""
        write_atomic(folder / "failed.json", json.dumps({"reason": reason}) + "\n")
