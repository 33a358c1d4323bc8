"""A plan of one process of many, against processes that are there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gptlab, python_of

from gptlab.config import config_from, dump_yaml
from gptlab.errors import ConfigError
from gptlab.training.ranks import RankPlan, Transfer, plan_rank

VALUES: dict[str, Any] = {
    "data": {"path": "data"},
    "model": {"dim": 32, "layers": 2, "heads": 4, "block": {"mlp": "SwiGLU"}},
    "train": {"tokens": 2560, "batch_tokens": 512, "sequence_length": 32, "dtype": "float32"},
    "system": {"micro_batch": 2},
}
V = 97
LAYOUTS = {
    "copies": (2, []),
    "pieces": (2, ["parallel.shard=all"]),
    "groups of pieces": (4, ["parallel.shard=2"]),
    "layers": (2, ["parallel.tensor=2"]),
    "layers of pieces": (4, ["parallel.tensor=2", "parallel.shard=all"]),
    "stretches": (2, ["parallel.context=2"]),
    "stretches of pieces, again": (4, ["parallel.context=2", "parallel.shard=all", "parallel.recompute=full"]),
    "Muon's share": (2, ["parallel.shard=all", "optimizer=Muon"]),
}
SCRIPT = """
import contextlib, dataclasses, json, sys, torch
from gptlab.config import load_config
from gptlab.model import build_model
from gptlab.parallel import choose_layout, destroy_distributed, find_world, init_distributed
from gptlab.training.ranks import measure

cpu, world, found = torch.device("cpu"), find_world(), {}
joined = init_distributed(world, cpu)
for name, settings in json.loads(sys.argv[1]).items():
    config = load_config("config.yaml", settings)
    layout = choose_layout(world, cpu, config.parallel)
    rows = config.sequences_per_step // layout.data_size
    plan = measure(config, build_model(config, 97), layout, 2, rows // 2, 1, torch.float32,
                   contextlib.nullcontext(), False)
    found[name] = dataclasses.asdict(plan)
if world.is_main:
    print(json.dumps(found))
destroy_distributed(joined)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Each layout, measured in real processes that talk by gloo."""
    place, found = tmp_path_factory.mktemp("ranks"), {}
    (place / "config.yaml").write_text(dump_yaml(VALUES))
    (place / "script.py").write_text(SCRIPT)
    for processes in (2, 4):
        asked = {name: settings for name, (count, settings) in LAYOUTS.items() if count == processes}
        done = subprocess.run(
            [*python_of(processes), "script.py", json.dumps(asked)],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found |= json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return found


def planned(name: str) -> RankPlan:
    processes, settings = LAYOUTS[name]
    return plan_rank(config_from(VALUES, settings), V, processes, per_node=1, accelerator=False, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plan_counts_what_real_processes_hold_and_send(real: dict[str, dict[str, Any]], name: str) -> None:
    found, theirs = planned(name), real[name]
    for kind in ("weights", "gradients", "optimizer"):
        assert getattr(found, kind) == theirs[kind], kind
    assert found.working == pytest.approx(theirs["working"], rel=0.05)
    assert (found.micro_batch, found.micro_batches) == (theirs["micro_batch"], theirs["micro_batches"])
    if name == "copies":  # DDP's buckets travel where nothing sees them
        return
    assert [vars(one) for one in found.transfers] == theirs["transfers"]


def test_copies_exchange_every_gradient_once() -> None:
    found = planned("copies")
    assert found.transfers == (Transfer("all-reduce", 2, True, 1, found.gradients),)
    assert found.transfers[0].sent == found.gradients


def test_pieces_shrink_with_processes() -> None:
    def states(processes: int) -> int:
        config = config_from(VALUES | {"train": {**VALUES["train"], "batch_tokens": 32 * 64}}, ["parallel.shard=all"])
        found = plan_rank(config, V, processes, per_node=8, accelerator=False, dtype=torch.float32)
        return found.gradients + found.optimizer

    assert states(16) < 1.2 * states(4) / 4 < states(4)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.tensor: 2 processes are no multiple of 4"):
        plan_rank(config_from(VALUES, ["parallel.tensor=4"]), V, 2, per_node=8)


def test_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml(VALUES | {"train": {**VALUES["train"], "batch_tokens": 32 * 1024}}))
    done = gptlab(
        "plan",
        str(tmp_path / "config.yaml"),
        "--nodes",
        "128",
        "--gpu",
        "H100 SXM",
        "--set",
        "parallel.shard=8",
        "--vocab-size",
        "97",
        cwd=tmp_path,
    )
    assert "one of 1,024 processes, 128 × 8" in done.stdout
    assert "all-reduce, between machines" in done.stdout
    assert "all-gather, inside one" in done.stdout
    assert "MFU" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "2", "--gpus", "4", "--gpu", "T4"], "--nodes plans one process of many, and --gpus a whole run"),
        (["--nodes", "100000000"], "--nodes: 800,000,000 processes; at most"),
        (["--nodes", "2", "--link", "0"], "--link 0: give billions of bytes a second, above 0"),
        (["--nodes", "3", "--vocab-size", "97"], "16 sequences a step cannot be shared by 24 processes"),
    ],
)
def test_bad_options_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml(VALUES))
    done = gptlab("plan", str(tmp_path / "config.yaml"), *options, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
