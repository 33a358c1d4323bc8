"""`gptlab run`, as a user runs it: killed, twice at once, with an arm more, with arms that may not be compared."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import TINY, gated, gptlab, make_data, plain_json

ROOT = Path(__file__).parents[2]
STATEMENT = gated([1, 2, 3], minimum=3)
BASE = TINY.replace("5120", "2560") + "data: {path: data}\ncheckpoint: {every: 3}\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def place(corpus: Path, tmp_path: Path) -> Path:
    return prepare(corpus, tmp_path)


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A place where the experiment has been run undisturbed, and the verdict there. Copy it before changing it."""
    folder = prepare(corpus, tmp_path_factory.mktemp("finished"))
    return folder, run(folder).stdout


def prepare(corpus: Path, place: Path) -> Path:
    shutil.copytree(corpus, place / "data")
    (place / "base.yaml").write_text(BASE)
    write(place, STATEMENT)
    return place


def write(place: Path, text: str) -> None:
    (place / "experiments" / "e").mkdir(parents=True, exist_ok=True)
    (place / "experiments" / "e" / "experiment.yaml").write_text(text)


def run(place: Path, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return gptlab("run", "experiments/e", "--yes", "--no-probe", *options, cwd=place, check=check)


def start(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gptlab", "run", "experiments/e", "--yes", "--no-probe"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A suite that runs in the background inherits that interrupts are ignored; a terminal's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def trainings(place: Path) -> Counter[str]:
    """How often each run was trained to its end: each time its last step is computed, that is said in log.txt."""
    return Counter(
        {path.parent.name: path.read_text().count("saved step-00000010") for path in place.glob("runs/*/log.txt")}
    )


def sessions(place: Path) -> dict[str, int]:
    return {path.parent.name: len(json.loads(path.read_text())) for path in place.glob("runs/*/env.json")}


def test_an_arm_more_trains_that_arm_only(finished: tuple[Path, str], tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(finished[0], place)
    assert finished[1].startswith("gated: ")
    assert "after 3 seeds" in finished[1]
    before = {path: path.stat().st_mtime_ns for path in place.glob("runs/*/metrics.jsonl")}
    assert len(before) == 6
    write(place, STATEMENT.replace("seeds: [", "  relu: {model: {block: {mlp: ReLU2}}}\nseeds: ["))
    second = run(place)
    after = {path: path.stat().st_mtime_ns for path in place.glob("runs/*/metrics.jsonl")}
    assert {path: after[path] for path in before} == before  # nothing that was there was touched
    assert sorted(path.parent.name[:6] for path in set(after) - set(before)) == ["e-relu"] * 3
    assert "at most 3 runs to train (3 of relu)" in second.stderr
    assert set(trainings(place).values()) == {1}
    # Once more: everything is there, nothing is trained, the verdict is the same.
    assert run(place).stdout == second.stdout
    assert set(sessions(place).values()) == {1}
    # A renamed baseline is the same baseline.
    (place / "base.yaml").rename(place / "other.yaml")
    write(place, (place / "experiments/e/experiment.yaml").read_text().replace("base.yaml", "other.yaml"))
    assert run(place).stdout == second.stdout
    assert len(list(place.glob("runs/*"))) == 9


def test_other_code_is_said_and_can_be_refused(finished: tuple[Path, str], tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(finished[0], place)
    for path in place.glob("runs/base-*/facts.json"):
        path.write_text(json.dumps(plain_json(path)).replace('"torch": "', '"torch": "1.'))
    assert "careful: paired runs differ in more than the arm, seed 1: torch" in run(place).stderr
    refused = run(place, "--strict", check=False)
    assert refused.returncode == 2
    assert "arm 'gated', seed 1: torch" in refused.stderr


def test_killed_three_times_it_ends_with_the_same_verdict(place: Path, finished: tuple[Path, str]) -> None:
    rng = random.Random(7)
    for how in ("all", "parent", "interrupt"):
        process = start(place)
        time.sleep(rng.uniform(3.0, 11.0))
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            children = _children(process.pid) if how == "all" else []
            process.kill()
            for child in children:  # the machine went down; without it, an orphan trains on and is waited for
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        process.communicate(timeout=60)
    assert run(place).stdout == finished[1]
    assert len(list(place.glob("runs/*/facts.json"))) == 6
    assert set(trainings(place).values()) == {1}
    assert not list(place.glob("runs/.*.lock"))


def test_two_at_once_share_the_work(place: Path, finished: tuple[Path, str]) -> None:
    both = [start(place), start(place)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] == finished[1]
    assert set(trainings(place).values()) == {1}
    assert set(sessions(place).values()) == {1}
    finished = [text.count("finished ") for _, text in said]
    assert sum(finished) == 6
    assert min(finished) > 0  # each of them has done some of it


def test_a_planted_mismatch_is_refused(place: Path) -> None:
    write(place, STATEMENT.replace("multiple_of: 1", "multiple_of: 1, ratio: 3.2"))
    done = run(place)
    assert "no verdict, not matched, parameters" in done.stdout
    assert "(+" in done.stdout
    assert len(list(place.glob("runs/*"))) == 2  # one pair shows it: no further seed is paid for


def test_a_run_that_diverges_is_not_trained_again(place: Path) -> None:
    write(place, STATEMENT.replace("gated: {", "gated: {optimizer: {lr: 1e20}, "))
    done = run(place)
    assert "no verdict, e-gated" in done.stdout
    assert "is not finite" in done.stdout
    assert run(place).stdout == done.stdout
    assert not list(place.glob("runs/e-gated*/facts.json"))


def test_what_a_machine_cannot_do_ends_the_command_before_a_run(place: Path) -> None:
    (place / "base.yaml").write_text(BASE.replace("device: cpu", "device: 'cuda:99'"))
    done = run(place, check=False)
    assert done.returncode == 2
    assert "arm 'baseline': system.device: 'cuda:99', but" in done.stderr
    assert not list(place.glob("runs/*"))


def test_what_a_child_cannot_do_ends_the_command(place: Path) -> None:
    """Found where the loss is built, which is only in the process that trains."""
    (place / "loss.py").write_text(
        "from gptlab.errors import ConfigError\nfrom gptlab.loss import CrossEntropy\n\n\n"
        "class Refusing(CrossEntropy):\n    def __init__(self) -> None:\n"
        "        raise ConfigError('it cannot be', key='loss')\n"
    )
    (place / "base.yaml").write_text(f"{BASE}\nloss: ./loss.py:Refusing\n")
    done = run(place, check=False)
    assert done.returncode == 2
    assert "baseline seed 1: " in done.stderr
    assert "it cannot be" in done.stderr
    assert not list(place.glob("runs/*"))


def _children(process: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


def test_one_probe_serves_all_rates(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptlab.lab.experiment.evidence import evaluate_experiment
    from gptlab.lab.experiment.ledger import Ledger
    from gptlab.lab.experiment.run_queue import missing_runs
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.runs import predictions
    from gptlab.lab.runs.store import Store

    probed, real = [], predictions.plan_in_subprocess
    monkeypatch.setattr(predictions, "plan_in_subprocess", lambda path: (probed.append(path), real(path))[1])
    monkeypatch.chdir(place)
    write(place, STATEMENT + "tune: {optimizer.lr: [x0.5, x1]}\ntune_seeds: [11]\n")
    experiment, store = load_experiment("experiments/e"), Store()
    runs = missing_runs(evaluate_experiment(Ledger.read(experiment, store)))
    found = predictions.predict_runs(runs, store, probe=True)
    assert len({run.hash for run in runs}) == len(found) == 4
    assert len(probed) == 2  # one of each MLP
    for run in runs:  # what is kept is kept for each, and of its own shape
        plan = predictions.kept_plans([run.hash], store)[run.hash]
        assert plan.prediction() == found[run.hash]
    assert len({plan.footprint.flops_per_token for plan in predictions.kept_plans(found, store).values()}) == 2


def test_an_experiment_brings_its_data(tmp_path: Path) -> None:
    gptlab("experiment", "copy", "muon-adamw", "e", "--baseline", "demo", cwd=tmp_path)
    done = gptlab("run", "e", "--dry-run", "--no-probe", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "gptlab data prepare stdlib" in done.stderr
    done = gptlab("run", "e", "--dry-run", "--no-probe", "--prepare", cwd=tmp_path)
    assert (tmp_path / "data/stdlib/dataset.json").is_file()
    assert "runs to train" in done.stderr
    copied = gptlab("experiment", "copy", "muon-adamw", cwd=tmp_path).stderr
    assert "`gptlab experiment copy muon-adamw experiments/muon-adamw-demo --baseline demo`" in copied
