"""Tensors written piece by piece: the same file that safetensors would make, and no second copy in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from gptlab.systems import tensorfile
from gptlab.systems.tensorfile import write_tensors

TENSORS = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.bf16": torch.arange(5, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.5),
    "turned": torch.arange(24, dtype=torch.float32).reshape(4, 6).t(),
    "empty": torch.empty(0, 3),
    "whole": torch.arange(7),
    "yes": torch.tensor([True, False]),
    "every other": torch.arange(40, dtype=torch.float64).reshape(2, 4, 5)[:, ::2],
}


@pytest.mark.parametrize("piece", [1, 16, 2**24])
def test_it_is_the_file_that_safetensors_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(tensorfile, "_PIECE", piece)
    path = tmp_path / "model.safetensors"
    write_tensors(TENSORS, path)
    theirs = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert path.read_bytes() == save(theirs, metadata={"format": "pt"})
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, TENSORS[name])
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors({"w": torch.zeros(3)}, path)
    before = path.read_bytes()

    def full(tensor: torch.Tensor, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors({"w": torch.ones(3)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


PEAK = """
import resource, sys, torch
from pathlib import Path
from gptlab.config import config_from
from gptlab.systems.checkpoint import Checkpoints
from gptlab.parallel import World
model = torch.nn.Linear(2**13, 2**13, bias=False)  # 256 MiB, and twice that of AdamW
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
model.weight.grad = torch.ones_like(model.weight)
optimizer.step()
Checkpoints(Path("warm"), keep=1, world=World()).save(0, torch.nn.Linear(2, 2), torch.optim.SGD([model.weight]), {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Checkpoints(Path("checkpoints"), keep=1, world=World()).save(1, model, optimizer, {})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_saving_takes_no_copy_of_what_it_saves(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.15
