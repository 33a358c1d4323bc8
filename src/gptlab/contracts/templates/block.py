"""A block of your own: attention, then MLP, each scaled by a number that the layer learns. Edit from here."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from gptlab.config import Slot, build
from gptlab.model.component import Context


class MyIdea(nn.Module):
    """x + scale · f(norm(x)), for attention and then for the MLP."""

    slot = "block"
    off = {"scaled": False}  # noqa: RUF012 - how the feature is switched off …
    baseline = "Block"  # … and what it then is, bit for bit

    def __init__(
        self,
        dim: int,
        layer_index: int,
        layers: int,
        heads: int,
        head_dim: int,
        context_length: int,
        dropout: float,
        vocab_size: int,
        norm: Slot,
        *,
        attention: Annotated[Slot, "attention"] = "Attention",
        mlp: Annotated[Slot, "mlp"] = "GELU",
        scaled: bool = True,
    ) -> None:
        super().__init__()
        site = {"dim": dim, "layer_index": layer_index, "layers": layers, "heads": heads, "head_dim": head_dim}
        site |= {"context_length": context_length, "dropout": dropout, "vocab_size": vocab_size}
        self.attention_norm, self.mlp_norm = build("norm", norm, dim=dim), build("norm", norm, dim=dim)
        self.attention, self.mlp = build("attention", attention, **site), build("mlp", mlp, **site)
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.ones(2)) if scaled else None

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        x_BTD = x_BTD + self.scaled(0, self.attention(self.attention_norm(x_BTD), context))
        return x_BTD + self.scaled(1, self.mlp(self.mlp_norm(x_BTD)))

    def scaled(self, branch: int, y_BTD: Tensor) -> Tensor:
        """What attention (0) or the MLP (1) adds to the stream: (B, T, D) → (B, T, D)"""
        if self.scale is not None:
            y_BTD = y_BTD * self.scale[branch].to(y_BTD.dtype)
        return self.dropout(y_BTD)
