"""Cross-entropy in chunks is cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from gptlab.config import config_from
from gptlab.errors import ConfigError
from gptlab.loss import CrossEntropy, MultiToken, TokenBatch
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


def make(vocab_size: int = 50, **model: object) -> tuple[torch.nn.Module, TokenBatch]:
    found = build_model(
        config_from({"model": {"dim": 32, "layers": 1, "heads": 2, "tied": False, **model}}), vocab_size
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    ids = torch.randint(vocab_size, (3, 41))
    targets = ids[:, 1:].clone()
    targets[0, :7] = -1
    documents = torch.tensor([[0] * 15 + [1] * 25]).expand(3, -1)
    return found, TokenBatch(ids[:, :-1], targets, documents)


def by_hand(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )


@pytest.mark.parametrize("chunk", [None, 16])
def test_label_smoothing_and_z_loss(chunk: int | None) -> None:
    model, batch = make()
    out = CrossEntropy(chunk=chunk, label_smoothing=0.1, z_loss=0.01)(model, batch)
    logits = model(batch.inputs, return_logits=True)
    z = 0.01 * (logits.logsumexp(-1) ** 2)[batch.targets != -1].sum()
    torch.testing.assert_close(out.sum, by_hand(logits, batch.targets, 0.1) + z)
    torch.testing.assert_close(out.metrics["cross_entropy"], by_hand(logits, batch.targets))
    torch.testing.assert_close(out.metrics["z_loss"], z)
    (gradient,) = torch.autograd.grad(out.sum, model.head.weight)
    (expected,) = torch.autograd.grad(by_hand(logits, batch.targets, 0.1) + z, model.head.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def ahead_targets(batch: TokenBatch, further: int) -> torch.Tensor:
    expected = torch.full_like(batch.targets, -1)
    for b in range(3):
        for t in range(40 - further):
            if batch.documents[b, t] == batch.documents[b, t + further]:
                expected[b, t] = batch.targets[b, t + further]
    return expected


@pytest.mark.parametrize("chunk", [None, 16])
def test_multi_token_with_the_same_logits(chunk: int | None) -> None:
    model, batch = make()
    out = MultiToken(weights=[1.0, 0.5, 0.25], chunk=chunk)(model, batch)
    logits = model(batch.inputs, return_logits=True)
    parts = [by_hand(logits, ahead_targets(batch, i)) for i in range(3)]
    torch.testing.assert_close(out.sum, parts[0] + 0.5 * parts[1] + 0.25 * parts[2])
    assert int(out.count) == 113
    assert list(out.metrics) == ["cross_entropy", "cross_entropy_2", "cross_entropy_3", "z_loss"]
    torch.testing.assert_close(out.metrics["cross_entropy_3"], parts[2])


@pytest.mark.parametrize("chunk", [None, 16])
def test_multi_token_with_blocks_of_their_own(chunk: int | None) -> None:
    model, batch = make(ahead=1)
    out = MultiToken(weights=[1.0, 0.5], chunk=chunk)(model, batch)
    hidden = model(batch.inputs, ahead=True)
    assert torch.equal(hidden[0], model(batch.inputs))
    parts = [by_hand(model.logits(hidden[i]), ahead_targets(batch, i)) for i in range(2)]
    torch.testing.assert_close(out.sum, parts[0] + 0.5 * parts[1])
    out.sum.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_one_token_ahead_is_cross_entropy() -> None:
    model, batch = make()
    assert torch.equal(MultiToken(weights=[1.0])(model, batch).sum, CrossEntropy()(model, batch).sum)


@pytest.mark.parametrize(
    ("loss", "ahead", "message"),
    [
        (lambda: CrossEntropy(), 1, "needs the loss MultiToken"),
        (lambda: MultiToken(weights=[1.0, 1.0, 1.0]), 1, "3 weights for a model of 1 `ahead` blocks; give 2"),
        (lambda: MultiToken(weights=[]), 0, "one number or more"),
        (lambda: CrossEntropy(label_smoothing=1.0), 0, "loss.label_smoothing: 1 is out of range"),
        (lambda: CrossEntropy(z_loss=-1e-4), 0, "loss.z_loss: -0.0001 is out of range; make it at least 0"),
        (lambda: CrossEntropy(chunk=0), 0, "loss.chunk: 0 is out of range; make it at least 1"),
        (lambda: MultiToken(weights=[0.0, 0.0]), 0, "each 0 or more and one above 0"),
    ],
)
def test_bad_arguments(loss: Callable[[], CrossEntropy], ahead: int, message: str) -> None:
    model, batch = make(ahead=ahead)
    with pytest.raises(ConfigError, match=message):
        loss()(model, batch)
