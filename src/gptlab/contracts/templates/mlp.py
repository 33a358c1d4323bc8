"""An MLP of your own: a gated one, whose gate is a sigmoid. Edit from here."""

from __future__ import annotations

from torch import Tensor, nn


class MyIdea(nn.Module):
    """down(sigmoid(gate(x)) · up(x)) (the gated linear unit of Dauphin et al. 2017, arXiv:1612.08083)."""

    slot = "mlp"

    def __init__(self, dim: int, *, ratio: float = 2.6666666666666665, bias: bool = False) -> None:
        super().__init__()
        hidden = round(ratio * dim)
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.down.writes_residual = True  # initialization may scale what writes to the residual stream

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        return self.down(self.gate(x_BTD).sigmoid() * self.up(x_BTD))
