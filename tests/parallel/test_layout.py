"""Layouts and sharding plans in one process; several processes are in training/test_parallel.py and the contracts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gptlab.config import config_from
from gptlab.errors import ConfigError
from gptlab.model import build_model
from gptlab.model.mlp import GELU
from gptlab.parallel import World, choose_layout
from gptlab.parallel.layout import DataParallel, SingleProcess
from gptlab.parallel.sharding import held_whole, sharding_plan

CPU = torch.device("cpu")


def test_the_layout_follows_from_the_number_of_processes() -> None:
    assert isinstance(choose_layout(World(), CPU), SingleProcess)
    several = choose_layout(World(rank=1, size=4), CPU)
    assert isinstance(several, DataParallel)
    assert several.loss_scale == 4.0  # DDP averages what should be summed


def test_one_process_trains_the_model_itself() -> None:
    layout, model = choose_layout(World(), CPU), nn.Linear(3, 2)
    assert layout.wrap(model) is model
    assert layout.unwrap(model) is model
    assert layout.loss_scale == 1.0


@pytest.mark.parametrize("limit", [None, 0.5])
def test_clipping_gives_the_norm_before(limit: float | None) -> None:
    layout, model = choose_layout(World(), CPU), nn.Linear(3, 2, bias=False)
    model.weight.grad = torch.full((2, 3), 2.0)
    norm = layout.clip(model, limit)
    assert norm.item() == pytest.approx(2.0 * 6**0.5)
    assert model.weight.grad.norm().item() == pytest.approx(limit or norm.item(), rel=1e-4)


def test_whole_weights_are_the_main_process_s() -> None:
    model = nn.Linear(3, 2)
    state = choose_layout(World(), CPU).full_state(model)
    assert {name: tensor.shape for name, tensor in state.items()} == {"weight": (2, 3), "bias": (2,)}
    assert not state["weight"].requires_grad
    assert choose_layout(World(rank=1, size=2), CPU).full_state(model) == {}


# ---------------------------------------------------------------- sharding plans


def test_the_plan_of_a_model_is_that_of_its_components() -> None:
    model = build_model(config_from({"model": {"dim": 32, "layers": 2, "heads": 2, "block": {"mlp": "SwiGLU"}}}), 97)
    mlp = {"mlp.gate": "column", "mlp.up": "column", "mlp.down": "row"}
    layers = {"attention.qkv": "column", "attention.out": "row", **mlp}
    assert sharding_plan(model) == {f"blocks.{i}.{name}": way for i in range(2) for name, way in layers.items()}


def test_a_component_speaks_for_all_inside_it() -> None:
    """The experts of a mixture are MLPs with plans of their own, which hold only where they stand alone."""
    model = build_model(config_from({"model": {"dim": 32, "layers": 1, "heads": 2, "block": {"mlp": "MoE"}}}), 97)
    assert all(name.startswith("blocks.0.attention.") for name in sharding_plan(model))
    assert held_whole(model) == ["embedding", "SwiGLU", "MoE", "head"]


class Widened(GELU):
    """Says nothing of how to cut what it adds."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(x_BTD)


class Misnamed(GELU):
    sharding = {"upp": "column"}  # noqa: RUF012


class Diagonal(GELU):
    sharding = {"up": "diagonal"}  # noqa: RUF012


def test_a_plan_is_not_inherited() -> None:
    assert sharding_plan(GELU(8)) == {"up": "column", "down": "row"}
    assert sharding_plan(Widened(8)) == {}


@pytest.mark.parametrize(
    ("kind", "cause"), [(Misnamed, "no linear layer 'upp'"), (Diagonal, "'diagonal' is neither column nor row")]
)
def test_a_plan_that_cannot_be_says_so(kind: type[GELU], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        sharding_plan(kind(8))
