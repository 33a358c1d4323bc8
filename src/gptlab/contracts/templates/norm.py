"""A norm of your own: RMSNorm whose gain is 1 + weight, so that weight decay pulls it to 1. Edit from here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MyIdea(nn.Module):
    """x / rms(x) · (1 + weight) (as Gemma's, arXiv:2403.08295)."""

    slot = "norm"

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D), each vector of the last dimension by itself"""
        return F.rms_norm(x, (self.dim,), eps=self.eps) * (1 + self.weight.to(x.dtype))
