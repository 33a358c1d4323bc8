"""How far a run has come: one function says it, of folders in every condition."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptlab.errors import ConfigError, TrainingError
from gptlab.record import runfolder
from gptlab.record.runfolder import Failure, State, note_error, read_failure, state, write_failure

HASH = "0123abcd"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run."""
    folder = tmp_path / f"name-{HASH}-seed1"
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: name\n")
    (folder / "facts.json").write_text("{}")
    (folder / "env.json").write_text(json.dumps([{"config_hash": HASH}]))
    save_file({"w": torch.zeros(4)}, folder / "model.safetensors")
    return folder


def test_nothing_there(tmp_path: Path) -> None:
    assert state(tmp_path / "none") is State.ABSENT
    (tmp_path / "empty").mkdir()
    assert state(tmp_path / "empty") is State.ABSENT


def test_from_its_beginning_to_its_end(run: Path) -> None:
    assert state(run) is State.FINISHED
    (run / "facts.json").unlink()
    assert state(run) is State.INTERRUPTED  # killed between its weights and its facts
    (run / "model.safetensors").unlink()
    assert state(run) is State.INTERRUPTED
    (run / "checkpoints" / "step-00000002").rmdir()
    assert state(run) is State.STARTED


def test_a_run_that_became_another_is_not_the_one_that_its_name_says(run: Path) -> None:
    (run / "env.json").write_text(json.dumps([{"config_hash": HASH}, {"config_hash": "ffffffff"}]))
    assert state(run) is State.RECONFIGURED
    assert state(run, "ffffffff") is State.FINISHED
    renamed = run.rename(run.parent / "mine")
    assert state(renamed) is State.FINISHED  # a name without a hash promises none


@pytest.mark.parametrize("says", ["env.json", "config.yaml"])
def test_a_copy_under_the_name_of_another_seed_is_not_that_seeds_run(run: Path, says: str) -> None:
    if says == "env.json":
        (run / "env.json").write_text(json.dumps([{"config_hash": HASH, "seed": "1"}]))
    else:  # as before 0.4
        (run / "config.yaml").write_text("name: name\nseed:\n  init: 1\n  data: 1\n  dropout: 1\ntrain: {}\n")
    assert state(run) is State.FINISHED
    copy = shutil.copytree(run, run.with_name(f"name-{HASH}-seed2"))
    assert state(copy) is State.RECONFIGURED
    assert state(copy.rename(run.with_name(f"other-{HASH}-seed1"))) is State.FINISHED


def test_what_was_imported_has_no_facts_and_is_finished(run: Path) -> None:
    (run / "facts.json").unlink()
    (run / "env.json").write_text(json.dumps([{"config_hash": "ffffffff", "imported": {"from": "hub"}}]))
    assert state(run) is State.FINISHED


@pytest.mark.parametrize("damage", ["cut weights", "no header", "torn facts", "no config"])
def test_damage_is_seen(run: Path, damage: str) -> None:
    weights = run / "model.safetensors"
    match damage:
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "no header":
            weights.write_bytes(b"\xff" * 20)
        case "torn facts":
            (run / "facts.json").write_text('{"schema": ')
        case "no config":
            (run / "config.yaml").unlink()
    assert state(run) is State.DAMAGED


def test_a_run_that_diverged_says_why_and_where(run: Path) -> None:
    write_failure(run, Failure(runfolder.DIVERGED, "step 7: the loss is nan", step=7))
    assert state(run) is State.DIVERGED
    assert read_failure(run) == Failure("diverged", "step 7: the loss is nan", key=None, step=7)


def test_the_mark_of_an_older_gptlab_is_read(run: Path) -> None:
    (run / "failed.json").write_text('{"reason": "step 3: the loss is inf"}')
    assert read_failure(run) == Failure("diverged", "step 3: the loss is inf")


def test_an_error_is_noted_where_a_run_was_about_to_begin_and_nowhere_else(run: Path, tmp_path: Path) -> None:
    error = ConfigError("model.heads: 3 heads do not divide the width 32", key="model.heads")
    (tmp_path / "new").mkdir()
    note_error(tmp_path / "new", error)
    assert read_failure(tmp_path / "new") == Failure("ConfigError", str(error), key="model.heads")
    assert state(tmp_path / "new") is not State.DIVERGED  # it would not come again
    note_error(run, TrainingError("one sequence does not fit"))
    note_error(tmp_path / "none", error)
    assert not (run / "failed.json").exists()
    assert not (tmp_path / "none").exists()


def test_a_digest_of_weights_is_read_anew_where_the_file_is_another(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runfolder.digest_of_weights(run)
    with monkeypatch.context() as once:
        once.setattr(runfolder, "weights_digest", lambda path: pytest.fail("the file is read again"))
        assert runfolder.digest_of_weights(run) == first
    save_file({"w": torch.ones(4)}, run / "model.safetensors")
    os.utime(run / "model.safetensors", ns=(0, 0))  # the same size, another time
    assert runfolder.digest_of_weights(run) != first
    save_file({"w": torch.zeros(4)}, run / "model.safetensors")
    (run / "model.sha256").write_text("[[[")
    assert runfolder.digest_of_weights(run) == first
