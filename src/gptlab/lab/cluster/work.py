"""What a process of a job does: it calls gptlab, passes on that it has to stop, and asks for another turn.

Between the scheduler and the process that trains stands one of these for each of them. It ignores nothing and computes
nothing: a signal to save becomes a SIGTERM for the process that trains, which ends after its step with a checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gptlab.errors import STOPPED, GptlabError
from gptlab.lab.cluster.jobs import Question

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_POLL = 0.2  # seconds
WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""What a scheduler sends to say that the time is nearly over."""
_TOLD = (STOPPED, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a call that was told to stop: while it trained, and before."""


@dataclass
class Work:
    """The calls of a job, `commands` as arguments of gptlab; `submitit` has it called in each process of the job."""

    label: str
    commands: tuple[tuple[str, ...], ...]
    question: Question | None = None
    _process: int | None = field(default=None, repr=False)

    def __call__(self) -> str:
        """Do the work of this process of a Slurm job; what it came to, in words. Exits as a call that fails does."""
        world = slurm_world()
        code = self.run(world)
        if code in _TOLD and world["RANK"] == "0" and _goes_on():
            # Preempted without a warning of its own: submitit's handler has the job queue again, and never returns.
            signal.raise_signal(_warning_of_submitit())
        if code not in (0, *_TOLD):
            sys.exit(code if code > 0 else 128 - code)
        return f"{self.label}: {'stopped' if code else 'done'}"

    def checkpoint(self) -> DelayedSubmission:
        """For submitit, in its signal handler: have the training saved, and say what the next turn is to do."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Work(self.label, self.commands, self.question))

    def run(self, world: Mapping[str, str]) -> int:
        """Make the calls as one process of `world` (torchrun's variables); the exit code of the first that failed.

        A job whose run is no longer needed makes none. Only a job of one process asks: several might hear different
        answers.
        """
        first, *others = self.commands
        if self.question is not None and world["WORLD_SIZE"] == "1" and not self._is_needed():
            print(f"{self.label}: no longer needed", flush=True)
            return 0
        code = self._call(first, world if world["WORLD_SIZE"] != "1" else {})
        for command in others if world["RANK"] == "0" else ():
            if code != 0:
                break
            code = self._call(command, {})
        return code

    def stop(self) -> None:
        """Tell the call in progress to stop, and wait until it has."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGTERM)
        with suppress(ChildProcessError):  # seen to end already, by the loop that this interrupts
            os.waitid(os.P_PID, self._process, os.WEXITED | os.WNOWAIT)

    def _is_needed(self) -> bool:
        assert self.question is not None
        try:
            return self.question.is_needed()
        except GptlabError as error:
            print(f"error: {self.label}: {error}", file=sys.stderr, flush=True)
            sys.exit(error.exit_code)

    def _call(self, arguments: tuple[str, ...], world: Mapping[str, str]) -> int:
        """Call gptlab and wait for its end. A scheduler's warning is not for it: that would end it at once, as long
        as it has no handler, and `stop` tells it in words that it understands from its first moment on."""
        process = subprocess.Popen(
            [sys.executable, "-m", "gptlab", *arguments],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **world},
            preexec_fn=_ignore_warnings,
        )
        self._process = process.pid
        # Looked at again and again: a handler cannot wait for a process that is being waited for below it.
        while process.poll() is None:
            time.sleep(_POLL)
        self._process = None
        return process.returncode


def _ignore_warnings() -> None:
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)


def slurm_world() -> dict[str, str]:
    """torchrun's variables for this process of a Slurm job."""
    from submitit.helpers import TorchDistributedEnvironment

    found: Any = TorchDistributedEnvironment()
    values = {
        "MASTER_ADDR": found.master_addr,
        "MASTER_PORT": found.master_port,
        "RANK": found.rank,
        "WORLD_SIZE": found.world_size,
        "LOCAL_RANK": found.local_rank,
        "LOCAL_WORLD_SIZE": found.local_world_size,
    }
    return {name: str(value) for name, value in values.items()}


def _warning_of_submitit() -> int:
    from submitit import JobEnvironment

    return int(getattr(signal, f"SIG{JobEnvironment().USR_SIG}"))


def _goes_on() -> bool:
    """Whether Slurm still counts this job as running: one that its owner has cancelled is not to come again."""
    from submitit import JobEnvironment

    asked = ["squeue", "--noheader", "--job", JobEnvironment().job_id, "--format", "%T"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode == 0 and done.stdout.strip() == "RUNNING"
