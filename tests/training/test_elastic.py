"""Processes that are lost, that come back, and that are not like the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data, rows

import gptlab as package

pytestmark = pytest.mark.slow

STEPS, EVERY, KILLED_AFTER = 90, 20, 30
BASE = TINY.replace("5120", str(STEPS * 256)) + f"data: {{path: data}}\ncheckpoint: {{every: {EVERY}}}\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with data, a config, and the run of one process that nothing happens to."""
    place = tmp_path_factory.mktemp("elastic")
    make_data(place)
    (place / "base.yaml").write_text(BASE)
    gptlab("train", "base.yaml", "--out", "runs/alone", cwd=place)
    return place


@pytest.fixture
def place(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed, tmp_path / "place")
    return tmp_path / "place"


class Agents:
    """Agents of torchrun on this machine, each with one process, as if each were a machine."""

    def __init__(self, place: Path, patience: int) -> None:
        self.place, self.started = place, list[subprocess.Popen[bytes]]()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        # how long those that are there wait for others; and how soon one that says nothing counts as gone
        self.rules = f"last_call_timeout={patience},keep_alive_interval=1,keep_alive_max_attempt=2"

    def start(self) -> subprocess.Popen[bytes]:
        with open(self.place / f"agent-{len(self.started)}.log", "wb") as log:
            agent = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
                    *("--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{self.port}"),
                    *("--rdzv-id=elastic", f"--rdzv-conf={self.rules},is_host={int(not self.started)}"),
                    *("-m", "gptlab", "train", "base.yaml", "--out", "runs/elastic"),
                ],
                cwd=self.place,
                env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},  # see docs/reference/distributed.md
                stdout=log,
                stderr=log,
            )
        self.started.append(agent)
        return agent

    def lose(self, agent: subprocess.Popen[bytes]) -> None:
        """End an agent and its processes without a word, as a machine that loses its power."""
        for number in [*children(agent.pid), agent.pid]:
            os.kill(number, signal.SIGKILL)
        agent.wait()


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


@pytest.fixture
def agents(place: Path, request: pytest.FixtureRequest) -> Iterator[Agents]:
    found = Agents(place, patience=request.param)
    yield found
    for agent in found.started:
        if agent.poll() is None:
            found.lose(agent)


def wait_for_step(run: Path, step: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} did not come to step {step}")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")
@pytest.mark.parametrize(("agents", "comes_back"), [(10, False), (40, True)], indirect=["agents"])
def test_a_lost_machine_costs_the_steps_since_the_checkpoint(place: Path, agents: Agents, comes_back: bool) -> None:
    first, second = agents.start(), agents.start()  # the first one holds the meeting place
    run = place / "runs/elastic"
    wait_for_step(run, KILLED_AFTER)
    agents.lose(second)
    if comes_back:
        time.sleep(4)  # by then the lost one counts as gone
        agents.start()
    assert first.wait(timeout=240) == 0, (place / "agent-0.log").read_text()[-3000:]
    said, log = (place / "agent-0.log").read_text(), (run / "log.txt").read_text()
    assert "error: another process of this run is gone" in said
    sessions = json.loads((run / "env.json").read_text())
    assert [one["world_size"] for one in sessions] == [2, 2 if comes_back else 1]
    (lost,) = [line.partition("lost and trained again: ")[2] for line in log.splitlines() if "lost and" in line]
    begun = int(lost.split()[1])  # "steps 41 to 47, …"
    assert begun % EVERY == 1  # right after a checkpoint, the last one that there was
    assert begun + EVERY > int(lost.split()[3].rstrip(","))
    assert lost.endswith("going on with 2 processes" if comes_back else "going on with 1 process instead of 2")
    alone, elastic = rows(place / "runs/alone"), rows(run)
    assert [row["step"] for row in elastic] == [row["step"] for row in alone]
    for one, other in zip(alone, elastic, strict=True):
        assert other["tokens"] == one["tokens"]
        loss = "train/loss" if "train/loss" in one else "val/loss"
        assert other[loss] == pytest.approx(one[loss], abs=1e-5)


# ---------------------------------------------------------------- machines that are not alike


def train_on_two(place: Path, *differences: tuple[list[str], dict[str, str]]) -> list[subprocess.CompletedProcess[str]]:
    """Two processes of one run, each with its own options and environment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "gptlab", "train", "base.yaml", "--out", "runs/two", *options],
            cwd=place,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                **variables,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, (options, variables) in enumerate(differences)
    ]
    return [
        subprocess.CompletedProcess("", one.wait(), stderr=said)
        for one, (_, said) in [(one, one.communicate(timeout=120)) for one in started]
    ]


def other_code(place: Path) -> str:
    """A copy of the package in which a loss is computed in another way, to be set as PYTHONPATH."""
    copy = place / "other" / "gptlab"
    shutil.copytree(Path(package.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "loss.py", "a") as file:
        file.write("\nMENDED = True\n")
    return str(copy.parent)


@pytest.mark.parametrize("difference", ["code of gptlab", "config", "data set"])
def test_a_machine_unlike_the_others_is_named_before_anything_is_written(place: Path, difference: str) -> None:
    options, variables = list[str](), dict[str, str]()
    if difference == "code of gptlab":
        variables["PYTHONPATH"] = other_code(place)
    elif difference == "config":
        options = ["--set", "seed=2"]
    else:
        make_data(place / "more", seed=1)
        options = ["--set", "data.path=more/data"]
    for done in train_on_two(place, ([], {}), (options, variables)):
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: process 1 on {socket.gethostname()} has another {difference} (")
        assert "Traceback" not in done.stderr
    assert not [path for path in (place / "runs/two").rglob("*") if path.name != "failed.json"]
