"""Training the runs that are missing: one process a run, one run a device, and nothing twice.

Who trains a run holds its lock (`record.runfolder.training_lock`), so any number of programs may ask for the same run:
one trains it, the others wait and find it finished. What was killed goes on from its newest checkpoint.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gptlab.config import dump_yaml
from gptlab.console import progress, say
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.lab.runs.store import Store, Wanted
from gptlab.planning.plan import Prediction, write_prediction
from gptlab.record.metrics import tail

if TYPE_CHECKING:
    from rich.progress import Progress

_POLL = 0.2  # seconds between looks at the children
_CHECKPOINTS = 4  # a run: what a kill can cost is a quarter of it


class RunError(GptlabError):
    """A run that could not be trained, and the line with which its process ended."""

    def __init__(self, run: Wanted, reason: str) -> None:
        super().__init__(f"{run.label}: {reason}")
        self.run, self.reason = run, reason


@dataclass(frozen=True)
class Device:
    """Where one run is trained: a GPU by its index, or the CPU."""

    gpu: str | None

    @property
    def environment(self) -> dict[str, str]:
        """What tells a child which device is its own."""
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
    wanted: Callable[[], Sequence[Wanted]],
    store: Store,
    *,
    devices: Sequence[Device],
    after: Callable[[], None] = lambda: None,
    predictions: Mapping[str, Prediction] | None = None,
    watch: Callable[[Wanted, Path], bool] = lambda run, folder: False,
) -> None:
    """Train until `wanted` asks for nothing more.

    `wanted` is asked again after every run that ends, so that what is known by then can change what is still needed;
    it gives the missing runs in the order of their worth. `after` is called after every run that was finished.
    `predictions`, by hash, are left in the run folders, to be held against what happened. `watch` is asked about every
    run in training, with its folder, several times a second; where it says true the run is saved and stopped, and
    `wanted` must not ask for it again.

    Raises GptlabError where a child stops for a reason that would stop the others too. An interrupt is handed to the
    children, which save where they are, before it goes on.
    """
    free = list(devices)
    running: list[_Child] = []
    waiting_said = False
    with ExitStack() as stack:
        bars = stack.enter_context(progress(unit="steps"))
        stack.push(lambda *error: _stop(running, error[0]))
        while True:
            missing = [run for run in wanted() if all(run.suffix != child.run.suffix for child in running)]
            for run in missing:
                if not free:
                    break
                if not store.is_busy(store.folder(run)):
                    running.append(_Child(run, store, free.pop(0), bars, (predictions or {}).get(run.hash)))
            if not running:
                if not missing:
                    return
                if not waiting_said:
                    say(f"waiting for {store.folder(missing[0])}: another process is training it")
                    waiting_said = True
                time.sleep(5 * _POLL)
                continue
            ended = _wait(running, watch)
            running.remove(ended)
            free.append(ended.device)
            if ended.conclude():
                after()


def _wait(running: Sequence[_Child], watch: Callable[[Wanted, Path], bool]) -> _Child:
    """The first child to end. Those that `watch` is against are asked to save and stop."""
    while True:
        for child in running:
            child.show()
            if not child.stopped and not child.evaluating and watch(child.run, child.folder):
                child.stopped = True
                child.process.terminate()
            if child.ended():
                return child
        time.sleep(_POLL)


def _stop(running: Sequence[_Child], error: type[BaseException] | None) -> bool:
    """Ask all children to save and stop, and wait for them."""
    for child in running:
        child.process.terminate()
    for child in running:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=60)
        child.close()
    if running and error is KeyboardInterrupt:
        say("stopped; what was being trained is saved, the same command goes on")
    return False


class _Child:
    """A process that trains one run, and then evaluates what is asked for."""

    def __init__(
        self, run: Wanted, store: Store, device: Device, bars: Progress, prediction: Prediction | None
    ) -> None:
        self.run, self.store, self.device, self.bars = run, store, device, bars
        self.folder = store.folder(run)
        self.prediction = prediction
        self.total = run.config.total_steps
        self.config = Path(tempfile.mkdtemp(prefix="gptlab-")) / "config.yaml"
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the child
        self.task = bars.add_task(run.label, total=self.total)
        self.evaluating = store.is_finished(self.folder)
        self.stopped = False  # because whoever watches it wanted so
        self.started = time.monotonic()
        self.process = self._evaluate() if self.evaluating else self._train()

    def _train(self) -> subprocess.Popen[str]:
        say(f"training {self.run.label}: {self.folder}")
        every = self.run.config.checkpoint.every or max(1, self.total // _CHECKPOINTS)
        if self.prediction is not None:
            write_prediction(self.folder, self.prediction)
        elsewhere = self.store.root != Store().root  # a run goes to runs/ unless its own folder is named
        config = self.folder / "config.yaml" if elsewhere else self.config
        config.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(config, dump_yaml(self.run.config.plain()))
        return self._start(
            "train", str(self.folder if elsewhere else config), "--resume", "--set", f"checkpoint.every={every}"
        )

    def _evaluate(self) -> subprocess.Popen[str]:
        return self._start("eval", str(self.folder), "--tasks", ",".join(self.run.tasks))

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gptlab", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **self.device.environment},
            # Out of the terminal's reach: an interrupt is passed on once, by us.
            start_new_session=True,
        )

    def show(self) -> None:
        """Move the bar to where the run is."""
        row = tail(self.folder / "metrics.jsonl")
        self.bars.update(self.task, completed=row["step"] if row else 0)

    def ended(self) -> bool:
        """Whether all is done, or something failed. After training come the evaluations that are asked for."""
        if self.process.poll() is None:
            return False
        if self.process.returncode == 0 and not self.evaluating and self.run.tasks and self._is_trained():
            self.evaluating = True
            self.process = self._evaluate()
            return False
        return True

    def _is_trained(self) -> bool:
        return self.store.is_finished(self.folder)

    def conclude(self) -> bool:
        """Whether the run is finished now. Raises GptlabError for what would stop other runs too."""
        self.bars.remove_task(self.task)
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        self.close()
        if self.process.returncode == 0 and self.store.finished(self.run) is not None:
            say(f"finished {self.run.label} in {time.monotonic() - self.started:.0f} s")
            return True
        if self.store.is_busy(self.folder) or self.store.finished(self.run) is not None:
            return False  # another program was faster; its run is as good
        if self.stopped:
            return True
        reason = lines[-1].removeprefix("error: ") if lines else f"exit code {self.process.returncode}"
        if self.process.returncode == 2 and reason.startswith("step ") and not self.evaluating:
            self.store.mark_failed(self.folder, reason)
            say(f"{self.run.label}: {reason}")
            return True
        if self.process.returncode in (0, -15, -2, 130):
            raise GptlabError(f"{self.run.label} was stopped from outside; the same command goes on with it")
        raise RunError(self.run, reason)

    def close(self) -> None:
        """Let go of what the child was given."""
        self.errors.close()
        shutil.rmtree(self.config.parent, ignore_errors=True)


def ensure(runs: Sequence[Wanted], store: Store, *, devices: Sequence[Device]) -> list[Path]:
    """The folders of `runs`, those trained that were missing. Raises GptlabError where one cannot be finished."""

    def missing() -> list[Wanted]:
        for run in runs:
            if (failure := store.failure(store.folder(run))) is not None and store.finished(run) is None:
                raise GptlabError(f"{run.label}: {failure.reason}; see {failure.folder}")
        return [run for run in runs if store.finished(run) is None]

    train_all(missing, store, devices=devices)
    return [store.folder(run) for run in runs]


def unique(runs: Iterator[Wanted]) -> Iterator[Wanted]:
    """Each run once, where several arms ask for the same."""
    seen: set[str] = set()
    for run in runs:
        if run.suffix not in seen:
            seen.add(run.suffix)
            yield run
