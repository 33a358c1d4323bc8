"""A run that is killed at any moment ends, after resuming, bitwise like one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data, only_run, rows

from gptlab.errors import STOPPED
from gptlab.record.runfolder import State, state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Dropout, four micro-batches a step, an epoch that ends inside the run, and parts with a state of their own: a
    router that balances and a window that grows."""
    folder = tmp_path_factory.mktemp("resume")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY)
    options = ["data.path=data", "name=killed", "model.dropout=0.1", "system.micro_batch=2"]
    options += ["model.block.mlp={use: MoE, experts: 4, expert: {use: SwiGLU, hidden: 16}, balance_rate: 0.01}"]
    options += ["model.block.attention={window: 24, window_start: 4, window_step: 4}"]
    options += ["checkpoint.every=4", "eval.every=10", "train.tokens=15360"]
    return folder, ["config.yaml", *(part for option in options for part in ("--set", option))]


@pytest.fixture(scope="module")
def reference(setting: tuple[Path, list[str]]) -> Path:
    """The run that nobody disturbed."""
    folder, arguments = setting
    quiet = folder / "quiet"
    quiet.mkdir()
    (quiet / "data").symlink_to(folder / "data")
    (quiet / "config.yaml").symlink_to(folder / "config.yaml")
    gptlab("train", *arguments, cwd=quiet)
    return only_run(quiet)


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gptlab", "train", *arguments, "--resume"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def logged_step(folder: Path) -> int:
    """The last step that the run in `folder` has logged."""
    logs = list(folder.glob("runs/*/metrics.jsonl"))
    lines = logs[0].read_text().splitlines() if logs else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue
    return 0


def kill_when(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> None:
    """kill -9 the process at the first `moment`, which still holds while it stands still."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline, "the moment did not come"
        if moment():
            process.send_signal(signal.SIGSTOP)
            if moment():
                break
            process.send_signal(signal.SIGCONT)
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_kill_9_at_five_moments(setting: tuple[Path, list[str]], reference: Path) -> None:
    folder, arguments = setting
    chance = random.Random(20)

    def writing() -> bool:
        return logged_step(folder) > 9 and any(folder.glob("runs/*/checkpoints/.step-*.tmp"))

    def logged(step: int) -> Callable[[], bool]:
        return lambda: logged_step(folder) >= step

    # An epoch ends at step 23 of 60, so what is repeated after the third kill crosses it.
    moments = [logged(chance.randint(2, 8)), writing, logged(23), logged(chance.randint(28, 38))]
    for moment in [*moments, logged(chance.randint(42, 55))]:
        kill_when(start(folder, arguments), moment)
        if moment is writing:
            assert any(folder.glob("runs/*/checkpoints/.step-*.tmp"))
    assert start(folder, arguments).wait() == 0
    run = only_run(folder)
    assert len(json.loads((run / "env.json").read_text())) == 6
    assert rows(run) == rows(reference)
    assert (run / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_stop_saves_and_says_that_it_is_not_done(
    setting: tuple[Path, list[str]], reference: Path, tmp_path: Path, told: signal.Signals
) -> None:
    folder, arguments = setting
    for name in ("data", "config.yaml"):
        (tmp_path / name).symlink_to(folder / name)
    arguments = [*arguments, "--set", "checkpoint.every=0"]
    process = start(tmp_path, arguments)
    while logged_step(tmp_path) < 12:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(told)
    assert process.wait(timeout=60) == STOPPED  # `gptlab train … && gptlab eval …` must not evaluate half a run
    run = only_run(tmp_path)
    (saved,) = (run / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) == logged_step(tmp_path) < 60
    assert not (run / "model.safetensors").exists()
    assert start(tmp_path, arguments).wait() == 0
    assert rows(run) == rows(reference)
    assert (run / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


def test_a_finished_run_extends(setting: tuple[Path, list[str]], reference: Path) -> None:
    before = rows(reference)
    cwd = reference.parent.parent
    done = gptlab("train", str(reference.relative_to(cwd)), "--set", "train.tokens=17920", "--resume", cwd=cwd)
    assert "from step 60" in done.stderr
    assert f"{reference.relative_to(cwd)} stays as it is" in done.stderr  # an experiment may rest on it
    assert rows(reference) == before
    assert state(reference) is State.FINISHED
    (longer,) = (folder for folder in (cwd / "runs").iterdir() if folder != reference)
    assert state(longer) is State.FINISHED
    after = rows(longer)
    assert after[: len(before)] == before
    assert after[-1]["step"] == 70
    assert [session["tokens"] for session in json.loads((longer / "env.json").read_text())] == [15360, 17920]
