"""Packed matrices: the same products, whatever shape they have, and a model that is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from gptlab.config import config_from
from gptlab.inference import packing
from gptlab.inference.packing import PackedLinear, can_pack, packed_copy, replace_modules, scoring_copy
from gptlab.model import build_model

CPU = torch.device("cpu")
packs = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN operators for this CPU")

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, with biases": {"tied": True, "block": {"attention": {"bias": True}, "mlp": {"use": "GELU", "bias": True}}},
    "MLA, which reads a weight itself": {
        "block": {"attention": {"use": "MLA", "kv_rank": 16}},
        "position": {"use": "RoPE", "fraction": 1.0},
    },
    "experts": {"block": {"mlp": {"use": "MoE", "experts": 4}}},
    "a gate that reads part of its input": {"block": {"attention": {"gate": "head", "gate_width": 7}}},
    "odd widths": {"dim": 36, "heads": 3, "block": {"mlp": {"use": "SwiGLU"}}},
}


def make_model(changes: dict[str, Any]) -> nn.Module:
    """Two layers with a vocabulary of an odd size."""
    values = {
        "model": {"dim": 32, "layers": 2, "heads": 4, "tied": False, **changes},
        "train": {"sequence_length": 16},
    }
    model = build_model(config_from(values, []), 61).eval()
    model.initialize(1)
    return model


@packs
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 65])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (384, 50257), (33, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_layer(shape: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    layer = nn.Linear(*shape)
    packed, x = PackedLinear(layer, dtype), torch.randn(rows, 2, shape[0])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected, found = layer(x), packed(x)
        part = packed(torch.randn(rows, 2, 2 * shape[0])[..., ::2])  # numbers that do not lie side by side
    assert found.dtype == expected.dtype == dtype
    assert part.shape == found.shape == (rows, 2, shape[1])
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_as_before(name: str) -> None:
    model = make_model(MODELS[name])
    before = copy.deepcopy(model.state_dict())
    twin, ids = packed_copy(model, torch.float32), torch.randint(61, (3, 16))
    with torch.inference_mode():
        torch.testing.assert_close(twin(ids, return_logits=True), model(ids, return_logits=True), rtol=1e-5, atol=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert {id(p) for p in model.parameters()} >= {id(p) for p in twin.parameters()} or not can_pack()


@packs
def test_every_plain_layer_is_packed_and_no_other() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = make_model({})
    model.blocks[0].mlp = nn.Sequential(Own(32, 8), nn.Linear(8, 32))
    twin = packed_copy(model, torch.float32)
    assert {type(m) for m in twin.modules() if isinstance(m, nn.Linear)} == {PackedLinear, Own}
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear, Own}


def test_where_nothing_can_be_packed_matrices_lie_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "can_pack", lambda dtype: False)
    model = make_model({})
    twin, ids = packed_copy(model, torch.float32), torch.randint(61, (3, 16))
    assert not twin.head.weight.is_contiguous()
    assert model.head.weight.is_contiguous()
    with torch.inference_mode():
        torch.testing.assert_close(twin(ids, return_logits=True), model(ids, return_logits=True), rtol=1e-5, atol=1e-5)
    assert scoring_copy(model, CPU, torch.float32) is model


def test_one_module_in_two_places_is_replaced_in_both() -> None:
    layer = nn.Linear(2, 2)
    model, other = nn.ModuleList([layer, nn.Sequential(layer)]), nn.Linear(2, 2)
    replace_modules(model, {layer: other})
    assert model[0] is other
    assert model[1][0] is other
