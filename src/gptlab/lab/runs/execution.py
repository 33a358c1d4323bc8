"""Training missing runs: one process per run, one run per device, no run twice.

Who trains a run holds its lock (`record.runfolder.training_lock`), so any number of programs may ask for the same run:
one trains it, the others wait and find it finished. What was killed goes on from its newest checkpoint.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gptlab.config import dump_yaml
from gptlab.console import progress, say
from gptlab.errors import STOPPED, DivergedError, GptlabError
from gptlab.files import write_atomic
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.planning.plan import Prediction
from gptlab.planning.records import write_prediction
from gptlab.record.metrics import last_row
from gptlab.record.runfolder import FAILED, Failure, read_failure

if TYPE_CHECKING:
    from rich.progress import Progress

_POLL = 0.2  # seconds between looks at the processes
_CHECKPOINTS = 4  # a run: what a kill can cost is a quarter of it
_INTERRUPTED = (0, STOPPED, *(code for n in (signal.SIGTERM, signal.SIGINT) for code in (-n, 128 + n)))
"""Exit codes of a process that was told to stop: it saved and ended well, or a signal ended it."""


class RunError(GptlabError):
    """A run that could not be trained, and with what its process ended."""

    def __init__(self, run: RunSpec, failure: Failure) -> None:
        super().__init__(f"{run.label}: {failure.message}")
        self.run, self.failure = run, failure


@dataclass(frozen=True)
class Device:
    """Where one run is trained: a GPU by its index, or the CPU."""

    gpu: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make this device the only one that a process sees."""
        return {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}


def find_devices(jobs: int | None = None) -> list[Device]:
    """Every NVIDIA GPU that this process may use; without one, the CPU once (or `jobs` times)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None and shutil.which("nvidia-smi"):
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        visible = ",".join(done.stdout.split()) if done.returncode == 0 else ""
    gpus = [Device(index) for index in (visible or "").split(",") if index.strip() not in ("", "-1")]
    return gpus[:jobs] if gpus else [Device(None)] * (jobs or 1)


def train_all(
    queue: Callable[[], Sequence[RunSpec]],
    store: Store,
    *,
    devices: Sequence[Device],
    predictions: Mapping[str, Prediction] | None = None,
    should_stop: Callable[[RunSpec, Path], bool] = lambda run, folder: False,
) -> None:
    """Train until `queue` is empty.

    `queue` returns the missing runs in the order in which to train them. It is called again after every run that ends,
    so that results can change what is still needed. `predictions`, by hash, are left in the run folders, to be compared
    with what happened. `should_stop` is called for every run in training, with its folder, several times a second;
    where it returns true the run is saved and stopped, and `queue` must not return it again.

    Raises GptlabError where a process stops for a reason that would stop the others too. An interrupt is handed to the
    processes, which save where they are, before it goes on.
    """
    free = list(devices)
    running: list[_TrainingProcess] = []
    said_waiting = False
    with ExitStack() as stack:
        bars = stack.enter_context(progress(unit="steps"))
        stack.push(lambda *error: _terminate(running, error[0]))
        while True:
            missing = [run for run in queue() if all(run.suffix != process.run.suffix for process in running)]
            for run in missing:
                if not free:
                    break
                if not store.is_busy(store.folder(run)):
                    running.append(_TrainingProcess(run, store, free.pop(0), bars, (predictions or {}).get(run.hash)))
            if not running:
                if not missing:
                    return
                if not said_waiting:
                    say(f"waiting for {store.folder(missing[0])}: another process is training it")
                    said_waiting = True
                time.sleep(5 * _POLL)
                continue
            ended = _wait_for_one(running, should_stop)
            running.remove(ended)
            free.append(ended.device)
            ended.conclude()


def _wait_for_one(
    running: Sequence[_TrainingProcess], should_stop: Callable[[RunSpec, Path], bool]
) -> _TrainingProcess:
    """The first process to end. Those that `should_stop` is true for are asked to save and stop."""
    while True:
        for process in running:
            process.show_progress()
            if not process.stopped and not process.evaluating and should_stop(process.run, process.folder):
                process.stopped = True
                process.process.terminate()
            if process.has_ended():
                return process
        time.sleep(_POLL)


def _terminate(running: Sequence[_TrainingProcess], error: type[BaseException] | None) -> bool:
    """Ask all processes to save and stop, and wait for them."""
    for process in running:
        process.process.terminate()
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.process.wait(timeout=60)
        process.close()
    if running and error is KeyboardInterrupt:
        say("stopped; what was being trained is saved, the same command goes on")
    return False


def _group(run: RunSpec) -> dict[str, str]:
    """What Weights & Biases is told of the experiment that a run is of, in its own environment variables."""
    named = {"WANDB_RUN_GROUP": run.experiment, "WANDB_JOB_TYPE": run.arm}
    return {variable: name for variable, name in named.items() if name}


class _TrainingProcess:
    """A process that trains one run, followed by one that evaluates its tasks or has it graded."""

    def __init__(
        self, run: RunSpec, store: Store, device: Device, bars: Progress, prediction: Prediction | None
    ) -> None:
        self.run, self.store, self.device, self.bars = run, store, device, bars
        self.folder = store.folder(run)
        self.prediction = prediction
        self.total = run.config.total_steps
        self.scratch = Path(tempfile.mkdtemp(prefix="gptlab-"))
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        self.task = bars.add_task(run.label, total=self.total)
        self.evaluating = store.is_finished(self.folder)
        self.stopped = False  # because `should_stop` said so
        self.started = time.monotonic()
        self.process = self._evaluate() if self.evaluating else self._train()

    def _train(self) -> subprocess.Popen[str]:
        say(f"training {self.run.label}: {self.folder}")
        every = self.run.config.checkpoint.every or max(1, self.total // _CHECKPOINTS)
        self.folder.mkdir(parents=True, exist_ok=True)  # a failure before the first file is written finds its place
        (self.folder / FAILED).unlink(missing_ok=True)  # of an earlier attempt
        if self.prediction is not None:
            write_prediction(self.folder, self.prediction)
        config = self.scratch / "config.yaml"
        write_atomic(config, dump_yaml(self.run.config.plain()))
        return self._start(
            *("train", str(config), "--out", str(self.folder), "--resume", "--set", f"checkpoint.every={every}")
        )

    def _evaluate(self) -> subprocess.Popen[str]:
        if self.run.grading is not None:
            return self._start(*self.run.grading.arguments(self.folder))
        return self._start("eval", str(self.folder), "--tasks", ",".join(self.run.tasks))

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gptlab", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **self.device.environment, **_group(self.run)},
            # Out of the terminal's reach: an interrupt is passed on once, by us.
            start_new_session=True,
        )

    def show_progress(self) -> None:
        """Move the bar to the step that the run has come to."""
        row = last_row(self.folder / "metrics.jsonl")
        self.bars.update(self.task, completed=row["step"] if row else 0)

    def has_ended(self) -> bool:
        """Whether all is done, or something failed. After training come the run's tasks."""
        if self.process.poll() is None:
            return False
        trained = self.process.returncode == 0 and not self.evaluating and self.store.is_finished(self.folder)
        if trained and (self.run.tasks or self.run.grading):
            self.evaluating = True
            self.process = self._evaluate()
            return False
        return True

    def conclude(self) -> None:
        """Say how the run ended. Raises GptlabError for what would stop other runs too."""
        self.bars.remove_task(self.task)
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        self.close()
        code = self.process.returncode
        finished = self.store.finished(self.run) is not None
        if finished and code == 0:
            say(f"finished {self.run.label} in {time.monotonic() - self.started:.0f} s")
        if finished or self.stopped or self.store.is_busy(self.folder):
            return  # where another program was faster, its run is as good
        failure = self._take_failure()
        if code == DivergedError.exit_code and not self.evaluating and failure is not None:
            say(f"{self.run.label}: {failure.message}")
        elif code in _INTERRUPTED:
            raise GptlabError(f"{self.run.label} was stopped from outside; the same command goes on with it")
        else:
            last = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
            raise RunError(self.run, failure or Failure("", last))

    def _take_failure(self) -> Failure | None:
        """What failed.json says. Where the run did not diverge, it is nothing to remember: the error is raised here."""
        failure = read_failure(self.folder)
        if failure is not None and self.store.failure(self.folder) is None:
            (self.folder / FAILED).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()  # empty where training did not come to write anything
        return failure

    def close(self) -> None:
        """Remove what the process was given."""
        self.errors.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def train_missing(runs: Sequence[RunSpec], store: Store, *, devices: Sequence[Device]) -> list[Path]:
    """Train those of `runs` that are not finished, and return the folders of all of them.

    Raises GptlabError where one diverges or cannot be trained.
    """

    def queue() -> list[RunSpec]:
        missing = [run for run in runs if store.finished(run) is None]
        for run in missing:
            folder = store.folder(run)
            if (failure := store.failure(folder)) is not None:
                raise GptlabError(f"{run.label}: {failure.message}; see {folder}")
        return missing

    train_all(queue, store, devices=devices)
    return [store.folder(run) for run in runs]
