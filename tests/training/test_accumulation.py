"""Gradients of a batch in pieces, and what a token stream of one's own brings to a loss of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, make_data, rows
from torch import nn

import gptlab
from gptlab.config import config_from, load_config
from gptlab.data import Batch
from gptlab.loss import CrossEntropy
from gptlab.model import build_model
from gptlab.parallel import World, choose_layout
from gptlab.training.accumulation import accumulate, to_device

CPU = torch.device("cpu")


def make_batch(sequences: int = 6, length: int = 8) -> Batch:
    ids = np.random.default_rng(0).integers(0, 97, (sequences, length + 1))
    documents = np.zeros((sequences, length), dtype=np.int32)
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), documents, sequences * length)


@pytest.mark.parametrize("cuts", [[6], [4, 2], [1, 2, 3]])
def test_pieces_of_any_size_give_the_gradient_of_the_whole(cuts: Sequence[int]) -> None:
    batch, layout = make_batch(), choose_layout(World(), CPU)
    model = build_model(config_from({"model": {"dim": 16, "layers": 1, "heads": 2}}), 97)
    logits = model(torch.from_numpy(batch.inputs), return_logits=True)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    starts = np.cumsum([0, *cuts])
    pieces = [to_device(batch.rows(a, b), CPU) for a, b in itertools.pairwise(starts)]
    done = accumulate(
        model, CrossEntropy(), pieces, global_targets=batch.global_targets, layout=layout, dtype=torch.float32
    )
    assert done.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert done.count.item() == batch.global_targets
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


IDEA = """
from dataclasses import replace
import numpy as np
from gptlab.data import BatchStream
from gptlab.loss import IGNORE, CrossEntropy, LossSum

class Weighted(BatchStream):
    \"\"\"Next tokens, and how much each row of the batch is worth.\"\"\"
    slot = "stream"
    def batch(self, step, rank=0, world_size=1):
        batch = super().batch(step, rank, world_size)
        return replace(batch, extra={"worth": np.full(len(batch.inputs), 0.5, dtype=np.float32)})

class Worth(CrossEntropy):
    slot = "loss"
    def __call__(self, model, batch):
        out = super().__call__(model, batch)
        worth = batch.extra["worth"].mean() if batch.extra else 1.0
        return LossSum(out.sum * worth, out.count)
"""


def test_a_stream_of_one_s_own_reaches_a_loss_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the worth is half the loss in the log; validation, which has no worth, is as always."""
    make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("idea.py").write_text(IDEA)
    Path("plain.yaml").write_text(TINY + "data: {path: data}\n")
    Path("own.yaml").write_text(
        "base: plain.yaml\ndata: {stream: './idea.py:Weighted'}\nloss: {use: './idea.py:Worth'}\n"
    )
    short = ["train.tokens=512"]
    plain, own = (rows(gptlab.train(load_config(f"{name}.yaml", short)).folder) for name in ("plain", "own"))
    assert own[0]["train/loss"] == pytest.approx(plain[0]["train/loss"] / 2, rel=1e-6)
    assert own[-1]["val/loss"] == pytest.approx(plain[-1]["val/loss"], rel=0.05)
    assert (next(Path("runs").glob("own-*")) / "code" / "idea.py").is_file()
