"""experiments/example-block, end to end: check, train, load, sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import gptlab, make_data, only_run

import gptlab as package
from gptlab.config import difference, load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "experiments" / "example-block"
SETTINGS = [
    "data.path=data",
    "model.dim=32",
    "model.layers=2",
    "train.tokens=8192",
    "train.batch_tokens=512",
    "train.sequence_length=32",
    "eval.every=0",
    "system.device=cpu",
    "system.threads=1",
]


def test_it_is_as_short_as_it_says() -> None:
    assert len((EXAMPLE / "block.py").read_text().splitlines()) <= 30


def test_the_diff_changes_the_block_only() -> None:
    demo, example = (load_config(path) for path in ("demo", EXAMPLE / "example-block.yaml"))
    assert [key for key, _, _ in difference(demo.plain(), example.plain())] == ["name", "model.block"]


@pytest.mark.slow
def test_it_checks_trains_loads_and_samples(tmp_path: Path) -> None:
    make_data(tmp_path)
    part = "experiments/example-block"
    shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    done = gptlab("check", "./experiments/example-block/block.py:GatedBlock", "--backend", "aot_eager", cwd=tmp_path)
    assert "none broken" in done.stdout
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    gptlab("train", "experiments/example-block/example-block.yaml", *options, cwd=tmp_path)
    shutil.rmtree(tmp_path / "experiments")  # the run folder has what it needs
    run = package.load(only_run(tmp_path))
    assert type(run.model.blocks[0]).__name__ == "GatedBlock"
    losses = [row["train/loss"] for row in run.metrics if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.5
    assert run.model.blocks[0].gates.std() > 0  # it has learned something
    sampled = gptlab("sample", str(run.folder), "the cat", "--max-new-tokens", "5", "--seed", "1", cwd=tmp_path)
    assert "the cat" in sampled.stdout
