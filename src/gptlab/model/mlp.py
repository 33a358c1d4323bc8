"""The MLPs: position-wise layers of a block, (B, T, D) → (B, T, F) → (B, T, D).

A plain MLP has two matrices, 2·D·F weights; a gated one has three. `hidden` sets F; otherwise F is `ratio` · D
rounded up to a multiple of `multiple_of` (the gated default of 8/3 keeps the weights of a plain MLP of ratio 4).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


def hidden_width(dim: int, ratio: float, hidden: int | None, multiple_of: int) -> int:
    """F, from the arguments that every MLP has."""
    return hidden if hidden is not None else multiple_of * math.ceil(round(ratio * dim, 3) / multiple_of)


class _Plain(nn.Module):
    """down(activation(up(x))): two matrices, and what stands between them."""

    def __init__(
        self, dim: int, *, ratio: float = 4.0, hidden: int | None = None, multiple_of: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.hidden = hidden_width(dim, ratio, hidden, multiple_of)
        self.up = nn.Linear(dim, self.hidden, bias=bias)
        self.down = nn.Linear(self.hidden, dim, bias=bias)
        self.down.writes_residual = True

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        return self.down(self.activation(self.up(x_BTD)))

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F); the identity, which makes the whole linear, unless a subclass says otherwise."""
        return x_BTF


class GELU(_Plain):
    """down(gelu(up(x))) (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    `tanh` is the approximation that GPT-2 uses, by torch's fused kernel. `openai` is the same formula operation by
    operation, as OpenAI and transformers write it: slower without torch.compile, and equal to theirs to the last bit,
    which twelve layers of large weights otherwise blow up to the fourth digit.
    """

    slot = "mlp"

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 4.0,
        hidden: int | None = None,
        multiple_of: int = 1,
        bias: bool = False,
        approximate: Literal["none", "tanh", "openai"] = "tanh",
    ) -> None:
        super().__init__(dim, ratio=ratio, hidden=hidden, multiple_of=multiple_of, bias=bias)
        self.approximate = approximate

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        if self.approximate == "openai":
            return 0.5 * x_BTF * (1.0 + torch.tanh(_SQRT_2_OVER_PI * (x_BTF + 0.044715 * torch.pow(x_BTF, 3.0))))
        return F.gelu(x_BTF, approximate=self.approximate)


class ReLU2(_Plain):
    """down(relu(up(x))²) (So et al. 2021, Primer, arXiv:2109.08668)."""

    slot = "mlp"

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.relu(x_BTF).square()


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    slot = "mlp"

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 2.6666666666666665,
        hidden: int | None = None,
        multiple_of: int = 64,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.hidden = hidden_width(dim, ratio, hidden, multiple_of)
        self.gate = nn.Linear(dim, self.hidden, bias=bias)
        self.up = nn.Linear(dim, self.hidden, bias=bias)
        self.down = nn.Linear(self.hidden, dim, bias=bias)
        self.down.writes_residual = True

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
