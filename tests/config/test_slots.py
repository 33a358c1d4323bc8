"""Slot values."""

from __future__ import annotations

import pytest

from gptlab.config import validate_slot
from gptlab.errors import did_you_mean


def test_a_slot_reads_like_a_mapping_and_like_an_object() -> None:
    slot = validate_slot("mlp", {"use": "SwiGLU", "ratio": 2})
    assert slot.kind == "mlp"
    assert slot["ratio"] == slot.ratio == 2.0
    assert set(slot) == {"use", "ratio", "hidden", "multiple_of", "bias", "hidden_dropout"}
    assert slot.replace(hidden=5).hidden == 5
    assert slot.hidden is None
    with pytest.raises(AttributeError, match="mlp SwiGLU has no argument 'widht'"):
        _ = slot.widht
    assert validate_slot("mlp", slot) == slot


def test_did_you_mean() -> None:
    assert did_you_mean("swiglu", ["GELU", "SwiGLU"]) == "did you mean 'SwiGLU'?"
    assert did_you_mean("zzz", ["b", "a"]) == "valid: a, b"
    assert did_you_mean("x", []) == "nothing is valid here"
