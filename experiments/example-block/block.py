"""A block in 30 lines: attention and MLP, each behind a gate that opens with training."""

from typing import Annotated

import torch
from torch import Tensor, nn

from gptlab.config import Slot, build


# fmt: off
class GatedBlock(nn.Module):
    slot = "block"

    def __init__(self, dim: int, layer_index: int, layers: int, heads: int, head_dim: int, context_length: int,
                 dropout: float, vocab_size: int, norm: Slot, *, attention: Annotated[Slot, "attention"] = "Attention",
                 mlp: Annotated[Slot, "mlp"] = "ReLU2", start: float = 0.5) -> None:
        super().__init__()
        site = {"dim": dim, "layer_index": layer_index, "layers": layers, "heads": heads, "head_dim": head_dim}
        site |= {"context_length": context_length, "dropout": dropout, "vocab_size": vocab_size}
        self.norms = nn.ModuleList(build("norm", norm, dim=dim) for _ in range(2))
        self.attention = build("attention", attention, **site)
        self.mlp = build("mlp", mlp, **site)
        self.gates = nn.Parameter(torch.full((2, dim), start))

    def forward(self, x_BTD: Tensor, context: object) -> Tensor:
        x_BTD = x_BTD + self.gates[0] * self.attention(self.norms[0](x_BTD), context)
        return x_BTD + self.gates[1] * self.mlp(self.norms[1](x_BTD))
