"""Bytes counted on fake tensors are those that real ones take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.config import RunConfig, build, config_from, load_config
from gptlab.errors import ConfigError, GptlabError
from gptlab.model import build_model
from gptlab.model.backends import _OVERRIDE
from gptlab.planning.footprint import _Step, fitting_footprint, footprint

V = 300
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "src/gptlab/config/presets").glob("*.yaml"))


def small(**changes: Any) -> RunConfig:
    values = {
        "model": {"dim": 32, "layers": 2, "heads": 2},
        "train": {"batch_tokens": 512, "sequence_length": 64, "dtype": "float32"},
    }
    return config_from(values | changes)


def test_what_does_not_depend_on_the_batch() -> None:
    config = small()
    model = build_model(config, V)
    count, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
    found = footprint(config, V, 1, dtype=torch.float32)
    assert found.parameters == count
    assert found.parameters_without_embeddings == model.parameter_count(embeddings=False)
    assert found.weights == 4 * count + sum(b.nbytes for b in model.buffers())  # a tied head is counted once
    assert found.gradients == 4 * count
    assert found.optimizer == 8 * count + 4 * tensors  # two moments, and a count of steps for each tensor
    assert found.flops_per_token == model.flops_per_token(64)


def test_muon_keeps_one_moment_of_matrices() -> None:
    model = build_model(small(), V)
    matrices = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2)
    adam, muon = (footprint(small(optimizer={"use": use}), V, 1).optimizer for use in ("AdamW", "Muon"))
    assert 4 * matrices <= adam - muon <= 4.2 * matrices + 200


@pytest.mark.parametrize("mlp", ["SwiGLU", "ReLU2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_of_a_real_step(mlp: str, dtype: torch.dtype) -> None:
    config = small(model={"dim": 32, "layers": 2, "heads": 2, "block": {"mlp": mlp}})
    found = footprint(config, V, 3, dtype=dtype)
    real = _Step(build_model(config, V).train(), build("loss", config.loss), 64, 3, dtype)
    assert found.activations == pytest.approx(real.kept, rel=0.02)
    assert found.activations + found.logits == pytest.approx(real.peak, rel=0.05)


def test_activations_hold_all_that_autograd_saves() -> None:
    config = small()
    model, saved = build_model(config, V).train(), dict[int, int]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(3, 64, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(ids)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    expected = sum(size for pointer, size in saved.items() if pointer not in own)
    assert hidden.requires_grad
    assert expected <= footprint(config, V, 3, dtype=torch.float32).activations <= 1.25 * expected


def test_on_an_accelerator_scores_are_never_whole_and_logits_are() -> None:
    config = small(train={"batch_tokens": 4096, "sequence_length": 512})
    here, there = (footprint(config, V, 1, accelerator=accelerator) for accelerator in (False, True))
    assert there.activations < here.activations  # in bfloat16 a CPU writes the scores out
    large = small(train={"batch_tokens": 8192, "sequence_length": 8192})
    chunked, whole = (footprint(large, 50000, 1, accelerator=accelerator) for accelerator in (False, True))
    assert whole.logits > 8192 * 50000 * 4 > chunked.logits
    assert footprint(large, 50000, 1, accelerator=True, compiled=True).total < whole.total


def test_bytes_are_linear_in_sequences() -> None:
    one, two, eight = (footprint(small(), V, n, accelerator=True) for n in (1, 2, 8))
    for name in ("activations", "logits"):
        a, b, c = (getattr(found, name) for found in (one, two, eight))
        assert c == pytest.approx(a + 7 * (b - a), rel=0.01), name


def test_the_largest_share_that_fits() -> None:
    config = small()
    eight, four = (footprint(config, V, n, accelerator=True) for n in (8, 4))
    assert fitting_footprint(config, V, 8, eight.total + 1000, accelerator=True).micro_batch == 8
    assert fitting_footprint(config, V, 8, eight.total - 1000, accelerator=True).micro_batch == 4
    found = fitting_footprint(config, V, 8, four.total + 1000, accelerator=True)
    assert found.total == pytest.approx(four.total, rel=0.01)


def test_what_does_not_fit_says_by_how_much_and_what_to_do() -> None:
    one = footprint(small(), V, 1)
    with pytest.raises(
        ConfigError, match=r"does not fit: 1 sequence at once needs .* too much; lower train.sequence_len"
    ):
        fitting_footprint(small(), V, 8, one.total - 1000)
    with pytest.raises(ConfigError, match=r"are weights, gradients and optimizer state: lower model.dim"):
        fitting_footprint(small(), V, 8, one.static - 1000)
    with pytest.raises(ConfigError, match=r"8 sequences at once need .*; lower system.micro_batch"):
        fitting_footprint(small(), V, 8, one.total, halve=False)


def test_attention_is_put_back_after_a_failure() -> None:
    with pytest.raises(GptlabError):
        footprint(small(optimizer={"use": "AdamW", "lr": -1.0}), V, 1, accelerator=True)
    assert _OVERRIDE.get() is None


def test_other_attentions_and_mixtures_of_experts_are_counted_too() -> None:
    for block in (
        {"mlp": {"use": "MoE"}},
        {"attention": {"use": "MLA"}},
        {"attention": {"window": 16, "document_mask": True, "softcap": 30.0}},
        {"attention": {"backend": "flex", "kv_heads": 1}},
    ):
        config = small(model={"dim": 32, "layers": 2, "heads": 2, "position": "NoPosition", "block": block})
        if "backend" not in block.get("attention", {}):
            assert footprint(config, V, 2).activations > 0, block
        assert footprint(config, V, 2, accelerator=True, compiled=True).activations > 0, block


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config(path: Path) -> None:
    config = load_config(path)
    found = footprint(config, 50257, 1, accelerator=True, compiled=True)
    assert found.weights >= 4 * found.parameters
    assert found.optimizer >= 4 * found.parameters
