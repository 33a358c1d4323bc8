"""A model cut over processes: the same curve as in one, and checkpoints that go from any layout to any other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gptlab, make_data, make_questions, python_of, rows
from safetensors.numpy import load_file

from gptlab.config import Parallel, config_from, dump_yaml
from gptlab.errors import ConfigError
from gptlab.parallel import World, check_layout, choose_layout
from gptlab.parallel.layout import DataParallel, SingleProcess
from gptlab.parallel.sharded import Sharded

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "data": {"path": "data"},
    "train": {"tokens": 2560, "batch_tokens": 256, "sequence_length": 32, "dtype": "float32", "gradient_clip": 0.5},
    "eval": {"every": 5, "tokens": 512, "tasks": [], "at_start": False},
    "checkpoint": {"every": 4},
    "system": {"device": "cpu", "threads": 1, "micro_batch": 2},
}
TINY = {"dim": 32, "layers": 2, "heads": 2}
MUON = {"use": "Muon", "lr": 0.01}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"base": "gptlab:gpt2-mini", "model": TINY},
    "llama3": {"base": "gptlab:llama3-1m", "model": {**TINY, "heads": 4, "block": {"attention": {"kv_heads": 2}}}},
    "modded": {
        "base": "gptlab:modded",
        # Its own make 0.01 of the last digit of a gradient that is nearly 0: Adam divides by its size.
        "optimizer": {"lr": 0.005, "embedding_lr": 0.006, "head_lr": 0.0008, "scalar_lr": 0.0004, "eps": 1e-4},
        "model": {
            **TINY,
            "initialization": {"head_std": 0.02},
            "layers": 4,
            "block": {
                "without_attention": [2],
                "attention": {"window": 24, "window_start": 8, "window_step": 8, "value_embeddings": 1},
            },
        },
    },
    "muon, q k v apart": {"model": {**TINY, "tied": False}, "optimizer": {**MUON, "momentum_warmup": 4}},
    "experts": {"model": {**TINY, "block": {"mlp": {"use": "MoE", "experts": 4, "balance_rate": 0.01}}}},
    "MLA": {"model": {**TINY, "block": {"attention": {"use": "MLA", "kv_rank": 8}}}},
    "muP": {"model": {**TINY, "mup": {"dim": 16, "heads": 1}}},
    "a batch that grows, by the norm": {"model": TINY, "train": {"growth": {"use": "GradientNorm"}}},
    "decay by perplexity": {"model": TINY, "optimizer": {"use": "AdamW", "perplexity_power": 1.0}},
    "documents and the key before": {
        "model": {
            **TINY,
            "head_dim": 16,
            "position": {"use": "RoPE", "fraction": 0.5},
            "block": {"attention": {"document_mask": True, "window": 20, "key_offset": True}},
        }
    },
    "slopes": {"model": {**TINY, "position": "ALiBi"}},
    "latent block": {"model": {**TINY, "block": "LatentAttentionBlock", "position": "NoPosition"}},
    "a window that grows": {
        "model": {**TINY, "block": {"attention": {"window": 24, "window_start": 8, "window_step": 8}}},
        "log": {"samples": {"every": 5, "tokens": 4}},
        "eval": {"tasks": ["hellaswag"], "limit": 4},
    },
}
# What is learnt must not hang on which way a bfloat16 rounds: Muon's products are in float32 here.
SCRIPT = """
import json, sys
import gptlab.optim
from gptlab.config import load_config
from gptlab.hardware.device import pick_device
from gptlab.parallel import destroy_distributed, find_world, init_distributed
from gptlab.training.loop import train

gptlab.optim.has_fast_bfloat16 = lambda device: False
joined = init_distributed(find_world(), pick_device("cpu", 0))
for file, out, settings, resume in json.loads(sys.argv[1]):
    train(load_config(file, settings), folder=out, resume=resume)
destroy_distributed(joined)
"""

Job = tuple[str, str, list[str], bool]


def launch(processes: int, jobs: list[Job]) -> list[str]:
    """The command that trains each of `jobs`: config, folder, settings, whether to resume."""
    return [*python_of(processes), "script.py", json.dumps(jobs)]


def run_all(place: Path, processes: int, jobs: list[Job]) -> None:
    """Train each of `jobs` by so many processes."""
    done = subprocess.run(
        launch(processes, jobs),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    own = [line for line in done.stderr.splitlines() if line.startswith("[rank") or "rror" in line]
    assert done.returncode == 0, "\n".join(own[-60:]) or done.stderr[-2000:]


def write(place: Path, name: str, values: dict[str, Any]) -> None:
    merged = {**SMALL, **{k: v for k, v in values.items() if k != "train" and k != "eval"}}
    merged |= {part: {**SMALL[part], **values.get(part, {})} for part in ("train", "eval")}
    (place / f"{name}.yaml").write_text(dump_yaml(merged))


SHARDS = ["parallel.shard=all"]
GROUPS = ["parallel.shard=2", "system.micro_batch=1"]
STRETCHES = ["parallel.context=2"]
BOTH = ["parallel.context=2", "parallel.shard=all", "system.micro_batch=1"]
TENSOR = ["parallel.tensor=2"]
SOME = ["modded", "muon, q k v apart", "experts", "MLA"]
LAYOUTS: dict[str, tuple[int, list[str], list[str]]] = {  # processes, settings, models
    "two": (2, SHARDS, list(MODELS)),
    "groups": (4, GROUPS, SOME),
    "stretches": (2, STRETCHES, list(MODELS)),
    "four stretches": (4, ["parallel.context=4"], ["documents and the key before", "modded"]),
    "stretches of pieces": (4, BOTH, SOME),
    "tensor": (2, TENSOR, [name for name in MODELS if name != "slopes"]),
    "tensor of pieces": (4, [*TENSOR, "parallel.shard=all"], [*SOME, "llama3"]),
    "tensor, copied": (4, [*TENSOR, "system.micro_batch=1"], ["gpt2"]),
    "tensor and stretches": (4, [*TENSOR, *STRETCHES], ["modded", "MLA"]),
    "three": (8, [*TENSOR, *BOTH], ["modded", "muon, q k v apart"]),
    "computed again": (1, ["parallel.recompute=full"], SOME),
    "computed again but for products": (2, ["parallel.recompute=selective", *TENSOR], SOME),
    "pieces computed again": (2, ["parallel.recompute=full", *SHARDS], SOME),
}
CASES = [(where, name) for where, (_, _, names) in LAYOUTS.items() for name in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each model trained by one process, and in every layout that it is tested in."""
    folder = tmp_path_factory.mktemp("sharded")
    make_data(folder)
    make_questions(folder / "data/benchmarks", 8)
    (folder / "script.py").write_text(SCRIPT)
    for name, values in MODELS.items():
        write(folder, name, values)
    for where, (processes, settings, names) in {"one": (1, [], list(MODELS)), **LAYOUTS}.items():
        run_all(folder, processes, [(f"{name}.yaml", f"{where}/{name}", settings, False) for name in names])
    return folder


def equal_runs(found: Path, expected: Path) -> None:
    a, b = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-5, rtol=0, err_msg=name)
    assert [row["step"] for row in rows(found)] == [row["step"] for row in rows(expected)]
    for row, its in zip(rows(found), rows(expected), strict=True):
        for key in set(its) - {"seconds", "tokens_per_second"}:
            assert row[key] == pytest.approx(its[key], abs=1e-5, rel=1e-5), key


@pytest.mark.parametrize(("where", "name"), CASES)
def test_the_curve_is_that_of_one_process(place: Path, name: str, where: str) -> None:
    equal_runs(place / where / name, place / "one" / name)


def test_what_is_drawn_while_training_is_drawn_from_whole_weights(place: Path) -> None:
    name = "a window that grows"
    drawn = [(place / where / name / "samples.jsonl").read_text() for where in ("one", "two", "stretches", "tensor")]
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]
    assert "val/hellaswag/acc" in rows(place / "two" / name)[-1]


def test_each_process_wrote_its_piece_of_a_checkpoint(place: Path) -> None:
    (newest, *_) = sorted((place / "two/gpt2/checkpoints").glob("step-*"), reverse=True)
    sizes = [file.stat().st_size for file in newest.glob("*.safetensors")]
    assert len(sizes) == 2
    whole = (place / "one/gpt2/checkpoints" / newest.name / "model.safetensors").stat().st_size
    assert max(sizes) < 0.6 * whole


MOVES = [
    ("one", 2, SHARDS),
    ("two", 1, []),
    ("two", 4, GROUPS),
    ("groups", 2, ["parallel.shard=1"]),
    ("groups", 4, ["parallel.shard=all", "system.micro_batch=1"]),
    ("one", 4, [*TENSOR, "parallel.shard=all"]),
    ("tensor", 2, STRETCHES),
    ("tensor of pieces", 1, []),
    ("stretches of pieces", 2, TENSOR),
]


@pytest.mark.parametrize(("where", "processes", "settings"), MOVES)
def test_a_checkpoint_goes_to_any_other_layout(
    place: Path, tmp_path: Path, where: str, processes: int, settings: list[str]
) -> None:
    """Its runs lose what came after their eighth step, and go on in another layout."""
    for part in ("data", "script.py"):
        (tmp_path / part).symlink_to(place / part)
    names = [name for name in ("gpt2", "muon, q k v apart") if (place / where / name).is_dir()]
    for name in names:
        shutil.copy(place / f"{name}.yaml", tmp_path)
        shutil.copytree(place / where / name, tmp_path / name)
        for gone in ("model.safetensors", "facts.json", "checkpoints/step-00000010"):
            target = tmp_path / name / gone
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    run_all(tmp_path, processes, [(f"{name}.yaml", name, settings, True) for name in names])
    for name in names:
        assert "from step 8" in (tmp_path / name / "log.txt").read_text()
        equal_runs(tmp_path / name, place / "one" / name)


KILLS = [("tensor of pieces", "two"), ("stretches", "tensor"), ("three", "tensor, copied"), ("two", "two")]


@pytest.mark.parametrize(("where", "then"), KILLS)
def test_killed_in_one_layout_it_goes_on_in_another(place: Path, tmp_path: Path, where: str, then: str) -> None:
    """All processes at once, by SIGKILL, at a moment after the first checkpoint that nobody chose."""
    name = "muon, q k v apart"
    for part in ("data", "script.py", f"{name}.yaml"):
        (tmp_path / part).symlink_to(place / part)
    processes, settings, _ = LAYOUTS[where]
    run = tmp_path / name
    with subprocess.Popen(
        launch(processes, [(f"{name}.yaml", name, settings, False)]),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as training:
        deadline = time.monotonic() + 300
        while not list(run.glob("checkpoints/step-*")) and training.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(training.pid, signal.SIGKILL)
    processes, settings, _ = LAYOUTS[then]
    run_all(tmp_path, processes, [(f"{name}.yaml", name, settings, True)])
    equal_runs(run, place / "one" / name)


def test_layouts_are_chosen_by_world_and_config() -> None:
    cpu, pieces = torch.device("cpu"), Parallel(shard="all")
    assert isinstance(choose_layout(World(), cpu, pieces), SingleProcess)
    assert isinstance(choose_layout(World(0, 4), cpu, Parallel()), DataParallel)
    assert isinstance(choose_layout(World(0, 4), cpu), DataParallel)
    for shard, expected in (("all", 4), (4, 4), (2, 2)):
        layout = choose_layout(World(0, 4), cpu, Parallel(shard=shard))
        assert isinstance(layout, Sharded)
        assert layout.pieces == expected
    layout = choose_layout(World(5, 8), cpu, Parallel(tensor=2))
    assert (layout.copies, layout.data_rank, layout.data_size) == (2, 2, 4)


REFUSED = [
    (["parallel.shard=3"], "parallel.shard: 4 processes are no multiple of 3; use 2, or all"),
    (["parallel.shard=8"], "parallel.shard: 4 processes are no multiple of 8; use 4, or all"),
    (["parallel.tensor=3"], "parallel.tensor: 4 processes are no multiple of 3; use 2"),
    (["parallel.tensor=2", "parallel.shard=4"], "parallel.shard: 2 processes are no multiple of 4; use 2, or all"),
    (["parallel.tensor=2", "parallel.context=4"], "parallel.context: 2 processes are no multiple of 4; use 2"),
    (
        ["parallel.context=4", "train.sequence_length=30", "train.batch_tokens=240"],
        "30 tokens cannot be cut .* 32",
    ),
    (["parallel.context=2", "loss=MultiToken", "model.ahead=1"], "parallel.context: MultiToken looks for targets"),
    (["train.batch_tokens=192"], "6 sequences a step cannot be shared by 4 processes; make it a multiple of 128"),
    (
        ["parallel.tensor=2", "train.batch_tokens=96"],
        "3 sequences .* by 2 groups of 2 processes; .* of 64",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_layouts_that_cannot_be_are_refused_before_processes_meet(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_layout(config_from(SMALL, settings), World(0, 4))


def table() -> str:
    """Which model was trained in which layout, for the manual."""
    lines = ["| | " + " | ".join(MODELS) + " |", "|---|" + "---|" * len(MODELS)]
    for where, (processes, settings, names) in LAYOUTS.items():
        how = ", ".join(setting.removeprefix("parallel.") for setting in settings if setting.startswith("parallel."))
        marks = ["yes" if name in names else "" for name in MODELS]
        lines.append(f"| {where}: {processes} × `{how or 'shard=1'}` | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def test_the_manual_shows_what_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/distributed.md").read_text("utf-8")
    assert table() in page, table()


def test_from_the_command_line_in_one_line(place: Path) -> None:
    done = gptlab("train", "gpt2.yaml", "--set", "parallel.shard=none", "--out", "odd", cwd=place, check=False)
    assert done.returncode == 2
    assert "parallel.shard" in done.stderr.strip().splitlines()[-1]
