"""Checkpoints: what is kept, what is trusted, and what is never read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gptlab.errors import CheckpointError
from gptlab.files import sha256_file
from gptlab.optim import AdamW
from gptlab.parallel.world import World
from gptlab.systems.checkpoint import Checkpoints, checkpoint_step, load_tensors, read_state, verify


def trained(seed: int = 0, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    optimizer = AdamW(model.named_parameters())
    for _ in range(2):
        model(torch.randn(3, width)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def make(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep, world=World())
    model, optimizer = trained()
    for step in steps:
        checkpoints.save(step, model, optimizer, {"step": step})
    return checkpoints


def names(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint_step(path) for path in checkpoints.all()]


def reseal(path: Path, **files: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"] |= files
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_model_and_optimizer_come_back_bitwise(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, keep=1, world=World())
    path = checkpoints.save(7, model, optimizer, {"step": 7, "recent": [1.5]})
    assert path.name == "step-00000007"
    assert read_state(path) == {"step": 7, "recent": [1.5]}
    other, other_optimizer = trained(seed=1)
    rates = [group["lr"] for group in other_optimizer.param_groups]
    load_tensors(path, other, other_optimizer, World())
    for name, parameter in model.named_parameters():
        twin = other.get_parameter(name)
        assert torch.equal(parameter, twin)
        assert twin.grad is None
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, other_optimizer.state[twin][key]), (name, key)
    assert [group["lr"] for group in other_optimizer.param_groups] == rates
    # Weights alone, into a model that has no optimizer
    third, _ = trained(seed=2)
    load_tensors(path, third, None, World())
    assert torch.equal(third.get_parameter("1.weight"), model.get_parameter("1.weight"))


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, 1, 2, 3, 4, 5)
    checkpoints.prune(best=2)
    assert names(checkpoints) == [2, 4, 5]
    checkpoints.prune(best=5)
    assert names(checkpoints) == [4, 5]
    checkpoints.prune(best=None)
    assert names(checkpoints) == [4, 5]


def test_what_is_not_finished_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, 3)
    (tmp_path / ".step-00000004.tmp").mkdir()
    (tmp_path / "step-00000005").write_text("a file")
    (tmp_path / "step-6").mkdir()
    assert names(checkpoints) == [3]
    assert checkpoints.newest_whole() == tmp_path / "step-00000003"
    make(tmp_path, 4)  # what a killed process left aside is no obstacle
    assert names(checkpoints) == [3, 4]
    assert Checkpoints(tmp_path / "none", keep=1, world=World()).newest_whole() is None
    with pytest.raises(CheckpointError, match="step-6 is not a checkpoint folder"):
        checkpoint_step(tmp_path / "step-6")


def test_a_step_saved_again_replaces_itself(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, 3)
    (tmp_path / "step-00000003" / "state.json").write_text("damaged")
    assert verify(tmp_path / "step-00000003") == "state.json does not match its checksum"
    make(tmp_path, 3)
    assert checkpoints.newest_whole() == tmp_path / "step-00000003"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"sha256": []}'), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"sha256": {}}'), "manifest.json does not name"),
        (lambda path: (path / "state.json").write_text("{}"), "state.json does not match its checksum"),
    ],
)
def test_damage_is_found_and_the_one_before_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, problem: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr("gptlab.systems.checkpoint.say", said.append)
    checkpoints = make(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002")
    assert problem in str(verify(tmp_path / "step-00000002"))
    assert checkpoints.newest_whole() == tmp_path / "step-00000001"
    assert len(said) == 1
    assert problem in said[0]
    damage(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        checkpoints.newest_whole()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", "./state.json"])
def test_a_manifest_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    make(tmp_path / "checkpoints", 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    (tmp_path / "checkpoints" / "secret").write_text("secret")
    digest = sha256_file(tmp_path / "checkpoints" / "secret")
    reseal(path, **{name: digest})
    problem = verify(path)
    assert problem is not None
    assert "secret does not match" not in problem
    assert "manifest.json" in problem


class Trap:
    """Unpickling this leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    checkpoints = make(tmp_path / "checkpoints", 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    mark = tmp_path / "read"
    trap = pickle.dumps(Trap(mark))
    pickle.loads(trap)
    assert mark.exists()  # the trap works
    mark.unlink()
    for name in (".metadata", "__0_0.distcp", "optimizer.pt", "model.bin", "pytorch_model.bin"):
        (path / name).write_bytes(trap)
        reseal(path, **{name: sha256_file(path / name)})
    assert checkpoints.newest_whole() == path
    model, optimizer = trained(seed=1)
    load_tensors(path, model, optimizer, World())
    assert torch.equal(model.get_parameter("0.weight"), trained()[0].get_parameter("0.weight"))
    assert not mark.exists()
    assert not list((tmp_path / "checkpoints").rglob("*.pkl"))


def test_a_checkpoint_of_another_shape_names_the_tensor(tmp_path: Path) -> None:
    make(tmp_path, 1)
    path = tmp_path / "step-00000001"
    model, optimizer = trained(width=6)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"model\.0\.weight should have shape \[6, 6\] and has shape \[4, 4\]"):
        load_tensors(path, model, optimizer, World())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    larger = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    with pytest.raises(CheckpointError, match=r"model\.2\.weight should have shape \[4, 4\] and does not exist"):
        load_tensors(path, larger, None, World())


def test_tensors_that_are_no_safetensors(tmp_path: Path) -> None:
    make(tmp_path, 1)
    path = tmp_path / "step-00000001"
    for file in path.glob("*.safetensors"):
        file.write_bytes(b"nonsense")
    model, _ = trained()
    with pytest.raises(CheckpointError, match="cannot read the tensors of"):
        load_tensors(path, model, None, World())
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json: damaged \(.*\); use an earlier checkpoint"):
        read_state(path)
