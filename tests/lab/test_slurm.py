"""`gptlab submit` on a real Slurm: scripts/slurm-here.sh starts one where slurm-wlm and munge are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gated, gptlab, make_data, rows
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
STATEMENT = gated([1, 2], minimum=2)
LONG = ("--set", "train.tokens=100K")  # 391 steps: some seconds, in which it can be stopped

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm: the one that is here already, else one that is started and stopped again."""
    if shutil.which("sbatch") is None:
        pytest.skip("no sbatch here; apt-get install slurm-wlm munge, and these tests start one")
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0:
        yield
        return
    if shutil.which("slurmctld") is None or os.geteuid() != 0:
        pytest.skip("no Slurm is running here, and it takes slurmctld and root to start one")
    folder, script = tmp_path_factory.mktemp("slurm"), str(ROOT / "scripts" / "slurm-here.sh")
    with open(folder / "start.log", "w") as log:  # no pipe: the daemons would hold it open
        subprocess.run([script, "start", str(folder)], stdout=log, stderr=log, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
        subprocess.run([script, "stop", str(folder)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def place(slurm: None, corpus: Path, tmp_path: Path) -> Path:
    shutil.copytree(corpus, tmp_path / "data")
    (tmp_path / "base.yaml").write_text(TINY.replace("5120", "2560") + "data: {path: data}\n")
    (tmp_path / "one.yaml").write_text("{minutes: 60}\n")
    (tmp_path / "two.yaml").write_text("{nodes: 2, minutes: 60, setup: [echo set up]}\n")
    return tmp_path


def submit(place: Path, *arguments: str) -> str:
    """Submit, and give the id of the job."""
    said = gptlab("submit", *arguments, cwd=place, SLURM_CONF=os.environ.get("SLURM_CONF", "")).stderr
    (line,) = [line for line in said.splitlines() if line.startswith("submitted job ")]
    return line.removeprefix("submitted job ").split(";")[0].split(",")[0]


def in_queue(job: str) -> str:
    """The states of a job's parts in Slurm's queue; empty once all have ended."""
    done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def wait_for_end(job: str) -> None:
    """Wait until a job has left the queue. One that queues again would wait two minutes, which it is spared."""
    until, away = time.monotonic() + 180, 0
    while away < 5 and time.monotonic() < until:  # one that queues again is out of it for an instant
        state = in_queue(job)
        away = 0 if state else away + 1
        if state == "PENDING":
            time.sleep(4)  # Slurm revokes the credential of its last turn, and one made in that second too
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False)
        time.sleep(0.3)
    assert away, f"job {job} is {state}"


def logs(place: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((place / "runs/.jobs").glob("*/*_log.out")))


def run_of(place: Path, pattern: str = "*") -> Path:
    (found,) = [path for path in (place / "runs").glob(f"[!.]{pattern}") if path.is_dir()]
    return found


def wait_for_step(place: Path, step: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        files = [*(place / "runs").glob("[!.]*/metrics.jsonl")]
        if files and len(files[0].read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(logs(place))


def test_a_job_of_two_nodes_trains_what_one_process_does(place: Path) -> None:
    wait_for_end(submit(place, "base.yaml", "--cluster", "two.yaml"))
    run = run_of(place)
    assert (run / "facts.json").is_file(), logs(place)
    gptlab("train", "base.yaml", "--out", "alone", cwd=place)
    alone = rows(place / "alone")
    for one, other in zip(alone, rows(run), strict=True):
        loss = "train/loss" if "train/loss" in one else "val/loss"
        assert other[loss] == pytest.approx(one[loss], abs=1e-5)
    assert "set up" in logs(place)
    assert "node=1(2), global_rank=1(2)" in logs(place)


@pytest.mark.parametrize("name", ["USR2", "TERM"])
def test_a_job_that_must_go_saves_queues_again_and_ends_as_if_nothing_had_been(place: Path, name: str) -> None:
    """USR2 is what Slurm sends before the time is over, TERM what it sends to make room for others."""
    job = submit(place, "base.yaml", *LONG, "--cluster", "one.yaml")
    wait_for_step(place, 50)
    subprocess.run(["scancel", f"--signal={name}", job], check=True)
    wait_for_end(job)
    run = run_of(place)
    assert (run / "facts.json").is_file(), logs(place)
    said = (run / "log.txt").read_text()
    assert "SIGTERM: stopped after step " in said
    assert " from step " in said
    assert "lost and trained again" not in said
    gptlab("train", "base.yaml", *LONG, "--out", "alone", cwd=place)
    assert rows(run) == rows(place / "alone")
    ours, theirs = load_file(run / "model.safetensors"), load_file(place / "alone" / "model.safetensors")
    assert set(ours) == set(theirs)
    for weight in theirs:
        np.testing.assert_array_equal(ours[weight], theirs[weight])


def test_a_job_that_its_owner_cancels_saves_and_does_not_come_again(place: Path) -> None:
    job = submit(place, "base.yaml", *LONG, "--cluster", "one.yaml")
    wait_for_step(place, 50)
    subprocess.run(["scancel", job], check=True)
    wait_for_end(job)
    assert "stopped after step" in (run_of(place) / "log.txt").read_text()
    assert not (run_of(place) / "facts.json").exists()
    gptlab("train", str(run_of(place)), "--resume", cwd=place)
    assert (run_of(place) / "facts.json").is_file()


def test_an_experiment_is_an_array_and_its_verdict_is_there_afterwards(place: Path) -> None:
    (place / "experiments/e").mkdir(parents=True)
    (place / "experiments/e/experiment.yaml").write_text(STATEMENT)
    (place / "few.yaml").write_text("{minutes: 60, at_once: 2}\n")
    wait_for_end(submit(place, "experiments/e", "--cluster", "few.yaml"))
    finished = sorted(path.parent.name.rpartition("-")[2] for path in (place / "runs").glob("[!.]*/facts.json"))
    assert finished == ["seed1", "seed1", "seed2", "seed2"], logs(place)
    done = gptlab("run", "experiments/e", cwd=place)  # nobody answers a question here, so none is asked
    assert "gated: " in done.stdout
    assert "after 2 seeds" in done.stdout
    again = gptlab("submit", "experiments/e", "--cluster", "few.yaml", cwd=place, check=False)
    assert again.returncode == 2
    assert "has every run that it needs; `gptlab run experiments/e` gives its verdict" in again.stderr


def test_what_sbatch_refuses_is_one_line_and_leaves_nothing(place: Path) -> None:
    (place / "wrong.yaml").write_text("{partition: nowhere}\n")
    done = gptlab("submit", "base.yaml", "--cluster", "wrong.yaml", cwd=place, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: sbatch refused the job: ")
    assert "invalid partition specified" in done.stderr
    assert not [path for path in (place / "runs").rglob("*") if path.is_file()] if (place / "runs").exists() else True


def test_a_script_that_is_shown_is_one_that_sbatch_takes(place: Path) -> None:
    shown = gptlab("submit", "base.yaml", "--cluster", "two.yaml", "--dry-run", cwd=place).stdout
    (place / "script.sh").write_text(shown)
    done = subprocess.run(
        ["sbatch", "--test-only", "script.sh"], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sys.executable in shown
