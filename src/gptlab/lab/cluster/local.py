"""The jobs of a submission as processes on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gptlab.console import say
from gptlab.errors import STOPPED, DivergedError, GptlabError
from gptlab.lab.cluster.jobs import Job, write_configs
from gptlab.lab.cluster.spec import Cluster

_POLL = 0.2  # seconds
_SAVE = 120  # seconds that a process has to save when all are stopped


def run_here(jobs: Sequence[Job], cluster: Cluster, place: Path) -> None:
    """Train `jobs`, `cluster.at_once` at a time (all of them one after the other where that is not said), and wait.

    A run that diverges is said, and stops no other. Raises GptlabError for the first job that fails otherwise; what is
    in training then is saved. So it is where this process is interrupted or told to end.
    """
    write_configs(jobs, place)
    waiting, running = list(jobs), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < (cluster.at_once or 1):
                if (started := _start(waiting.pop(0), cluster, place)) is not None:
                    running.append(started)
            for one in [one for one in running if one.has_ended()]:
                running.remove(one)
                one.conclude()
            time.sleep(_POLL)
    finally:
        for one in running:
            one.tell(signal.SIGTERM)
        for one in running:
            one.wait()


def _start(job: Job, cluster: Cluster, place: Path) -> _Running | None:
    """Start a job; None where its run is no longer needed."""
    if job.question is not None and not job.question.is_needed():
        say(f"{job.label}: no longer needed")
        return None
    log = place / f"{Path(job.file).stem}.log"
    say(f"training {job.label}: {job.folder}; it writes to {log}")
    return _Running(job, list(job.commands(place)), cluster, log)


@dataclass
class _Running:
    """A job in progress: the processes of the call that it has come to."""

    job: Job
    commands: list[tuple[str, ...]]
    cluster: Cluster
    log: Path

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.code = 0
        self.processes = self._call(self.commands.pop(0), self.cluster.processes)

    def _call(self, arguments: tuple[str, ...], count: int) -> list[subprocess.Popen[bytes]]:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        worlds = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        with open(self.log, "ab") as log:
            return [_begin(arguments, world if count > 1 else {}, log) for world in worlds]

    def has_ended(self) -> bool:
        """Whether all calls are made, or one has failed: then its other processes are told to end."""
        codes = [process.poll() for process in self.processes]
        failed = [code for code in codes if code not in (None, 0)]
        if failed and not self.code:
            self.code = failed[0] or 0
            self.tell(signal.SIGTERM)
        if None in codes:
            return False
        if self.commands and not self.code:
            self.processes = self._call(self.commands.pop(0), 1)
            return False
        return True

    def tell(self, number: int) -> None:
        """Send a signal to every process that is left."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def wait(self) -> None:
        """Wait until every process has saved and ended; kill what does not."""
        for process in self.processes:
            try:
                process.wait(timeout=_SAVE)
            except subprocess.TimeoutExpired:
                process.kill()

    def conclude(self) -> None:
        """Say how the job ended. Raises GptlabError where it failed."""
        if self.code == 0:
            say(f"finished {self.job.label} in {time.monotonic() - self.started:.0f} s")
            return
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.startswith("error: ")]
        last = lines[-1].removeprefix("error: ") if lines else f"exit code {self.code}"
        if self.code == DivergedError.exit_code:
            say(f"{self.job.label}: {last}")
            return
        if self.code == STOPPED:
            raise GptlabError(f"{self.job.label} was stopped from outside; the same command goes on with it")
        raise GptlabError(f"{self.job.label}: {last}; see {self.log}")


def _begin(arguments: tuple[str, ...], world: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gptlab", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **world},
        # Out of the terminal's reach: an interrupt is passed on once, by us.
        start_new_session=True,
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
