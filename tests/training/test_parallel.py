"""The same global batch, however it is cut: by processes, by accumulation."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data, make_questions, only_run, python_of, rows
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

MOE = "model.block.mlp={use: MoE, experts: 4, expert: {use: SwiGLU, hidden: 16}, balance_rate: 0.01}"
OPTIONS = ["data.path=data", "eval.every=7", "eval.tasks=[hellaswag]", "checkpoint.every=11", MOE]
SETTINGS = [part for option in OPTIONS for part in ("--set", option)]
RECORD_IDS = """
import hashlib, json, os, sys
import gptlab.training.loop as train
kept = train.step
def recording(job):
    batch = job.stream.batch(job.step, job.world.rank, job.world.size)
    with open(f"ids-{job.world.rank}.jsonl", "a") as file:
        file.write(json.dumps(batch.inputs.tolist()) + "\\n")
    return kept(job)
train.step = recording
from gptlab.config import load_config
train.train(load_config("config.yaml", sys.argv[1:]))
"""


def run(
    folder: Path, data: Path, processes: int, micro_batch: int
) -> tuple[list[list[int]], dict[str, np.ndarray], list[dict]]:
    """Train 20 steps; return the rows of ids of each step, the final weights, and the metrics."""
    folder.mkdir()
    (folder / "data").symlink_to(data)
    make_questions(folder / "data/benchmarks", 40)
    (folder / "config.yaml").write_text(TINY)
    (folder / "script.py").write_text(RECORD_IDS)
    options = [*OPTIONS, f"system.micro_batch={micro_batch}"]
    done = subprocess.run(
        [*python_of(processes), "script.py", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    per_rank = [
        [json.loads(line) for line in (folder / f"ids-{rank}.jsonl").read_text().splitlines()]
        for rank in range(processes)
    ]
    ids = [[row for rank in per_rank for row in rank[step]] for step in range(20)]
    found = only_run(folder)
    return ids, load_file(found / "model.safetensors"), rows(found)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], tuple]:
    folder = tmp_path_factory.mktemp("parallel")
    data = make_data(folder / "source")
    # (processes, sequences at once) of a global batch of 8: accumulation 1, 2 and 4 on one process
    layouts = [(1, 8), (1, 4), (1, 2), (2, 4), (4, 1)]
    return {layout: run(folder / f"run-{layout[0]}-{layout[1]}", data, *layout) for layout in layouts}


@pytest.mark.parametrize("layout", [(1, 4), (1, 2), (2, 4), (4, 1)])
def test_same_tokens_and_weights(runs: dict[tuple[int, int], tuple], layout: tuple[int, int]) -> None:
    ids, weights, metrics = runs[layout]
    expected_ids, expected_weights, expected_metrics = runs[1, 8]
    assert ids == expected_ids
    assert len({str(step) for step in ids}) == 20  # and not always the same batch
    for name, weight in expected_weights.items():
        np.testing.assert_allclose(weights[name], weight, atol=1e-5, rtol=0)
    assert [row["step"] for row in metrics] == [row["step"] for row in expected_metrics]
    for row, expected in zip(metrics, expected_metrics, strict=True):
        for key in ("train/loss", "val/loss", "val/hellaswag/acc"):
            if key in expected:
                assert row[key] == pytest.approx(expected[key], abs=1e-5)
    assert sum("val/hellaswag/acc" in row for row in metrics) == 4  # before the first step, and three times


def test_a_checkpoint_of_two_processes_resumes_on_one(
    runs: dict[tuple[int, int], tuple], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its last checkpoint is deleted, so that one process goes on from step 11 of what two had begun."""
    folder = next(iter(tmp_path_factory.getbasetemp().glob("parallel*"))) / "run-2-4"
    found = only_run(folder)
    shutil.rmtree(found / "checkpoints" / "step-00000020")
    (found / "model.safetensors").unlink()
    done = gptlab("train", "config.yaml", *SETTINGS, "--set", "system.micro_batch=4", "--resume", cwd=folder)
    assert "from step 11" in done.stderr
    for name, weight in runs[1, 8][1].items():
        np.testing.assert_allclose(load_file(found / "model.safetensors")[name], weight, atol=1e-5, rtol=0)
