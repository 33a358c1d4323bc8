"""Cross-entropy in chunks is cross-entropy."""

from __future__ import annotations

import pytest
import torch

from gptlab.config import config_from
from gptlab.loss import CrossEntropy, TokenBatch
from gptlab.model import build_model


@pytest.mark.parametrize("model_values", [{}, {"tied": False, "head_bias": True, "logit_softcap": 10.0}])
def test_chunks_change_neither_loss_nor_gradients(model_values: dict[str, object]) -> None:
    config = config_from({"model": {"dim": 32, "layers": 1, "heads": 2, **model_values}})
    ids = torch.randint(50, (3, 41))
    targets = ids[:, 1:].clone()
    targets[0, :7] = -1
    batch = TokenBatch(ids[:, :-1], targets, torch.zeros_like(targets))
    found = []
    for chunk in (None, 16, 1000):
        model = build_model(config, 50)
        out = CrossEntropy(chunk=chunk)(model, batch)
        (out.sum * 0.5).backward()
        found.append((out.sum.detach(), out.count, {n: p.grad for n, p in model.named_parameters()}))
    (loss, count, gradients), *others = found
    assert int(count) == 113
    for other_loss, other_count, other_gradients in others:
        assert int(other_count) == 113
        torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_chunks_without_gradients() -> None:
    model = build_model(config_from({"model": {"dim": 32, "layers": 1, "heads": 2}}), 50)
    ids = torch.randint(50, (3, 41))
    batch = TokenBatch(ids[:, :-1], ids[:, 1:], torch.zeros_like(ids[:, 1:]))
    with torch.no_grad():
        torch.testing.assert_close(CrossEntropy(chunk=16)(model, batch).sum, CrossEntropy(chunk=None)(model, batch).sum)
