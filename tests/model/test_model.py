"""The model: causality, documents, shapes, initialization."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gptlab.config import config_from
from gptlab.errors import ConfigError
from gptlab.loss import CrossEntropy, TokenBatch
from gptlab.model import build_model
from gptlab.model.component import document_positions
from gptlab.model.initialization import parameter_generator
from gptlab.model.norm import RMSNorm

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


def test_tables_and_head_may_have_a_std_of_their_own() -> None:
    init = {"use": "GPT2Init", "embedding_std": 1.0, "head_std": 0.0, "position_std": 0.01}
    attention = {"value_embeddings": 1}
    model = make_model(initialization=init, tied=False, position="Learned", block={"attention": attention})
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert model.blocks[0].attention.value_embedding.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert model.position.embedding.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.head.weight.any()
    assert model.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "reordered"])
def test_a_layer_without_attention_is_its_mlp(placement: str) -> None:
    """It has no other parameters, and in it no position sees another."""
    whole, less = (
        make_model(block={"placement": placement, "branch_scale": 0.7, "without_attention": without})
        for without in ([], [1])
    )
    wild(less)
    block, x = less.blocks[1], torch.randn(1, 8, 64)
    assert not [name for name, _ in block.named_parameters() if "attention" in name]
    left_out = sum(p.numel() for n, p in whole.blocks[1].named_parameters() if n.startswith("attention"))
    assert sum(p.numel() for p in less.parameters()) == sum(p.numel() for p in whole.parameters()) - left_out - 1
    moved = x.clone()
    moved[0, 3] += 1
    with torch.no_grad():
        changed = (block(x, None) != block(moved, None)).any(-1)[0]
    assert changed.tolist() == [i == 3 for i in range(8)]


def test_rms_norm_with_a_bias() -> None:
    norm = RMSNorm(8, bias=True)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 8)
    assert torch.equal(norm(x), RMSNorm(8)(x) + norm.bias)


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
        ({"head_dim": 7}, "make that even"),
        ({"dropout": 1.5}, "at least 0 and below 1"),
        ({"layers": 0}, "model.layers: 0 is out of range; make it at least 1"),
        ({"pad_vocab": 0}, "model.pad_vocab: 0 is out of range; make it at least 1"),
        ({"ahead": -1}, "model.ahead: -1"),
        ({"logit_softcap": 0.0}, "model.logit_softcap: 0 is out of range; make it above 0"),
        ({"embedding_dropout": 2.0}, "model.embedding_dropout: 2 is out of range"),
        ({"block": {"mlp_dropout": 1.0}}, "model.block.mlp_dropout: 1 is out of range; make it at least 0 and below 1"),
        (
            {"block": {"mlp": {"use": "SwiGLU", "multiple_of": 0}}},
            "mlp.multiple_of: 0 is out of range",
        ),
        (
            {"block": {"mlp": {"use": "GELU", "hidden": 0}}},
            "mlp.hidden: 0 is out of range",
        ),
        (
            {"block": {"use": "LatentAttentionBlock", "qk_divisor": 0}},
            "block.qk_divisor: 0 is out of range",
        ),
        ({"block": {"use": "LatentAttentionBlock", "qk_divisor": 7}}, "7 must divide the width 64"),
        ({"block": "LatentAttentionBlock"}, "model.position: RoPE would do nothing in blocks that have a distance"),
        ({"block": "LatentAttentionBlock", "position": "ALiBi"}, "model.position: ALiBi would do nothing"),
        ({"head_dim": -8}, "model.head_dim: -8 is out of range"),
        ({"head_dim": 0}, "model.head_dim: 0 is out of range"),
        ({"context_length": 0}, "model.context_length: 0 is out of range"),
        ({"embedding_scale": 0.0}, "model.embedding_scale: 0 is out of range"),
        ({"logit_scale": -1.0}, "model.logit_scale: -1 is out of range"),
        ({"mup": {}}, "model.mup: {} says nothing of the base"),
        ({"mup": {"dim": -32}}, "model.mup.dim: -32 is out of range"),
        ({"block": {"mlp": {"ratio": 0.0}}}, "model.block.mlp.ratio: 0 is out of range; make it above 0"),
        ({"block": {"mlp": {"hidden_dropout": 1.0}}}, "model.block.mlp.hidden_dropout: 1 is out of range"),
        ({"block": {"mlp": {"use": "SwiGLU", "hidden_dropout": -0.1}}}, "mlp.hidden_dropout: -0.1 is out of range"),
        ({"norm": {"use": "RMSNorm", "eps": 0.0}}, "norm.eps: 0 is out of range; make it above 0"),
        ({"norm": {"use": "LayerNorm", "eps": -1e-5}}, "norm.eps: -1e-05 is out of range"),
        ({"norm": {"use": "CosineNorm", "eps": 0}}, "norm.eps: 0 is out of range"),
        ({"norm": {"use": "CosineNorm", "affine": False, "scale": 0}}, "norm.scale: 0 is out of range"),
        ({"residual": {"skip_scale": 1.0}, "layers": 1}, "model.residual.skip_scale .* there is one layer"),
        ({"block": {"attention": {"value_residual": True}}, "layers": 1}, "value_residual .* there is one layer"),
        ({"initialization": {"std": 0.0}}, "model.initialization.std: 0 is out of range"),
        ({"initialization": {"embedding_std": -1.0}}, "model.initialization.embedding_std: -1 is out of range"),
        ({"initialization": {"position_std": 0.01}}, "position_std: the position component learns no vectors"),
        ({"norm": {"use": "RMSNorm", "affine": False, "bias": True}}, "has a bias where it is affine"),
        ({"initialization": {"use": "GPT2Init", "head_std": 0.0}}, "a tied head is the embedding"),
        ({"block": {"without_attention": [2]}}, "no layer 2; 2 layers are counted from 0"),
        ({"block": {"attention": {"without_rotation": [-1]}}}, "without_rotation: there is no layer -1"),
        ({"position": {"use": "RoPE", "window_theta": 5.0}}, "window_theta turns layers that have a window, and none"),
        ({"block": {"without_attention": [0], "attention": {"value_residual": True}}}, "values that later layers use"),
        *(
            ({"position": {"use": use, **arguments}}, f"model.position.{message}")
            for use, arguments, message in (
                ("Sinusoidal", {"theta": 0}, "theta: 0 is out of range; make it above 0"),
                ("Sinusoidal", {"scale": 0}, "scale: 0 is out of range"),
                ("RoPE", {"theta": -1.0}, "theta: -1 is out of range; make it above 0"),
                ("RoPE", {"fraction": 0.0}, "fraction: 0 is out of range; make it above 0 and at most 1"),
                ("RoPE", {"fraction": 1.01}, "fraction: 1.01 is out of range"),
                ("Llama3RoPE", {"theta": 0.0}, "theta: 0 is out of range"),
                ("Llama3RoPE", {"factor": 0.0}, "factor: 0 is out of range"),
                ("Llama3RoPE", {"low_frequency": -1.0}, "low_frequency: -1 is out of range"),
                ("Llama3RoPE", {"high_frequency": 1.0}, r"high_frequency: 1 is not above low_frequency \(1\)"),
                ("Llama3RoPE", {"original_length": 0}, "original_length: 0 is out of range; make it at least 1"),
                ("YaRN", {"theta": 1.0}, "theta: 1 is out of range; make it above 1"),
                ("YaRN", {"factor": -4.0}, "factor: -4 is out of range; make it above 0"),
                ("YaRN", {"slow": 0.0}, "slow: 0 is out of range"),
                ("YaRN", {"fast": 0.5}, r"fast: 0.5 is not above slow \(1\)"),
                ("YaRN", {"original_length": -1}, "original_length: -1 is out of range"),
                ("YaRN", {"magnitude": 0.0}, "magnitude: 0 is out of range"),
            )
        ),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**changes)
