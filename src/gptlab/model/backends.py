"""softmax(q·k)·v four ways, all giving the same numbers up to rounding: which one is a question of speed and memory.

*sdpa* is torch's fused kernel, which takes a dense mask; *explicit* writes the scores out; *flex* compiles a kernel for
the mask and the change of scores (Dong et al. 2024, arXiv:2412.05496); *varlen* is FlashAttention-2 over sequences
laid end to end (Dao 2023, arXiv:2307.08691). The last two skip the blocks that no query sees.

Letters: B batch, T queries, S keys (T plus what a cache holds), H query heads, K key-value heads, C head width.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.errors import ConfigError

Backend = Literal["auto", "sdpa", "explicit", "flex", "varlen"]
_EXPLICIT_LENGTH = 512  # above it the scores outgrow the caches and the fused kernel catches up


class Cache(Protocol):
    """What attention needs of a key-value cache (the real one is in `gptlab.inference.cache`)."""

    length: int
    """How many positions it holds so far."""

    def positions(self, length: int) -> Tensor:
        """Positions of the next `length` tokens, (T,) or (B, T)."""

    def mask(self, length: int) -> Tensor | None:
        """Which keys the next `length` queries may see, (B, 1, T, S); None: all that the cache and causality allow."""

    def starts(self, length: int) -> Tensor:
        """True where a row's first token stands, over all that it holds and the next `length`: (B or 1, S)."""

    def update(self, layer_index: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values; return all of the layer's so far, each (B, K, S, C)."""


class View:
    """Which keys the queries of one forward pass may see; each backend's form of it is made once, when asked for.

    Always causal. `window`: a query sees so many keys, itself the last. `documents_BS`, of all keys: and only its own
    document's.
    """

    def __init__(
        self,
        length: int,
        device: torch.device,
        *,
        window: int | None = None,
        documents_BS: Tensor | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.length, self.device, self.cache = length, device, cache
        self.keys = length + (cache.length if cache is not None else 0)
        self.window = window if window is not None and window < self.keys else None
        self.documents = documents_BS
        self._forms: dict[str, Any] = {}  # not cached_property: its lock is nothing that torch.compile can trace

    @property
    def causal(self) -> bool:
        """Whether causality is all there is to it."""
        if self.cache is not None:
            return self.mask is None
        return self.window is None and self.documents is None

    @property
    def mask(self) -> Tensor | None:
        """True where query t may see key s, (B or 1, 1, T, S); None where causality (or a lone query) says it all."""
        if "mask" not in self._forms:
            self._forms["mask"] = self._dense()
        return self._forms["mask"]

    def _dense(self) -> Tensor | None:
        mask = self.cache.mask(self.length) if self.cache is not None else None
        if self.window is None and self.documents is None:
            return mask
        query = torch.arange(self.keys - self.length, self.keys, device=self.device)[:, None]
        key = torch.arange(self.keys, device=self.device)[None]
        if mask is None:
            mask = (key <= query)[None, None]
        if self.window is not None:
            mask = mask & (key > query - self.window)
        if self.documents is not None:
            mask = mask & (self.documents[:, None, -self.length :, None] == self.documents[:, None, None, :])
        return mask

    @property
    def blocks(self) -> Any:
        """The same as FlexAttention's BlockMask."""
        if "blocks" not in self._forms:
            self._forms["blocks"] = self._sparse()
        return self._forms["blocks"]

    def _sparse(self) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        window, documents, offset = self.window, self.documents, self.keys - self.length

        def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query = query + offset
            seen = key <= query
            if window is not None:
                seen = seen & (key > query - window)
            if documents is not None:
                seen = seen & (documents[b, query] == documents[b, key])
            return seen

        batch = None if documents is None else documents.shape[0]
        return create_block_mask(visible, batch, None, self.length, self.keys, device=self.device)

    def sequences(self, batch: int) -> Tensor:
        """Where each sequence begins when the rows are laid end to end, and the end: (N + 1,) int32.

        With documents N is the number of tokens, the missing ones empty: to count them would be to wait for the device.
        """
        if self.documents is None:
            return torch.arange(batch + 1, device=self.device, dtype=torch.int32) * self.length
        total = batch * self.length
        begins = torch.ones(batch, self.length, dtype=torch.bool, device=self.device)
        begins[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        index = torch.arange(total, device=self.device)
        starts = torch.where(begins.flatten(), index, total).sort().values
        return torch.cat((starts, torch.full_like(starts[:1], total))).to(torch.int32)


@dataclass(frozen=True)
class Scores:
    """What is done to q·k before the softmax: times `scale` (None: 1/√C), bent into ±`softcap` by
    softcap·tanh(score/softcap) (Gemma 2, arXiv:2408.00118, section 2), less `slopes_H` · distance (ALiBi)."""

    scale: float | None = None
    softcap: float | None = None
    slopes_H: Tensor | None = None


PLAIN = Scores()


def attend(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    view: View,
    scores: Scores = PLAIN,
    *,
    dropout: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(scores(q·k))·v over the keys in view: (B, H, T, C). The values may have a width of their own.

    `auto` takes the fastest that can (see `choose`). Raises ConfigError where the backend named cannot.
    """
    if view.cache is not None and view.window is not None and view.length == 1 and view.cache.mask(1) is None:
        k_BKSC, v_BKSC = k_BKSC[:, :, -view.window :], v_BKSC[:, :, -view.window :]  # the rest is out of sight
        view = View(1, view.device)
    if backend == "auto":
        backend = choose(q_BHTC, v_BKSC, view, scores, dropout)
    else:
        _require(backend, q_BHTC, v_BKSC, view, scores, dropout)
    kernel = None if torch.compiler.is_compiling() else _OVERRIDE.get()
    return (kernel or BACKENDS[backend])(q_BHTC, k_BKSC, v_BKSC, view, scores, dropout)


def choose(q_BHTC: Tensor, v_BKSC: Tensor, view: View, scores: Scores, dropout: float) -> Backend:
    """The backend for this device, mask and scores."""
    small = q_BHTC.device.type == "cpu" and q_BHTC.dtype == torch.bfloat16 and q_BHTC.shape[-2] == v_BKSC.shape[-2]
    if small and q_BHTC.shape[-2] <= _EXPLICIT_LENGTH:
        return "explicit"
    if q_BHTC.device.type == "cuda" and view.cache is None and not dropout:
        sparse = _sparse_backend(q_BHTC, v_BKSC, view, scores)
        if sparse is not None:
            return sparse
    return "explicit" if scores.softcap is not None else "sdpa"


def _sparse_backend(q: Tensor, v: Tensor, view: View, scores: Scores) -> Backend | None:
    """The one of the two that skip what nobody sees which fits, on an NVIDIA GPU; None where plain SDPA is as good."""
    bent = scores.softcap is not None or scores.slopes_H is not None
    width = q.shape[-1]
    if view.causal and not bent:
        return None
    if scores.slopes_H is not None and scores.slopes_H.requires_grad:
        return None  # slopes that are learned: SDPA has a gradient for its mask
    half = q.dtype in (torch.bfloat16, torch.float16)
    # FlashAttention knows windows, and documents too, but their number only by waiting for the device.
    if half and not bent and view.documents is None and v.shape[-1] == width and width % 8 == 0 and width <= 256:
        return "varlen"
    return "flex" if width >= 16 else None


def _require(backend: Backend, q: Tensor, v: Tensor, view: View, scores: Scores, dropout: float) -> None:
    """Raises ConfigError where `backend` cannot do what is asked of it, and not something near to it instead."""
    problems = {
        "sdpa": {"bend scores (softcap)": scores.softcap is not None},
        "flex": {
            "drop weights (dropout)": dropout > 0,
            "train on a CPU": q.device.type == "cpu" and q.requires_grad,
        },
        "varlen": {
            "read on from a cache": view.cache is not None,
            "run without an NVIDIA GPU": q.device.type != "cuda",
            "compute in float32": q.device.type == "cuda" and q.dtype == torch.float32,
            "bend scores (softcap, ALiBi)": scores.softcap is not None or scores.slopes_H is not None,
            "drop weights (dropout)": dropout > 0,
            "have values of another width than the keys": v.shape[-1] != q.shape[-1],
        },
    }
    for problem, present in problems.get(backend, {}).items():
        if present:
            raise ConfigError(
                f"model.block.attention.backend: {backend} cannot {problem}; use auto",
                key="model.block.attention.backend",
            )


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, view: View, scores: Scores, dropout: float) -> Tensor:
    """By `F.scaled_dot_product_attention`."""
    mask = view.mask
    causal = mask is None and view.length > 1
    if scores.slopes_H is not None:
        bias = _distance_bias(scores.slopes_H, view.length, k.shape[-2]).to(q.dtype)
        hidden = ~mask if mask is not None else _future(view.length, k.shape[-2], q.device)
        mask, causal = bias.masked_fill(hidden, float("-inf")), False
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scores.scale, enable_gqa=grouped
    )


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, view: View, scores: Scores, dropout: float) -> Tensor:
    """Written out, with the scores of (B, H, T, S) in memory and their softmax in float32.

    Torch's fused kernel for CPUs works on one head at a time and gains nothing from bfloat16 (its backward pass even
    loses); as batched products the same work takes half the time while the scores are small (benchmarks/attention.py).
    """
    B, H, T, C = q.shape
    K, S = k.shape[1:3]
    scale = C**-0.5 if scores.scale is None else scores.scale
    q = (q * scale).reshape(B, K, H // K * T, C)  # the queries of a group meet their keys in one product
    found = (q @ k.transpose(-1, -2)).view(B, H, T, S)
    if scores.softcap is not None:
        found = scores.softcap * torch.tanh(found / scores.softcap)
    if scores.slopes_H is not None:
        found = found + _distance_bias(scores.slopes_H, T, S).to(found.dtype)
    if view.mask is not None:
        found = found.masked_fill(~view.mask, float("-inf"))
    elif T > 1:
        found = found + torch.full((T, S), float("-inf"), dtype=found.dtype, device=found.device).triu(S - T + 1)
    weights = F.dropout(F.softmax(found, -1, dtype=torch.float32).to(v.dtype), dropout)
    return (weights.view(B, K, H // K * T, S) @ v).view(B, H, T, v.shape[-1])


def flex_attention(q: Tensor, k: Tensor, v: Tensor, view: View, scores: Scores, dropout: float) -> Tensor:
    """By FlexAttention: a kernel compiled for this mask and these scores (on a CPU, without gradients, interpreted)."""
    from torch.nn.attention.flex_attention import flex_attention as interpreted

    softcap, slopes, offset = scores.softcap, scores.slopes_H, k.shape[-2] - view.length
    change = None
    if softcap is not None or slopes is not None:

        def change(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            return score if slopes is None else score - slopes[h] * (query + offset - key)

    if q.device.type == "cpu":
        # torch 2.13's kernel for CPUs reads keys that are not there where the length is no multiple of its block
        # (the result then depends on what lay in memory before), so even a compiled model steps out of it here.
        kernel = torch.compiler.disable(interpreted)
    else:  # inside a compiled model it is compiled with the rest
        kernel = interpreted if torch.compiler.is_compiling() else _compiled_flex()
    return kernel(
        q, k, v, score_mod=change, block_mask=view.blocks, scale=scores.scale, enable_gqa=q.shape[1] != k.shape[1]
    )


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as kernel

    return torch.compile(kernel, dynamic=False)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, view: View, scores: Scores, dropout: float) -> Tensor:
    """By FlashAttention over the documents of all rows, laid end to end."""
    from torch.nn.attention.varlen import varlen_attn

    B, H, T, C = q.shape
    starts = view.sequences(B)
    flat = [tensor.transpose(1, 2).reshape(B * T, -1, C) for tensor in (q, k, v)]
    window = (-1 if view.window is None else view.window - 1, 0)
    y = varlen_attn(*flat, starts, starts, T, T, scale=scores.scale, window_size=window, enable_gqa=k.shape[1] != H)
    return y.view(B, T, H, C).transpose(1, 2)


Kernel = Callable[[Tensor, Tensor, Tensor, View, Scores, float], Tensor]

BACKENDS: dict[str, Kernel] = {
    "sdpa": sdpa_attention,
    "explicit": explicit_attention,
    "flex": flex_attention,
    "varlen": varlen_attention,
}
"""By name."""

_OVERRIDE: contextvars.ContextVar[Kernel | None] = contextvars.ContextVar("attention", default=None)


@contextlib.contextmanager
def override(kernel: Kernel) -> Iterator[None]:
    """`attend` calls `kernel` in the place of every backend, in this thread, until the context is left."""
    token = _OVERRIDE.set(kernel)
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


def _future(length: int, keys: int, device: torch.device) -> Tensor:
    """True where a key comes after its query: (T, S)."""
    return torch.ones(length, keys, dtype=torch.bool, device=device).triu(keys - length + 1)


def _distance_bias(slopes_H: Tensor, length: int, keys: int) -> Tensor:
    """−slope · (query − key): (H,) → (1, H, T, S)"""
    query = torch.arange(keys - length, keys, device=slopes_H.device)[:, None]
    distance = query - torch.arange(keys, device=slopes_H.device)[None]
    return -(slopes_H[:, None, None] * distance)[None]
