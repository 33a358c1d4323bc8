"""Normalization: RMSNorm, LayerNorm, CosineNorm. Shapes: (…, D) → (…, D), each vector of the last dimension alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.config import require_range
from gptlab.errors import ConfigError


class RMSNorm(nn.Module):
    """x / rms(x) · weight (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4). `affine: false` leaves the weight out;
    `bias` adds one after it."""

    slot = "norm"

    def __init__(self, dim: int, *, eps: float = 1e-6, affine: bool = True, bias: bool = False) -> None:
        super().__init__()
        require_range("norm", "above 0", eps=eps)
        if bias and not affine:
            raise ConfigError("norm: RMSNorm has a bias where it is affine; set affine to true, or bias to false")
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)"""
        weight = self.weight.to(x.dtype) if self.weight is not None else None
        y = F.rms_norm(x, (self.dim,), weight, self.eps)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class LayerNorm(nn.Module):
    """(x − mean) / std · weight + bias (Ba et al. 2016, arXiv:1607.06450)."""

    slot = "norm"

    def __init__(self, dim: int, *, eps: float = 1e-5, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        require_range("norm", "above 0", eps=eps)
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine and bias else None
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)"""
        weight = self.weight.to(x.dtype) if self.weight is not None else None
        bias = self.bias.to(x.dtype) if self.bias is not None else None
        return F.layer_norm(x, (self.dim,), weight, bias, self.eps)


class CosineNorm(nn.Module):
    """x / ‖x‖ · weight: onto the unit sphere, so that dot products are cosines (nGPT, arXiv:2410.01131, section 2.1).

    That is RMSNorm divided by √D. `scale` is where the weight starts, or, without `affine`, the constant in its place.
    """

    slot = "norm"

    def __init__(self, dim: int, *, eps: float = 1e-6, affine: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        require_range("norm", "above 0", eps=eps, scale=None if affine else scale)  # a weight may start at 0 and learn
        self.weight = nn.Parameter(torch.full((dim,), scale)) if affine else None
        self.scale, self.eps = scale, eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)"""
        return F.normalize(x, dim=-1, eps=self.eps) * (self.scale if self.weight is None else self.weight.to(x.dtype))
