"""What gptlab 0.3 left on disk: a data set, and a run with a component of somebody's own and a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import gptlab
from gptlab.config import load_config
from gptlab.data import TokenDataset, verify
from gptlab.evals.benchmark import Options, evaluate
from gptlab.record.facts import read_facts
from gptlab.record.metrics import read_metrics
from gptlab.record.runfolder import State, state

OLD = Path(__file__).parent / "fixtures" / "v0.3"
NAME = "old-6e5e42c5-seed1"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all of it."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_data_set_is_whole_and_opens(place: Path) -> None:
    verify(place / "data")
    assert TokenDataset.open(place / "data", "train").tokens > 2000


def test_a_run_is_finished_and_says_what_it_was(place: Path) -> None:
    assert state(place / "runs" / NAME) is State.FINISHED
    assert read_facts(place / "runs" / NAME).steps == 8


def test_a_run_loads_generates_and_evaluates_as_it_did(place: Path) -> None:
    run = gptlab.load(f"runs/{NAME}", device="cpu")
    assert isinstance(run.generate("the cat", max_new_tokens=3), str)
    logged = [row["val/loss"] for row in run.metrics if "val/loss" in row][-1]
    assert run.step == 8
    assert evaluate(run, "loss", Options(limit=8)).results["loss"] == pytest.approx(logged, rel=1e-6)


def test_its_config_still_has_its_hash(place: Path) -> None:
    """So that an experiment finds its baseline: trained anew, the run would get the very same folder."""
    torch.set_num_threads(1)
    config = load_config(f"runs/{NAME}")
    shutil.move(f"runs/{NAME}", "aside")
    config = load_config("aside").model_copy(update={"name": config.name})
    again = gptlab.train(config)
    assert again.folder.name == NAME
    kept, new = (
        [row["train/loss"] for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]
        for folder in (Path("aside"), again.folder)
    )
    assert new == pytest.approx(kept, rel=1e-4)  # to the bit on one machine: scripts/same_results.py


def test_it_goes_on_from_its_checkpoint(place: Path) -> None:
    torch.set_num_threads(1)
    run = gptlab.train(load_config(f"runs/{NAME}", ["train.tokens=1536"]), resume=True, folder=f"runs/{NAME}")
    assert (run.step, run.finished) == (12, True)
    assert [row["step"] for row in run.metrics if "train/loss" in row] == list(range(1, 13))
    assert state(run.folder) is state(Path("runs") / NAME) is State.FINISHED
    assert run.folder.name != NAME  # the name of a run says what it is: a longer one is another
