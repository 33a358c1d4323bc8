"""Where units are done: processes of this machine, a Ray cluster, or the jobs of a Slurm array.

Each engine has the same work: of task r of N, units r, r + N, r + 2N, … What is done already is passed over, so a task
that is started twice costs nothing, and which engine did a unit leaves no trace in it. Ray and Slurm are reached by
datatrove's executors (docs/decisions/0036); processes here are our own pool, which notices when one is killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.console import progress, say
from gptlab.data.preparation.unit_files import Job, check_done
from gptlab.errors import DataError, did_you_mean, option
from gptlab.processes import spawned_pool, usable_cores

_POOLS = 5  # at most: a unit that kills its worker each time ends it, a passer-by that kills one does not
_MOST_TASKS = 100_000
_EXTRA = "pip install 'gptlab[cluster-data]'"


class SubmittedError(DataError):
    """Units that are in a queue now, to be waited for: no mistake of anybody's."""

    exit_code = 0


@dataclass(frozen=True)
class Engine:
    """Where units are done, and how many at once.

    Attributes:
        use: "local", "ray" or "slurm".
        tasks: processes, or tasks of Ray or of the Slurm array; None: one a core of this machine.
        partition: of Slurm.
        time_limit: of each Slurm task, as Slurm writes it.
    """

    use: str = "local"
    tasks: int | None = None
    partition: str | None = None
    time_limit: str = "04:00:00"

    def __post_init__(self) -> None:
        if self.use not in _ENGINES:
            raise DataError(f"{option('engine', self.use)}: no such engine; {did_you_mean(self.use, _ENGINES)}")
        if self.tasks is not None and not 1 <= self.tasks <= _MOST_TASKS:
            raise DataError(f"{option('tasks')} {self.tasks}: must lie between 1 and {_MOST_TASKS:,}")
        if self.use == "slurm" and self.partition is None:
            raise DataError(f"{option('engine', 'slurm')}: which partition? name it with {option('partition', 'NAME')}")
        if self.use != "slurm" and self.partition is not None:
            raise DataError(f"{option('partition')} is one of Slurm's; it goes with {option('engine', 'slurm')}")

    def run(self, job: Job) -> None:
        """Do the units of `job` that are missing.

        Raises DataError for what a person can mend, SubmittedError where a queue has them now; what is done is kept.
        """
        missing = job.missing()
        if missing:
            tasks = min(self.tasks or usable_cores(), len(missing))
            if len(missing) < len(job.units):
                say(f"going on after {len(job.units) - len(missing):,} of {len(job.units):,} units")
            with _shown(job) if self.use != "slurm" else contextlib.nullcontext():
                _ENGINES[self.use](self, job, missing, tasks)
        check_done(job)


class Task:
    """What a task of datatrove does: its share of the units. `world_size` is the number of tasks."""

    def __init__(self, job: Job, units: tuple[int, ...]) -> None:
        self.job, self.units = job, units

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for number in self.units[rank::world_size]:
            self.job.do(number)
        return data


def _local(engine: Engine, job: Job, missing: list[int], tasks: int) -> None:
    if tasks == 1:
        for number in missing:
            job.do(number)
            job.check()
        return
    for _ in range(_POOLS):
        try:
            with spawned_pool(tasks, _start, job) as submit:
                waiting: list[Future[None]] = [submit(_do, number) for number in job.missing()]
                for future in waiting:
                    future.result()
                    job.check()
            return
        except BrokenProcessPool:
            say(f"a worker died; {len(job.missing()):,} of {len(job.units):,} units are still to be done")


_job: Job | None = None


def _start(job: Job) -> None:
    """In a new worker process."""
    global _job
    _job = job


def _do(number: int) -> None:
    assert _job is not None
    _job.do(number)


def _ray(engine: Engine, job: Job, missing: list[int], tasks: int) -> None:
    _need("ray")
    import ray

    started = not ray.is_initialized()
    if started:
        with _quiet(job):
            _connect(ray)
    try:
        ray_executor = _datatrove("ray").RayPipelineExecutor  # before `_quiet`: it sets its log up as it is imported
        with _quiet(job):
            ray_executor(
                [Task(job, tuple(missing))],
                tasks=tasks,
                workers=tasks,
                logging_dir=str(job.folder / "ray"),
                skip_completed=False,  # the units' files say what is done
                mem_per_cpu_gb=0.5,
            ).run()
    except ray.exceptions.RayError as error:
        raise DataError(f"{option('engine', 'ray')}: {str(error).strip().splitlines()[0]}") from None
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any) -> None:
    """To the cluster that RAY_ADDRESS names, or a new one on this machine."""
    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(**settings)
    except Exception as error:  # of many kinds: no such address, no room
        raise DataError(f"{option('engine', 'ray')}: no cluster ({' '.join(str(error).split())[:200]})") from None


def _slurm(engine: Engine, job: Job, missing: list[int], tasks: int) -> None:
    _need("slurm")
    if shutil.which("sbatch") is None:
        raise DataError(
            f"{option('engine', 'slurm')}: no sbatch on this machine; run it where Slurm's commands are, or with "
            f"{option('engine', 'local')}"
        )
    import subprocess

    executor = _datatrove("slurm").SlurmPipelineExecutor(
        [Task(job, tuple(missing))],
        tasks=tasks,
        time=engine.time_limit,
        partition=engine.partition,
        job_name="gptlab-prepare",
        qos=None,
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        logging_dir=str(job.folder / "slurm"),
        skip_completed=False,  # the units' files say what is done
    )
    try:
        with _quiet(job):
            executor.run()
    except subprocess.CalledProcessError as error:
        raise DataError(f"{option('engine', 'slurm')}: sbatch ended with exit code {error.returncode}") from None
    raise SubmittedError(
        f"{len(missing):,} units are in Slurm's queue as job {executor.job_id}, {tasks} task(s); when it has ended, "
        "the same command writes the shards, and does again what is missing"
    )


_ENGINES: dict[str, Callable[[Engine, Job, list[int], int], None]] = {"local": _local, "ray": _ray, "slurm": _slurm}


def _need(use: str) -> None:
    """Raise DataError where what the engine needs is not installed."""
    for module in ("datatrove", *(["ray"] if use == "ray" else [])):
        if importlib.util.find_spec(module) is None:
            raise DataError(f"{option('engine', use)} needs {module}: {_EXTRA}")


def _datatrove(name: str) -> Any:
    return importlib.import_module(f"datatrove.executor.{name}")


@contextlib.contextmanager
def _quiet(job: Job) -> Iterator[None]:
    """What datatrove tells goes to a file beside the units, not to the terminal."""
    from loguru import logger

    logger.remove()
    kept = logger.add(str(job.folder / "engine.log"), level="INFO", enqueue=False)
    try:
        yield
    finally:
        logger.remove(kept)


@contextlib.contextmanager
def _shown(job: Job) -> Iterator[None]:
    """Show how far the units are, which the folder tells, whoever does them."""
    import threading

    with progress() as bar:
        total = sum(unit.source_bytes for unit in job.units)
        task = bar.add_task("tokenizing", total=total or None)
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                left = sum(job.units[number].source_bytes for number in job.missing())
                bar.update(task, completed=total - left)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            bar.update(task, completed=total)
