"""A linear layer whose products are of 8-bit floating point numbers in training: for a head, the largest of all.

Forward, activations and weights are rounded to e4m3 (3 bits of mantissa, up to 448); backward, gradients to e5m2 (2
bits, up to 57,344), as in Micikevicius et al. 2022 (arXiv:2209.05433, section 3) and in the head of the modded-nanogpt
speed run since record 19 (January 2025). Sums are taken in float32 or the run's precision. Outside training it is
`nn.Linear`: what is validated, sampled and exported is of unrounded weights.

Each tensor has one scale, from its own largest magnitude and rounded down to a power of two. Multiplying by that
changes no digit: a number is rounded alike whatever else is in its batch, unless it is below 2⁻¹³ of the largest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.console import say
from gptlab.errors import ConfigError
from gptlab.hardware.precision import has_float8

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Of which the sides of a matrix must be a multiple for the products of the hardware."""


class Float8Linear(nn.Linear):
    """`nn.Linear`, which multiplies in float8 in training: (…, D) → (…, F)."""

    def forward(self, x: Tensor) -> Tensor:
        """In the precision of autocast, where it is on, else of `x`."""
        if not self.training:
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = _Product.apply(x.flatten(0, -2), self.weight, has_float8(x.device)).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


def require_float8(model: nn.Module, device: torch.device, *, heard: bool = True) -> None:
    """Where `model` multiplies in float8 and the hardware does not, say so. `heard`: whether by this process.

    Raises ConfigError on Apple's GPUs, where torch has no such numbers.
    """
    if not any(isinstance(module, Float8Linear) for module in model.modules()) or has_float8(device):
        return
    if device.type == "mps":
        raise ConfigError(
            "model.float8_head: Apple's GPUs have no float8; set it to false, or system.device to cpu",
            key="model.float8_head",
        )
    if heard:
        say("model.float8_head: rounded to float8, multiplied as ever, no faster: the hardware has no such products")


def build_head(dim: int, rows: int, *, bias: bool, float8: bool) -> nn.Linear:
    """The head (…, D) → (…, V), `rows` being V with its padding.

    Raises ConfigError where it is to be in float8 and its sides are no multiples of `MULTIPLE`.
    """
    if not float8:
        return nn.Linear(dim, rows, bias=bias)
    if rows % MULTIPLE:
        raise ConfigError(
            f"model.float8_head: the head has {rows} rows, and float8 asks for a multiple of {MULTIPLE}; set "
            "model.pad_vocab to 128",
            key="model.float8_head",
        )
    if dim % MULTIPLE:
        raise ConfigError(
            f"model.float8_head: float8 asks for a width that is a multiple of {MULTIPLE}, and model.dim is {dim}; use "
            f"{-(-dim // MULTIPLE) * MULTIPLE}",
            key="model.float8_head",
        )
    return Float8Linear(dim, rows, bias=bias)


def to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in float8, and what to multiply that by for `x` again, a float32 scalar. Not finite where `x` is not."""
    largest, room = x.detach().abs().amax().float().clamp(min=1e-30), torch.finfo(dtype).max
    scale = torch.exp2(torch.floor(torch.log2(room / largest)))
    return (x.float() * scale).clamp(-room, room).to(dtype), scale.reciprocal()


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype, *, native: bool) -> Tensor:
    """a (M, K) · b (K, N) in `dtype`, of float8 matrices with their scales. `native`: by the hardware's own products,
    for which all of M, K and N are multiples of `MULTIPLE`."""
    (left, scale), (right, other) = a, b
    if native:
        columns = right.t().contiguous().t()
        return torch._scaled_mm(left.contiguous(), columns, scale_a=scale, scale_b=other, out_dtype=dtype)
    wide = torch.float32 if dtype == torch.float16 else dtype  # float16 ends at 65,504, a product may not
    return (left.to(wide) @ right.to(wide) * (scale * other).to(wide)).to(dtype)


class _Product(torch.autograd.Function):
    """x (N, D), weight (F, D) → x · weightᵀ (N, F) in the precision of x; the weight's gradient in the weight's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, native: bool) -> Tensor:
        more = -x.shape[0] % MULTIPLE if native else 0
        x8, w8 = to_float8(F.pad(x, (0, 0, 0, more)), E4M3), to_float8(weight, E4M3)
        ctx.save_for_backward(*x8, *w8)
        ctx.native, ctx.more, ctx.dtype, ctx.weight_dtype = native, more, x.dtype, weight.dtype
        return product(x8, (w8[0].t(), w8[1]), x.dtype, native=native)[: x.shape[0]]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = to_float8(F.pad(grad, (0, 0, 0, ctx.more)), E5M2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = product((g8, g_scale), (w8, w_scale), ctx.dtype, native=ctx.native)[: grad.shape[0]]
        if ctx.needs_input_grad[1]:
            grad_weight = product((g8.t(), g_scale), (x8, x_scale), ctx.dtype, native=ctx.native).to(ctx.weight_dtype)
        return grad_x, grad_weight, None
