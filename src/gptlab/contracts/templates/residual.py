"""A residual stream of your own: one block after the other, the stream scaled before each. Edit from here."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gptlab.model.component import Context


class MyIdea(nn.Module):
    """x ← block(scale · x), with one learned scale a layer."""

    slot = "residual"
    off = {"scaled": False}  # noqa: RUF012 - how the feature is switched off …
    baseline = "Residual"  # … and what it then is, bit for bit

    def __init__(self, layers: int, *, scaled: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(layers)) if scaled else None

    def forward(self, x_BTD: Tensor, blocks: Iterable[nn.Module], context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        for index, block in enumerate(blocks):
            if self.scale is not None:
                x_BTD = x_BTD * self.scale[index].to(x_BTD.dtype)
            x_BTD = block(x_BTD, context)
        return x_BTD
