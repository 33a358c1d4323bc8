"""A head in float8, against float8 written out from its definition: which numbers there are, what is rounded when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, gptlab, make_data, rows
from torch import nn

from gptlab.config import config_from, config_hash, load_config
from gptlab.errors import ConfigError
from gptlab.loss import CrossEntropy, TokenBatch
from gptlab.model import build_model
from gptlab.model.float8 import E4M3, E5M2, Float8Linear, product, require_float8, to_float8

CPU = torch.device("cpu")


def numbers(dtype: torch.dtype) -> np.ndarray:
    """All finite numbers of 8 bits that are not negative, from sign, exponent and mantissa, ascending."""
    bits, bias, special = (3, 7, 1) if dtype == E4M3 else (2, 15, 4)  # how many of the topmost codes are no numbers
    codes = np.arange(128 - special)
    exponent, mantissa = codes >> bits, (codes & (2**bits - 1)) / 2**bits
    return np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` to the nearest of the numbers times a power of two, the largest with which nothing overflows; float64."""
    menu, values = numbers(dtype), x.detach().double().numpy()
    scale = 2.0 ** np.floor(np.log2(menu[-1] / np.abs(values).max()))
    size = np.abs(values) * scale
    above = np.clip(np.searchsorted(menu, size), 1, len(menu) - 1)
    low, high = size - menu[above - 1], menu[above] - size
    nearest = np.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)  # a tie: the even code
    return torch.from_numpy(np.sign(values) * menu[nearest] / scale)


def test_the_numbers_are_those_of_the_formats() -> None:
    assert (numbers(E4M3)[-1], numbers(E5M2)[-1]) == (448.0, 57344.0)
    for dtype in (E4M3, E5M2):
        every = torch.arange(128, dtype=torch.uint8).view(dtype).double()
        assert np.array_equal(numbers(dtype), every[torch.isfinite(every)].numpy())


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("size", [1e-20, 3e-3, 1.0, 448.0, 2e9])
def test_rounding_is_to_the_nearest(dtype: torch.dtype, size: float) -> None:
    torch.manual_seed(0)
    x = size * torch.randn(64, 64) * 10 ** (4 * torch.rand(64, 64) - 4)
    eight, scale = to_float8(x, dtype)
    assert (eight.dtype, scale.dtype, scale.shape) == (dtype, torch.float32, ())
    assert float(scale).hex().startswith("0x1.0000")  # a power of two
    assert torch.equal(eight.double() * scale.double(), rounded(x, dtype))


@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_of_rounded_matrices(bias: bool) -> None:
    torch.manual_seed(0)
    layer = Float8Linear(32, 48, bias=bias)
    x, grad = torch.randn(2, 8, 32, requires_grad=True), torch.randn(2, 8, 48) * 1e-4
    y = layer(x)
    y.backward(grad)
    x8, w8 = rounded(x, E4M3).view(16, 32), rounded(layer.weight, E4M3)
    g8 = rounded(grad, E5M2).view(16, 48)
    expected = x8 @ w8.T + (layer.bias.detach().double() if bias else 0)
    torch.testing.assert_close(y.detach().double().view(16, 48), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad.double().view(16, 32), g8 @ w8, rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(layer.weight.grad.double(), g8.T @ x8, rtol=1e-5, atol=1e-9)
    if bias:
        torch.testing.assert_close(layer.bias.grad, grad.sum((0, 1)))
    exact = nn.functional.linear(x, layer.weight, layer.bias)
    assert 1e-3 < (y - exact).norm() / exact.norm() < 0.1  # and rounding is to be seen


def test_in_bfloat16_the_sums_alone_round_further() -> None:
    layer, x = Float8Linear(32, 48, bias=False), torch.randn(4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = rounded(x.bfloat16(), E4M3) @ rounded(layer.weight, E4M3).T
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=2**-9)


def test_the_hardwares_product_is_the_emulated_one() -> None:
    """torch's scaled product runs on a CPU too, slowly."""
    a, b = to_float8(torch.randn(16, 32), E5M2), to_float8(torch.randn(32, 48), E4M3)
    emulated, native = (product(a, b, torch.float32, native=native) for native in (False, True))
    torch.testing.assert_close(native, emulated, rtol=1e-6, atol=1e-6)


def test_rows_that_are_no_multiple_of_16_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Float8Linear(16, 32, bias=False)
    found = []
    for native in (False, True):
        monkeypatch.setattr("gptlab.model.float8.has_float8", lambda device, native=native: native)
        x = torch.linspace(-1, 1, 5 * 16).view(5, 16).requires_grad_()
        y = layer(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, layer.weight))
        found.append((y, *gradients))
    for emulated, native in zip(*found, strict=True):
        torch.testing.assert_close(native, emulated, rtol=1e-5, atol=1e-6)


def test_how_a_batch_is_cut_changes_nothing() -> None:
    """The scale of a piece is another one, and a power of two either way."""
    layer, x = Float8Linear(32, 48), torch.rand(8, 32) + 0.1
    x[0, 0] = 100.0
    assert to_float8(x, E4M3)[1] != to_float8(x[4:], E4M3)[1]
    torch.testing.assert_close(layer(x)[4:], layer(x[4:]), rtol=1e-6, atol=1e-6)  # rounding is 2⁻⁴


def test_outside_training_it_is_a_linear_layer() -> None:
    layer, x = Float8Linear(32, 48).eval(), torch.randn(4, 32)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert not torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    layer, x = Float8Linear(16, 16), torch.randn(4, 16)
    x[1, 2] = value
    assert not torch.isfinite(layer(x)[1]).any()
    zero = torch.zeros(4, 16)
    assert torch.equal(Float8Linear(16, 16, bias=False)(zero), zero)


def make_model(**changes: Any) -> nn.Module:
    values = {"dim": 32, "layers": 1, "heads": 2, "pad_vocab": 16, "float8_head": True, **changes}
    return build_model(config_from({"model": values, "train": {"sequence_length": 32}}), 61)


def test_the_loss_in_chunks_is_the_whole_one() -> None:
    ids = torch.randint(61, (2, 32))
    batch, found = TokenBatch(ids, ids.roll(-1, 1), torch.zeros_like(ids)), []
    for chunk in (None, 16):
        model = make_model()
        out = CrossEntropy(chunk=chunk)(model, batch)
        (out.sum / out.count).backward()
        found.append((out.sum.detach(), model.head.weight.grad))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)


def test_what_is_refused_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"61 rows, and float8 asks for a multiple of 16; set model.pad_vocab to 128"):
        make_model(pad_vocab=1)
    with pytest.raises(ConfigError, match=r"model\.dim is 40; use 48"):
        make_model(dim=40)
    model = make_model()
    with pytest.raises(ConfigError, match="Apple's GPUs have no float8"):
        require_float8(model, torch.device("mps"))
    require_float8(model, CPU)
    assert "no faster" in capfd.readouterr().err
    require_float8(model, CPU, heard=False)
    require_float8(make_model(float8_head=False), torch.device("mps"))
    assert capfd.readouterr().err == ""


def test_the_hash_knows_it_and_older_runs_keep_theirs() -> None:
    plain, off, on = (config_from({"model": {**m}}) for m in ({}, {"float8_head": False}, {"float8_head": True}))
    assert config_hash(plain, {}) == config_hash(off, {}) != config_hash(on, {})
    assert load_config("modded", ["model.float8_head=true"]).model.plain()["float8_head"] is True


def test_training_with_it_learns_as_much(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    losses = {}
    for on in ("false", "true"):
        sets = [f"data.path={data}", "model.pad_vocab=16", f"model.float8_head={on}", "train.tokens=20480"]
        arguments = [part for value in sets for part in ("--set", value)]
        done = gptlab("train", "tiny.yaml", *arguments, "--out", on, cwd=tmp_path)
        assert ("no faster" in done.stderr + done.stdout) == (on == "true")
        losses[on] = [row["train/loss"] for row in rows(tmp_path / on) if "train/loss" in row]
    assert losses["true"] != losses["false"]
    assert losses["true"][-1] < losses["true"][0] - 1
    assert abs(np.mean(losses["true"][-10:]) - np.mean(losses["false"][-10:])) < 0.05
