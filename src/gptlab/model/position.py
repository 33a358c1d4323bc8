"""How a model knows where a token stands.

A position component may do two things, and does nothing where a method is not overridden: `embed` adds to the
embeddings once, and `rotary` gives the rotation that attention applies to queries and keys in every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptlab.errors import ConfigError

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each (T, C/2) where all rows share their positions, else (B, 1, T, C/2)."""


class NoPosition(nn.Module):
    """No position signal but the causal mask (Kazemnejad et al. 2023, arXiv:2305.19466)."""

    slot = "position"

    def __init__(self) -> None:
        super().__init__()

    def embed(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """Embeddings with position added, (B, T, D). `positions`: (T,) or (B, T)."""
        return x_BTD

    def rotary(self, positions: Tensor) -> Rotary | None:
        """The rotation for queries and keys at `positions`, (T,) or (B, T)."""
        return None


class Learned(NoPosition):
    """One learned vector a position, added to the embedding (as GPT-2)."""

    slot = "position"

    def __init__(self, dim: int, context_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context_length, dim)

    def embed(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D) + (T, D) or (B, T, D)"""
        return x_BTD + self.embedding(positions)


class RoPE(NoPosition):
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864, eq. 34): pair i of a head turns by position · θ^(−2i/C).

    Pairs are (i, i + C/2), the layout of GPT-NeoX and Llama checkpoints, not the interleaved one of the paper.
    """

    slot = "position"
    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, context_length: int, *, theta: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ConfigError(f"model.position: RoPE turns pairs, but a head is {head_dim} wide; make head_dim even")
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
        angle = torch.outer(torch.arange(context_length, dtype=torch.float64, device="cpu"), frequency)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def rotary(self, positions: Tensor) -> Rotary:
        """cos and sin at `positions`: (T,) → (T, C/2); (B, T) → (B, 1, T, C/2), to broadcast over heads."""
        cos, sin = self.cos[positions], self.sin[positions]
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])


def rotate(x_BHTC: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (i, i + C/2) of the heads of x by the given angles: (B, H, T, C) → same."""
    cos, sin = (part.to(x_BHTC.dtype) for part in rotary)
    a, b = x_BHTC.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
