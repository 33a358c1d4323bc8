"""A position of your own: one learned vector a position, scaled. Edit from here."""

from __future__ import annotations

from torch import Tensor, nn

from gptlab.model.position import NoPosition


class MyIdea(NoPosition):
    """Learned vectors, added to the embeddings; `rotary` and `slopes` may be overridden as well."""

    slot = "position"

    def __init__(self, dim: int, context_length: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context_length, dim)
        self.scale = scale

    def embed(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D) + (T, D) or (B, T, D); `positions`: (T,) or (B, T), counted from the start of a document"""
        return x_BTD + self.scale * self.embedding(positions)
