"""`gptlab mup check`: muP passes, a model whose parts do not follow it is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import gptlab, make_data

from gptlab.config import load_config
from gptlab.contracts.coordinates import coordinate_check, exponents
from gptlab.errors import ConfigError

CONFIG = """
data: {path: data}
model: {dim: 32, layers: 2, heads: 2, mup: {dim: 32, heads: 2}, initialization: {residual: plain}}
optimizer: {lr: 4e-3, weight_decay: 0.0}
train: {tokens: 5120, batch_tokens: 256, sequence_length: 32}
"""
# The learning rate of the MLP's second matrix ignores its width: what a part that muP is not told of looks like.
ASTRAY = """
import torch
from gptlab.optim import AdamW


class Astray(AdamW):
    slot = "optimizer"

    def __init__(self, named_parameters, *, lr: float = 1e-3):
        super().__init__(named_parameters, lr=lr, weight_decay=0.0)
        for group in self.param_groups:
            group["lr"] = group["base_lr"] = lr
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mup")
    make_data(folder)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "astray.py").write_text(ASTRAY)
    return folder


def test_moves_are_constant_under_mup_and_grow_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    moves = coordinate_check(load_config("config.yaml"), [32, 64, 128, 256], steps=3)
    found = exponents(moves)
    places = ("embedding", "attention", "mlp", "stream", "logits")
    assert set(found) == {(kind, place) for kind in ("standard", "mup") for place in places}
    assert all(abs(found["mup", place]) < 0.25 for place in places)
    assert all(found["standard", place] > 0.5 for place in ("attention", "mlp", "stream"))
    assert {move.step for move in moves} == {1, 2, 3}
    narrow = {(m.parametrization, m.place, m.step): m.size for m in moves if m.width == 32}
    assert all(narrow["mup", place, 3] == narrow["standard", place, 3] for place in places)  # the base is the base


def test_the_command(folder: Path) -> None:
    done = gptlab("mup", "check", "config.yaml", "--widths", "32,64,128,256", "--out", "check.png", cwd=folder)
    assert "attention" in done.stdout
    assert (folder / "check.png").stat().st_size > 10_000
    astray = ("--set", "optimizer={use: './astray.py:Astray', lr: 4e-3}")
    found = gptlab("mup", "check", "config.yaml", "--widths", "32,64,128,256", *astray, cwd=folder, check=False)
    assert found.returncode == 1
    assert "not constant in width under muP" in found.stderr


def test_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=r"model.mup is not set; give the base"):
        coordinate_check(load_config("config.yaml", ["model.mup=null"]))
    with pytest.raises(ConfigError, match="must be multiples of the base's 32"):
        coordinate_check(load_config("config.yaml"), [48])
    done = gptlab("mup", "check", "config.yaml", "--widths", "many", cwd=folder, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
