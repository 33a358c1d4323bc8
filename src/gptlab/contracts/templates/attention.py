"""An attention of your own: gptlab's, with one learned number a head that scales its output. Edit from here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptlab.model.backends import Scores, attend
from gptlab.model.component import Context
from gptlab.model.position import rotate


class MyIdea(nn.Module):
    """Causal softmax attention; what a head gives is multiplied by a number that it learns."""

    slot = "attention"
    off = {"scaled": False}  # noqa: RUF012 - how the feature is switched off …
    baseline = "Attention"  # … and what it then is, bit for bit

    def __init__(
        self,
        dim: int,
        layer_index: int,
        heads: int,
        head_dim: int,
        dropout: float,
        *,
        scaled: bool = True,
        document_mask: bool = False,
    ) -> None:
        super().__init__()
        self.layer_index, self.heads, self.head_dim = layer_index, heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)
        self.out.writes_residual = True  # initialization may scale what writes to the residual stream
        self.scale = nn.Parameter(torch.ones(heads)) if scaled else None
        self.dropout, self.document_mask = dropout, document_mask

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        B, T, _ = x_BTD.shape
        H, C = self.heads, self.head_dim
        q, k, v = self.qkv(x_BTD).view(B, T, 3 * H, C).transpose(1, 2).split((H, H, H), dim=1)  # (B, H, T, C)
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        view = context.view(documents=self.document_mask)  # which keys a query may see
        if context.cache is not None:
            k, v = context.cache.update(self.layer_index, k, v)
        y = attend(q, k, v, view, Scores(slopes_H=context.slopes), dropout=self.dropout if self.training else 0.0)
        if self.scale is not None:
            y = y * self.scale.to(y.dtype)[:, None, None]
        return self.out(y.transpose(1, 2).reshape(B, T, H * C))
