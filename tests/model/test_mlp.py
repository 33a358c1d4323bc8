"""MLPs: each is the formula it names; a mixture of experts is what it would be one token at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, make_data, only_run, rows
from torch import Tensor, nn

import gptlab
from gptlab.config import build, config_from, load_config
from gptlab.errors import ConfigError
from gptlab.model import build_model
from gptlab.model.component import after_step, before_step
from gptlab.model.mlp import MoE


def wild(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


FORMULAS = {
    "GELU": lambda m, x: m.down(gelu(m.up(x))),
    "ReLU": lambda m, x: m.down(m.up(x).clamp(min=0)),
    "SiLU": lambda m, x: m.down(m.up(x) / (1 + torch.exp(-m.up(x)))),
    "ReLU2": lambda m, x: m.down(m.up(x).clamp(min=0) ** 2),
    "SwiGLU": lambda m, x: m.down(m.gate(x) / (1 + torch.exp(-m.gate(x))) * m.up(x)),
    "GeGLU": lambda m, x: m.down(gelu(m.gate(x)) * m.up(x)),
    "ReGLU": lambda m, x: m.down(m.gate(x).clamp(min=0) * m.up(x)),
    "ReGLU2": lambda m, x: m.down(m.gate(x).clamp(min=0) ** 2 * m.up(x)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    value: Any = {"use": name, "bias": True, "hidden": 24}
    if name == "GELU":
        value["approximate"] = "none"
    module = wild(build("mlp", value, dim=16))
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(module(x), FORMULAS[name](module, x), rtol=1e-4, atol=1e-5)


def test_hidden_dropout_acts_in_training_only() -> None:
    module = wild(build("mlp", {"use": "SwiGLU", "hidden_dropout": 0.5}, dim=16))
    x = torch.randn(2, 5, 16)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def make_moe(**arguments: Any) -> MoE:
    module = build("mlp", {"use": "MoE", "experts": 4, **arguments}, dim=32)
    assert isinstance(module, MoE)
    return wild(module)


@pytest.mark.parametrize(
    "arguments",
    [
        {"expert": {"use": "SwiGLU", "hidden": 16, "bias": True}},
        {"expert": {"use": "ReLU2", "hidden": 16}, "shared": 0, "top_k": 1},
        {"expert": {"use": "GeGLU", "hidden": 16}, "shared": 2, "top_k": 4, "score": "softmax"},
    ],
    ids=["gated", "switch", "all"],
)
def test_experts_one_token_at_a_time(arguments: dict[str, Any]) -> None:
    module = make_moe(**arguments)
    x = torch.randn(2, 7, 32, requires_grad=True)
    logits = x @ module.router.weight.T
    scores = logits.sigmoid() if module.score == "sigmoid" else logits.softmax(-1)
    expected = []
    for token, score in zip(x.flatten(0, 1), scores.flatten(0, 1), strict=True):
        chosen = (score + module.bias).topk(module.top_k).indices.tolist()
        weights = score[chosen] / (score[chosen].sum() if module.top_k > 1 else 1.0)
        y = sum(weight * module.experts[i](token) for weight, i in zip(weights, chosen, strict=True))
        expected.append(y + sum(shared(token) for shared in module.shared))
    reference = torch.stack(expected).view_as(x)
    out = module(x)
    torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(out)
    parameters = [p for p in module.parameters() if p.requires_grad]
    ours = torch.autograd.grad(out, (x, *parameters), upstream)
    theirs = torch.autograd.grad(reference, (x, *parameters), upstream, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-3, atol=1e-4)


def test_the_router_learns_from_a_single_choice() -> None:
    """Made to sum to 1, one weight would be 1 whatever the router says."""
    module = make_moe(top_k=1, shared=0)
    module(torch.randn(2, 7, 32)).square().sum().backward()
    assert module.router.weight.grad.abs().max() > 1e-3 * module.experts[0].up.weight.grad.abs().max()


def test_balance_moves_the_bias_against_the_load_and_not_the_weights() -> None:
    module = make_moe(balance_rate=0.25, top_k=1, shared=0)
    with torch.no_grad():
        module.bias.zero_()
        module.router.weight.zero_()
        module.router.weight[2] = 1.0  # everything goes to expert 2 ...
    x = torch.rand(8, 32)
    module(x)
    metrics = after_step(module, lambda tensor: tensor)
    assert module.load.tolist() == [0, 0, 8, 0]
    assert module.bias.tolist() == [0.25, 0.25, -0.25, 0.25]
    assert {name: value.item() for name, value in metrics.items()} == {"moe/busiest": 4.0, "moe/idlest": 0.0}
    before_step(module, 0.5)
    assert module.load.sum() == 0
    module.eval()(x)
    assert module.load.sum() == 0  # evaluation counts for nothing
    after_step(module.train(), lambda tensor: torch.full_like(tensor, 8.0))
    module(x)
    assert module.load[2] < 8  # ... until the bias says otherwise


def test_weights_that_a_token_meets() -> None:
    module = make_moe(experts=8, top_k=2, shared=1, expert={"use": "SwiGLU", "hidden": 16})
    assert module.active_weights() == 8 * 32 + 3 * (3 * 32 * 16)
    mlp = {"use": "MoE", "experts": 8, "expert": {"use": "SwiGLU", "hidden": 16}}
    few = build_model(config_from({"model": {"dim": 32, "layers": 1, "block": {"mlp": mlp}}}), 50)
    many = build_model(config_from({"model": {"dim": 32, "layers": 1, "block": {"mlp": {**mlp, "experts": 16}}}}), 50)
    assert many.flops_per_token(8) - few.flops_per_token(8) == 6 * 8 * 32  # a wider router, nothing else


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 5}, "5 of 4 experts cannot be chosen"),
        ({"top_k": 0}, "0 of 4 experts cannot be chosen"),
        ({"experts": 0}, "model.block.mlp.experts: 0 is out of range; make it at least 1"),
        ({"shared": -1}, "model.block.mlp.shared: -1 is out of range; make it at least 0"),
        ({"balance_rate": -0.1}, "model.block.mlp.balance_rate: -0.1 is out of range"),
        ({"expert": {"use": "MoE"}}, "MoE cannot be an expert"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_moe(**arguments)


def test_a_run_logs_the_load_and_keeps_its_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data(tmp_path)
    (tmp_path / "config.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    mlp = "model.block.mlp={use: MoE, experts: 4, balance_rate: 0.01, expert: {use: SwiGLU, hidden: 16}}"
    run = gptlab.train(load_config("config.yaml", ["data.path=data", "train.tokens=2560", mlp]))
    logged = [row for row in rows(only_run(tmp_path)) if "train/moe/busiest" in row]
    assert len(logged) == 10
    assert all(1 <= row["train/moe/busiest"] <= 4 and 0 <= row["train/moe/idlest"] <= 1 for row in logged)
    bias = run.model.blocks[0].mlp.bias
    assert bias.abs().max() > 0
    assert torch.equal(gptlab.load(run.folder).model.blocks[0].mlp.bias, bias)
