"""The model: causality, documents, shapes, initialization."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from gptlab.config import config_from, load_config
from gptlab.errors import ConfigError
from gptlab.loss import CrossEntropy, TokenBatch
from gptlab.model import build_model
from gptlab.model.attention import document_positions
from gptlab.model.initialization import parameter_generator

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "default": {},
    "gpt2": {"norm": "LayerNorm", "position": "Learned", "block": {"attention": {"bias": True}, "mlp": {"bias": True}}},
    "grouped": {"block": {"attention": {"kv_heads": 2, "qk_norm": "RMSNorm"}, "mlp": "SwiGLU"}, "tied": False},
    "multi-query": {"block": {"attention": {"kv_heads": 1}, "mlp": "ReLU2"}, "logit_softcap": 15.0, "pad_vocab": 64},
    "no position": {"position": "NoPosition", "norm": {"use": "RMSNorm", "affine": False}, "head_dim": 24},
}


def make_model(vocab_size: int = 97, **changes: object) -> nn.Module:
    values = {"model": {"dim": 64, "layers": 2, "heads": 4, **changes}, "train": {"sequence_length": 32}}
    return build_model(config_from(values), vocab_size)


def wild(model: nn.Module) -> nn.Module:
    """Weights large enough that nothing is nearly linear, biases and gains included."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_causal(name: str) -> None:
    model = wild(make_model(**VARIANTS[name]))
    ids = torch.randint(97, (1, 32))
    changed = ids.clone()
    changed[0, 20] = (ids[0, 20] + 1) % 97
    with torch.no_grad():
        a, b = model(ids, return_logits=True), model(changed, return_logits=True)
    assert torch.equal(a[:, :20], b[:, :20])
    assert (a[:, 20:] != b[:, 20:]).any(-1).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_at_initialization_is_ln_v_and_gradients_reach_everything(name: str) -> None:
    model = make_model(**VARIANTS[name])
    ids = torch.randint(97, (4, 33))
    out = CrossEntropy()(model, TokenBatch(ids[:, :-1], ids[:, 1:], torch.zeros_like(ids[:, 1:])))
    assert int(out.count) == 128
    assert out.sum.item() / 128 == pytest.approx(math.log(97), rel=0.05)
    out.sum.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def masked(position: str = "RoPE") -> nn.Module:
    return wild(make_model(position=position, block={"attention": {"document_mask": True, "kv_heads": 2}}))


@pytest.mark.parametrize("position", ["RoPE", "Learned"])
def test_packed_documents_do_not_see_each_other(position: str) -> None:
    model = masked(position)
    a, b = torch.randint(97, (1, 13)), torch.randint(97, (1, 19))
    documents = torch.tensor([[0] * 13 + [1] * 19])
    with torch.no_grad():
        packed = model(torch.cat([a, b], dim=1), documents, return_logits=True)[:, 13:]
        alone = model(b, torch.zeros_like(b), return_logits=True)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5 * alone.abs().max().item())


def test_positions_count_from_the_start_of_a_document() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [4, 4, 4, 4, 4, 4]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]


def test_no_gradient_crosses_documents() -> None:
    model = masked()
    ids = torch.randint(97, (1, 32))
    documents = torch.tensor([[0] * 13 + [1] * 19])
    embedded = model.embedding(ids).detach().requires_grad_()
    handle = model.embedding.register_forward_hook(lambda module, inputs, output: embedded)
    logits = model(ids, documents, return_logits=True)
    handle.remove()
    nn.functional.cross_entropy(logits[0, 13:-1], ids[0, 14:]).backward()
    assert embedded.grad is not None
    assert torch.equal(embedded.grad[0, :13], torch.zeros(13, 64))
    assert (embedded.grad[0, 13:-1].abs().sum(-1) > 0).all()


def test_without_the_mask_documents_do_see_each_other() -> None:
    model = wild(make_model())
    ids = torch.randint(97, (1, 32))
    documents = torch.tensor([[0] * 13 + [1] * 19])
    with torch.no_grad():
        assert torch.equal(model(ids, documents), model(ids))


def test_grouped_queries_equal_repeated_heads() -> None:
    grouped, full = make_model(block={"attention": {"kv_heads": 2}}), make_model()
    C, D = 16, 64
    with torch.no_grad():
        for parameter, source in zip(full.parameters(), grouped.parameters(), strict=True):
            if parameter.shape == source.shape:
                parameter.copy_(source)
        for block, source in zip(full.blocks, grouped.blocks, strict=True):
            q, k, v = source.attention.qkv.weight.view(8, C, D).split((4, 2, 2))
            repeated = [q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]
            block.attention.qkv.weight.copy_(torch.cat(repeated).view(-1, D))
        ids = torch.randint(97, (2, 32))
        torch.testing.assert_close(grouped(ids), full(ids), rtol=1e-5, atol=1e-5)


def test_rope_scores_depend_on_distance_only() -> None:
    from gptlab.model.position import RoPE, rotate

    rope = RoPE(16, 64)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i: int, j: int) -> float:
        turned = [rotate(x, rope.rotary(torch.tensor([p]))) for x, p in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 3) == pytest.approx(score(45, 43), abs=1e-5)
    assert abs(score(5, 3) - score(5, 4)) > 1e-3


def test_softcap_and_padding() -> None:
    model = wild(make_model(**VARIANTS["multi-query"]))
    logits = model(torch.randint(97, (1, 8)), return_logits=True)
    assert logits.shape == (1, 8, 97)
    assert logits.abs().max() <= 15.0
    assert model.embedding.weight.shape[0] == 128


def test_initial_weights_depend_on_seed_and_name_only() -> None:
    a, b = make_model(), make_model(block={"mlp": "SwiGLU", "attention": {"qk_norm": "RMSNorm"}}, tied=False)
    own, other = dict(a.named_parameters()), dict(b.named_parameters())
    shared = [n for n in own if n in other and own[n].shape == other[n].shape and own[n].ndim == 2]
    assert len(shared) >= 5
    assert all(torch.equal(own[name], other[name]) for name in shared)
    weight = own["blocks.0.attention.qkv.weight"]
    assert not torch.equal(weight, own["blocks.1.attention.qkv.weight"])
    drawn = torch.randn(weight.shape, generator=parameter_generator(1, "blocks.0.attention.qkv.weight")) * 0.02
    assert torch.equal(weight, drawn)
    assert own["blocks.0.mlp.down.weight"].std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.05)


def test_pytorch_init_is_pytorchs() -> None:
    model = make_model(initialization="PyTorchInit", block={"mlp": {"bias": True}})
    up = model.blocks[0].mlp.up
    assert up.weight.abs().max().item() == pytest.approx(1 / 8, rel=0.02)
    assert up.weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    assert 0 < up.bias.abs().max() <= 1 / 8


def test_dropout_acts_in_training_only() -> None:
    model = make_model(dropout=0.5)
    ids = torch.randint(97, (1, 16))
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "do not divide the width 64; use 4"),
        ({"block": {"attention": {"kv_heads": 3}}}, "3 does not divide the 4 heads"),
        ({"context_length": 8}, "longer than model.context_length 8"),
        ({"head_dim": 7}, "make head_dim even"),
        ({"dropout": 1.5}, "at least 0 and below 1"),
        ({"layers": 0}, "too small"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**changes)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_builds_and_steps(path: Path) -> None:
    """At full size on the meta device, and for real with few layers and a small vocabulary."""
    config = load_config(path)
    full = build_model(config, 50257, device="meta")
    assert full.flops_per_token(config.train.sequence_length) > 6 * full.parameter_count(embeddings=False)
    small = load_config(path, ["model.layers=1", "train.sequence_length=16", "train.batch_tokens=32"])
    model = build_model(small, 64)
    ids = torch.randint(64, (2, 17))
    loss = CrossEntropy()(model, TokenBatch(ids[:, :-1], ids[:, 1:], torch.zeros_like(ids[:, 1:]))).sum
    loss.backward()
    assert math.isfinite(loss.item())
