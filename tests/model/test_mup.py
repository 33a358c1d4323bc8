"""Maximal update parametrization: nothing at the base width, and what the table says above it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gptlab.config import config_from
from gptlab.errors import ConfigError
from gptlab.model import GPT, build_model
from gptlab.model.mup import width_scaling
from gptlab.optim import AdamW, Muon


def make(dim: int, *, heads: int | None = None, **changes: Any) -> GPT:
    mlp = {"use": "MoE", "experts": 3, "expert": {"use": "SwiGLU", "multiple_of": 1, "ratio": 2}}
    values = {"dim": dim, "layers": 2, "heads": heads or dim // 16, "tied": False, "block": {"mlp": mlp}, **changes}
    model = build_model(config_from({"model": values, "train": {"sequence_length": 16, "batch_tokens": 64}}), 97)
    assert isinstance(model, GPT)
    return model


BASE = {"dim": 32, "heads": 2}


def test_at_the_base_width_it_is_the_standard_parametrization() -> None:
    ours, plain = make(32, mup=BASE), make(32)
    ids = torch.randint(97, (2, 16))
    assert torch.equal(ours(ids, return_logits=True), plain(ids, return_logits=True))
    groups = [
        [(g["kind"], g["lr"], g["weight_decay"]) for g in AdamW(m.named_parameters()).param_groups]
        for m in (ours, plain)
    ]
    assert groups[0] == groups[1]


def test_four_times_as_wide() -> None:
    model, plain = make(128, mup=BASE), make(128)
    named, standard = dict(model.named_parameters()), dict(plain.named_parameters())
    ratios = {
        "embedding.weight": 1.0,
        "head.weight": 1.0,
        "blocks.0.attention.qkv.weight": 0.5,
        "blocks.1.attention.out.weight": 0.5,
        "blocks.0.mlp.experts.1.down.weight": 0.5,
        "blocks.0.mlp.router.weight": 0.25,  # its output does not grow
    }
    for name, ratio in ratios.items():
        torch.testing.assert_close(named[name], standard[name] * ratio, msg=name)
    assert model.logit_scale == 0.25
    rates = {
        id(p): (g["lr"], g["weight_decay"])
        for g in AdamW(model.named_parameters(), lr=1.0).param_groups
        for p in g["params"]
    }
    assert rates[id(named["embedding.weight"])] == (1.0, 0.1)
    assert rates[id(named["head.weight"])] == (1.0, 0.1)
    assert rates[id(named["norm.weight"])] == (1.0, 0.0)
    assert rates[id(named["blocks.0.attention.qkv.weight"])] == (0.25, 0.4)
    assert rates[id(named["blocks.0.mlp.router.weight"])] == (0.25, 0.4)
    assert width_scaling(named["blocks.0.attention.qkv.weight"]).fan_in == 4


@pytest.mark.parametrize(("adjust", "rate"), [("original", 1.0), ("match_rms_adamw", 0.5)])
def test_muon(adjust: Any, rate: float) -> None:
    optimizer = Muon(make(128, mup=BASE).named_parameters(), lr=1.0, adjust_lr=adjust)
    assert {g["lr"] for g in optimizer.param_groups if g["kind"] == "matrix"} == {rate}


def test_wider_heads_score_less() -> None:
    model = make(128, heads=2, mup=BASE)
    assert model.head_dim == 64
    assert model.blocks[0].attention.scale == pytest.approx(math.sqrt(16) / 64)


def test_pytorchs_init_follows_too() -> None:
    bound = {
        dim: make(dim, mup=BASE, initialization="PyTorchInit").blocks[0].attention.qkv.weight.abs().max().item()
        for dim in (32, 128)
    }
    assert bound[128] / bound[32] == pytest.approx(0.5, rel=0.05)
    router = {
        dim: make(dim, mup=BASE, initialization="PyTorchInit").blocks[0].mlp.router.weight.abs().max().item()
        for dim in (32, 128)
    }
    assert router[128] / router[32] == pytest.approx(0.25, rel=0.15)


def test_a_base_of_another_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match="another set of parameters"):
        make(128, mup={"dim": 32, "heads": 2, "layers": 1})
    with pytest.raises(ConfigError, match="widht"):
        make(128, mup={"widht": 32})


def test_on_the_meta_device() -> None:
    config = config_from(
        {"model": {"dim": 128, "heads": 8, "mup": BASE}, "train": {"sequence_length": 16, "batch_tokens": 64}}
    )
    assert build_model(config, 97, device="meta").logit_scale == 0.25


@pytest.mark.parametrize(
    "changes",
    [
        {"block": {}},
        {"block": {"attention": {"scale": "inverse"}}},
        {"block": {"attention": {"use": "MLA"}}},
        {"block": "LatentAttentionBlock", "position": "NoPosition"},
    ],
    ids=["Attention", "inverse", "MLA", "LatentAttentionBlock"],
)
def test_scores_of_every_attention_fall_with_the_width_of_its_heads(changes: dict[str, Any]) -> None:
    wide, narrow = (
        build_model(
            config_from(
                {
                    "model": {"dim": dim, "layers": 1, "heads": 2, "mup": {"dim": 32}, **changes},
                    "train": {"sequence_length": 16, "batch_tokens": 64},
                }
            ),
            97,
        )
        for dim in (128, 32)
    )
    scores = [next(m for m in model.modules() if hasattr(m, "score_width")) for model in (wide, narrow)]
    assert scores[0].scale == scores[1].scale / 4
