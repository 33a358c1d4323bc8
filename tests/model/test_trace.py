"""Every component is traced on the meta device, where it may not look at numbers."""

from __future__ import annotations

from typing import Any

import pytest
from contracts.variants import VARIANTS

from gptlab.config import config_from
from gptlab.model.trace import trace_model

CASES = [
    (kind, {"use": name, **arguments})
    for kind in ("block", "attention", "mlp", "norm", "position", "residual")
    for name, variants in VARIANTS[kind].items()
    for arguments in variants
]


@pytest.mark.parametrize(("kind", "value"), CASES, ids=str)
def test_shapes_and_flops(kind: str, value: dict[str, Any]) -> None:
    model: dict[str, Any] = {"dim": 64, "layers": 2, "heads": 4}
    if value["use"] == "MLA" or value.get("key_offset"):
        model["position"] = {"use": "RoPE", "fraction": value.get("rope_dim", 8) / 16}
    if value.get("window_theta"):
        model["block"] = {"attention": {"window": 8, "pattern": "LF"}}
    if value["use"] == "LatentAttentionBlock":
        model["position"] = "NoPosition"
    if kind in ("attention", "mlp"):
        model["block"] = {kind: value}
    else:
        model[kind] = value
    traced = trace_model(config_from({"model": model, "train": {"sequence_length": 32}}), 97)
    calls = {module.path: module for module in traced.modules}
    assert calls[""].output == "B T V"
    assert calls["blocks.1"].output == "B T D"
    assert calls["blocks.1"].flops > 0
    assert traced.parameters == calls[""].parameters > 97 * 64
