"""Normalization: RMSNorm and LayerNorm. Shapes: (…, D) → (…, D), each vector of the last dimension by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) · weight (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4). `affine: false` leaves the weight out."""

    slot = "norm"

    def __init__(self, dim: int, *, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)"""
        weight = self.weight.to(x.dtype) if self.weight is not None else None
        return F.rms_norm(x, (self.dim,), weight, self.eps)


class LayerNorm(nn.Module):
    """(x − mean) / std · weight + bias (Ba et al. 2016, arXiv:1607.06450)."""

    slot = "norm"

    def __init__(self, dim: int, *, eps: float = 1e-5, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine and bias else None
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)"""
        weight = self.weight.to(x.dtype) if self.weight is not None else None
        bias = self.bias.to(x.dtype) if self.bias is not None else None
        return F.layer_norm(x, (self.dim,), weight, bias, self.eps)
