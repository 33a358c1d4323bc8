"""Runs `gptlab` as a user does, in a process of its own each time, without paying for the imports each time.

A server process has imported what training needs and has run nothing; for each command it forks, and the child becomes
`gptlab` in the folder, with the environment, that were asked for. What a test sees is what a shell would: exit code and
output of a process that ends. `python tests/forkserver.py` is the server.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any

TIMEOUT = 300  # seconds of one command
PRELOADED = (
    "torch",
    "torch.distributed.checkpoint.hf_storage",
    "safetensors.torch",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "rich.progress",
    "scipy.stats",
    "gptlab.cli",
    "gptlab.contracts",
    "gptlab.evals.benchmark",
    "gptlab.interop.huggingface",
    "gptlab.lab.experiment.run_queue",
    "gptlab.training.stages",
)


class _Server:
    """The server, and a pipe to it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """One command, from its start to its end. Raises TimeoutExpired as `subprocess.run` does."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            output = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
            request = {"arguments": arguments, "cwd": str(cwd), "environment": environment, **output}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
            texts = [Path(output[name]).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        if answer["code"] is None:
            raise subprocess.TimeoutExpired(["gptlab", *arguments], TIMEOUT, *texts)
        return subprocess.CompletedProcess(["gptlab", *arguments], answer["code"], *texts)


@functools.cache
def server() -> _Server:
    """This process's server; it ends when its standard input does."""
    return _Server()


def run(arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `gptlab` with `arguments` in `cwd`; `environment` is laid over this process's own."""
    return server().run(arguments, cwd, {**os.environ, "OMP_NUM_THREADS": "1", **environment})


# ---------------------------------------------------------------- the server's side


def _serve(requests: IO[str], answers: IO[str]) -> None:
    import importlib

    for module in PRELOADED:
        importlib.import_module(module)
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become_gptlab(request)
        answers.write(json.dumps({"code": _wait(child)}) + "\n")
        answers.flush()


def _wait(child: int) -> int | None:
    """The exit code of a child, negative for a signal as subprocess says it; None where it had to be killed."""
    import signal
    import time

    end = time.monotonic() + TIMEOUT
    pause = 0.001
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.02, pause * 1.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _become_gptlab(request: dict[str, Any]) -> None:
    """In the child: take over output, folder and environment, run the command line, and end the process."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        sys.path[:1] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]  # as `python -m` has it
        sys.argv = ["gptlab", *request["arguments"]]
        from gptlab.cli import main

        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
