"""Attention: the layer in which positions exchange information, (B, T, D) → (B, T, D).

Letters: B batch, T sequence, S keys seen (T plus what a cache holds), D width, H query heads, K key-value heads,
C head width.
"""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.config import Slot, build
from gptlab.errors import ConfigError
from gptlab.model.position import Rotary, rotate

_EXPLICIT_LENGTH = 512  # above it the scores outgrow the caches and the fused kernel catches up


class Cache(Protocol):
    """What attention needs of a key-value cache (the real one is in `gptlab.inference.cache`)."""

    def positions(self, length: int) -> Tensor:
        """Positions of the next `length` tokens, (T,) or (B, T)."""

    def mask(self, length: int) -> Tensor | None:
        """Which keys the next `length` queries may see, (B, 1, T, S); None: all that the cache and causality allow."""

    def update(self, layer_index: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values; return all of the layer's so far, each (B, K, S, C)."""


class Context:
    """What all layers share in one forward pass: rotation, document boundaries, the cache."""

    def __init__(self, rotary: Rotary | None, documents_BT: Tensor | None = None, cache: Cache | None = None) -> None:
        self.rotary, self.documents, self.cache = rotary, documents_BT, cache
        self._document_mask: Tensor | None = None

    def mask(self, length: int, *, documents: bool) -> tuple[Tensor | None, bool]:
        """(mask or None, causal): what `length` queries may see, in the form that SDPA is fastest with."""
        if self.cache is not None:
            mask = self.cache.mask(length)
            return mask, mask is None and length > 1
        if not documents or self.documents is None:
            return None, True
        if self._document_mask is None:
            self._document_mask = document_mask(self.documents)
        return self._document_mask, False


def document_mask(documents_BT: Tensor) -> Tensor:
    """Causal and within one document: True where query t may see key s. (B, T) → (B, 1, T, T)"""
    length = documents_BT.shape[1]
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    return (same & causal)[:, None]


def document_positions(documents_BT: Tensor) -> Tensor:
    """Positions that count from the start of each packed document: (B, T) → (B, T)"""
    index = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    begins = torch.ones_like(documents_BT, dtype=torch.bool)
    begins[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def attend(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Tensor | None, *, causal: bool, dropout: float = 0.0
) -> Tensor:
    """softmax(q·k/√C)·v, (B, H, T, C), by whichever way is fastest here; all give the same numbers up to rounding."""
    T, S = q_BHTC.shape[-2], k_BKSC.shape[-2]
    if q_BHTC.device.type == "cpu" and q_BHTC.dtype == torch.bfloat16 and T == S <= _EXPLICIT_LENGTH:
        return explicit_attention(q_BHTC, k_BKSC, v_BKSC, mask, causal=causal, dropout=dropout)
    return F.scaled_dot_product_attention(
        q_BHTC,
        k_BKSC,
        v_BKSC,
        attn_mask=mask,
        is_causal=causal,
        dropout_p=dropout,
        enable_gqa=q_BHTC.shape[1] != k_BKSC.shape[1],
    )


def explicit_attention(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Tensor | None, *, causal: bool, dropout: float = 0.0
) -> Tensor:
    """Attention written out, with the scores of (B, H, T, S) in memory and their softmax in float32.

    Torch's fused kernel for CPUs works on one head at a time and gains nothing from bfloat16 (its backward pass even
    loses); as batched products the same work takes half the time while the scores are small (benchmarks/attention.py).
    """
    B, H, T, C = q_BHTC.shape
    K, S = k_BKSC.shape[1:3]
    q = (q_BHTC * C**-0.5).reshape(B, K, H // K * T, C)  # the queries of a group meet their keys in one product
    scores = (q @ k_BKSC.transpose(-1, -2)).view(B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif causal:
        scores = scores + torch.full((T, S), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    weights = F.dropout(F.softmax(scores, -1, dtype=torch.float32).to(v_BKSC.dtype), dropout)
    return (weights.view(B, K, H // K * T, S) @ v_BKSC).view(B, H, T, C)


class Attention(nn.Module):
    """Causal softmax attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1) with H query and K key-value heads.

    `kv_heads` below `heads` is grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245), 1 is multi-query
    (Shazeer 2019, arXiv:1911.02150). `qk_norm` normalizes queries and keys of each head before the rotation
    (Dehghani et al. 2023, arXiv:2302.05442). `document_mask` keeps attention inside a packed document.
    """

    slot = "attention"

    def __init__(
        self,
        dim: int,
        layer_index: int,
        heads: int,
        head_dim: int,
        dropout: float,
        *,
        kv_heads: int | None = None,
        qk_norm: Annotated[Slot | None, "norm"] = None,
        bias: bool = False,
        document_mask: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if heads % kv_heads:
            raise ConfigError(
                f"model.block.attention.kv_heads: {kv_heads} does not divide the {heads} heads; "
                f"choose one of {', '.join(str(k) for k in range(1, heads + 1) if heads % k == 0)}"
            )
        self.layer_index, self.heads, self.kv_heads, self.head_dim = layer_index, heads, kv_heads, head_dim
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, dim, bias=bias)
        self.out.writes_residual = True
        self.q_norm = build("norm", qk_norm, dim=head_dim) if qk_norm is not None else None
        self.k_norm = build("norm", qk_norm, dim=head_dim) if qk_norm is not None else None
        self.dropout, self.document_mask = dropout, document_mask

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        B, T, _ = x_BTD.shape
        H, K, C = self.heads, self.kv_heads, self.head_dim
        q, k, v = self.qkv(x_BTD).view(B, T, H + 2 * K, C).transpose(1, 2).split((H, K, K), dim=1)  # (B, ·, T, C)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        mask, causal = context.mask(T, documents=self.document_mask)
        if context.cache is not None:
            k, v = context.cache.update(self.layer_index, k, v)
        y_BHTC = attend(q, k, v, mask, causal=causal, dropout=self.dropout if self.training else 0.0)
        return self.out(y_BHTC.transpose(1, 2).reshape(B, T, H * C))
