"""Weights in int8: what they stand for, a tied matrix stays one, and nothing takes them for what was trained."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, gptlab, make_data, only_run
from torch import nn

import gptlab as lab
from gptlab.config import config_from
from gptlab.errors import CheckpointError, ConfigError, GptlabError
from gptlab.inference import quantization
from gptlab.inference.generate import Sampling, decoding_copy, generate
from gptlab.inference.quantization import QuantizedEmbedding, QuantizedLinear, is_quantized, quantize
from gptlab.model import build_model
from gptlab.record.evaluation import Evaluation

pytest.importorskip("torchao", reason="int8 weights are torchao's")
CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, with biases": {"tied": False, "head_bias": True, "block": {"attention": {"bias": True}}},
    "experts": {"block": {"mlp": {"use": "MoE", "experts": 4, "top_k": 2}}},
    "latent attention": {"block": {"attention": {"use": "MLA"}}},
    "a width of no multiple of 16": {"dim": 24},
}


def make_model(**changes: Any) -> nn.Module:
    """Of a seed: rounding may turn a router's choice of two experts that are as good as each other."""
    torch.manual_seed(0)
    values = {"model": {"dim": 32, "layers": 2, "heads": 4, **changes}, "train": {"sequence_length": 32}}
    return build_model(config_from(values, ["model.initialization.std=0.3"]), 61).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a byte model."""
    place = tmp_path_factory.mktemp("int8")
    data = make_data(place)
    (place / "tiny.yaml").write_text(TINY)
    gptlab("train", "tiny.yaml", "--set", f"data.path={data}", "--set", "train.tokens=2560", cwd=place)
    return only_run(place)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_rounded_matrices(name: str) -> None:
    model = make_model(**MODELS[name])
    trained, plain = copy.deepcopy(model), copy.deepcopy(model)
    quantize(model, "int8")
    assert not any(type(module) is nn.Linear for module in model.modules())
    for path, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            matrix = trained.get_submodule(path).weight.detach()
            step = matrix.abs().amax(1, keepdim=True) / 127.5  # 256 steps from the largest to its negative
            assert ((layer.weight - matrix).abs() <= 0.5001 * step).all()
            with torch.no_grad():
                plain.get_submodule(path).weight.copy_(layer.weight)
    ids = torch.randint(61, (2, 20))
    before = trained(ids, return_logits=True)
    found, expected = model(ids, return_logits=True), plain(ids, return_logits=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 1e-2  # rounding is to be seen, so that its absence would be


def test_a_tied_matrix_stays_one() -> None:
    model = make_model()
    size = sum(parameter.numel() for parameter in model.parameters())
    quantize(model, "int8")
    assert isinstance(model.embedding, QuantizedEmbedding)
    assert model.embedding.rows is model.head.rows
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    assert torch.equal(model.embedding(torch.arange(61)), model.head.weight)
    untied = make_model(tied=False)
    table = untied.embedding.weight.clone()
    quantize(untied, "int8")
    assert torch.equal(untied.embedding.weight, table)


@pytest.mark.parametrize("name", MODELS)
def test_generation_by_the_kernel_is_that_of_the_matrices(name: str) -> None:
    """Up to the rounding of activations to bfloat16, in a decoding that takes a vector at a time."""
    model = make_model(**MODELS[name])
    quantize(model, "int8")
    fast = decoding_copy(model, CPU, torch.float32)
    layers = [layer for layer in fast.modules() if isinstance(layer, QuantizedLinear)]
    assert all(layer.by_kernel == (layer.in_features % 16 == 0) for layer in layers)
    assert not any(layer.by_kernel for layer in model.modules() if isinstance(layer, QuantizedLinear))
    ids = torch.randint(61, (1, 9))
    slow_logits, fast_logits = model(ids, return_logits=True), fast(ids, return_logits=True)
    assert (fast_logits - slow_logits).norm() < 0.02 * slow_logits.norm()
    assert not torch.equal(fast_logits, slow_logits)
    rows = generate(fast, [[1, 2, 3]], Sampling(max_new_tokens=5, temperature=0), stop_ids=(), device=CPU)
    assert len(rows[0]) == 5


@pytest.mark.parametrize(("rows", "width", "out"), [(1, 16, 3), (5, 48, 61), (16, 768, 100), (17, 64, 64)])
def test_the_kernel_multiplies(rows: int, width: int, out: int) -> None:
    layer = nn.Linear(width, out)
    model = nn.Sequential(layer)
    quantize(model, "int8")
    x = torch.randn(rows, width).bfloat16().float()  # so that the kernel rounds nothing but its result
    expected = model(x)
    model[0].use_kernel()
    torch.testing.assert_close(model(x), expected, rtol=2**-7, atol=2**-7)


def test_what_a_run_says_and_its_loss(run: Path) -> None:
    plain, found = lab.load(run), lab.load(run, quantize="int8")
    assert "int8 weights" in str(found.sheet())
    assert is_quantized(found.model)
    assert str(found.sheet().rows[0]) == str(plain.sheet().rows[0])  # as many parameters
    text = "the cat sat on a mat and then slept until noon."
    assert found.loss(text).loss != plain.loss(text).loss
    assert abs(found.loss(text).loss - plain.loss(text).loss) < 0.01
    assert len(found.generate("the cat", max_new_tokens=8, seed=1, stop_at_end=False)) > 0


def test_results_are_told_apart(run: Path) -> None:
    gptlab("eval", str(run), cwd=run.parent)
    gptlab("eval", str(run), "--quantize", "int8", cwd=run.parent)
    plain, found = (json.loads((run / "evals" / name).read_text()) for name in ("loss.json", "loss-int8.json"))
    assert (plain["settings"].get("quantized"), found["settings"]["quantized"]) == (None, "int8")
    assert plain["settings"]["weights"] == found["settings"]["weights"]
    assert 0 < abs(plain["results"]["loss"] - found["results"]["loss"]) < 0.01
    one, other = (Evaluation(e["task"], e["results"], settings=e["settings"]).identity for e in (plain, found))
    assert {key for key in one if one[key] != other[key]} == {"precision"}
    assert (one["precision"], other["precision"]) == ("float32", "float32 × int8")
    assert "loss at step 10 with int8 weights: loss " in (run / "log.txt").read_text()
    sampled = gptlab("sample", str(run), "the cat", "--quantize", "int8", "--seed", "1", cwd=run.parent)
    assert sampled.stdout.startswith("the cat")
    assert "torchao" not in sampled.stderr  # it tells of kernels for hardware that is not here


def test_what_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"quantize='int3': not one of these; did you mean 'int8'\?"):
        lab.load(run, quantize="int3")
    found = lab.load(run, quantize="int8")
    from gptlab.interop import export_run
    from gptlab.run import save_weights

    for save in (lambda: save_weights(found.model, tmp_path / "a"), lambda: export_run(found, tmp_path / "b")):
        with pytest.raises(CheckpointError, match="are not saved; load the run without quantize"):
            save()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="no linear layers"):
        quantize(nn.Embedding(3, 2), "int8")
    with pytest.raises(ConfigError):  # twice
        quantize(found.model, "int8")
    done = gptlab("sample", str(run), "--quantize", "int4", cwd=run.parent, check=False)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "--quantize int4" in done.stderr
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(GptlabError, match=r"pip install 'gptlab\[quantize\]'"):
        quantization.check_kind("int8")
