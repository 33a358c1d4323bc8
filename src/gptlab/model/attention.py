"""Attention: the layer in which positions exchange information, (B, T, D) → (B, T, D).

Letters: B batch, T sequence, S keys seen (T plus what a cache holds), D width, H query heads, K key-value heads,
C head width, V vocabulary, L layers.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gptlab.config import Slot, build, require_range
from gptlab.errors import ConfigError
from gptlab.model.backends import Scores, attend
from gptlab.model.component import Context, Rotary, require_layers
from gptlab.model.position import rotate

_STEP = 128  # a window's, where nothing is said: the default of `window_step`


class Window:
    """How far back a layer looks: a pattern over the layers, and a width that may grow while training.

    The pattern is repeated so that its last letter falls on the last layer, whatever the depth: F sees everything,
    L the window, S half of it. From `start` the width grows linearly over the run in whole `step`s (as in the
    modded-nanogpt records). `now` is the width at present, None: everything; after training it is the full window.
    """

    def __init__(
        self, layer_index: int, layers: int, width: int | None, pattern: str, start: int | None, step: int
    ) -> None:
        if not pattern or set(pattern) - set("FLS"):
            raise ConfigError(
                f"model.block.attention.pattern: {pattern!r} has other letters than F (full), L (window) and "
                "S (half a window)",
                key="model.block.attention.pattern",
            )
        sizes = {"window": width, "window_start": start, "window_step": step}
        require_range("model.block.attention", "at least 1", **sizes)
        if width is None and (pattern != "L" or start is not None):
            raise ConfigError(
                "model.block.attention: pattern and window_start say where and when; set window as well",
                key="model.block.attention",
            )
        if start is None and step != _STEP:  # written out, the default cannot be told from one left out
            raise ConfigError(
                f"model.block.attention.window_step: {step} is how a window grows, and this one does not; set "
                "window_start as well, or leave it out",
                key="model.block.attention.window_step",
            )
        if start is not None and width is not None and start > width:
            raise ConfigError(
                f"model.block.attention.window_start: {start} is wider than the window, {width}, that it grows to",
                key="model.block.attention.window_start",
            )
        letter = pattern[(layer_index - layers) % len(pattern)]
        self.share = {"F": None, "L": 1, "S": 2}[letter] if width is not None else None
        self.width, self.start, self.step = width, start, step
        self.now = self.at(1.0)

    def at(self, progress: float) -> int | None:
        """The width when `progress` of the run, 0 to 1, is done; None: no limit."""
        if self.width is None or self.share is None:
            return None
        width = self.width
        if self.start is not None:
            grown = self.start + (self.width - self.start) * progress
            width = min(self.width, self.step * math.ceil(grown / self.step))
        return max(1, width // self.share)


class Attention(nn.Module):
    """Causal softmax attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1) with H query and K key-value heads.

    `kv_heads` below `heads` is grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245), 1 is multi-query
    (Shazeer 2019, arXiv:1911.02150). `qk_norm` normalizes queries and keys before the rotation (Dehghani et al. 2023,
    arXiv:2302.05442), each head by itself, or all heads at once (`qk_norm_over: width`, as OLMo 2 does).
    `document_mask` keeps attention inside a packed document. `out_bias` null: as `bias`. The layers of
    `without_rotation`, counted from 0, do not turn queries and keys (Yang et al. 2025, arXiv:2501.18795, section 3).

    *Which keys*: `window` (null: all), on the layers that `pattern` gives one, grown from `window_start`: see `Window`.

    *Scores*: times `scale` (sqrt: 1/√C; inverse: 1/C, as muP asks, arXiv:2203.03466, table 8; or a number), then bent
    into ±`softcap`. `key_offset` shows a query, in the dimensions that the rotation leaves alone, the key *before* each
    position, so that one layer can find what followed an earlier occurrence (modded-nanogpt's partial key offset).

    *Values*: `value_embeddings` N gives the first N layers a table of values for each token id, added to theirs, and
    the last N layers use the same tables again (modded-nanogpt). `value_residual` adds the first layer's values (Zhou
    et al. 2024, arXiv:2410.17897, eq. 5). Both with learned weights, which start at ½ each.

    *Output*: `gate` multiplies it by a sigmoid of the layer's input (its first `gate_width` dimensions; null: all),
    one number a head, or one an element (Qiu et al. 2025, arXiv:2505.06708, section 2.2).
    """

    slot = "attention"

    def __init__(
        self,
        dim: int,
        layer_index: int,
        layers: int,
        heads: int,
        head_dim: int,
        dropout: float,
        vocab_size: int,
        *,
        kv_heads: int | None = None,
        qk_norm: Annotated[Slot | None, "norm"] = None,
        qk_norm_over: Literal["head", "width"] = "head",
        bias: bool = False,
        out_bias: bool | None = None,
        document_mask: bool = False,
        window: int | None = None,
        pattern: str = "L",
        window_start: int | None = None,
        window_step: int = 128,
        scale: float | Literal["sqrt", "inverse"] = "sqrt",
        softcap: float | None = None,
        key_offset: bool = False,
        value_embeddings: int = 0,
        value_residual: bool = False,
        gate: Literal["none", "head", "element"] = "none",
        gate_width: int | None = None,
        weight_dropout: float | None = None,
        backend: Literal["auto", "sdpa", "explicit", "flex", "varlen"] = "auto",
        without_rotation: list[int] = [],  # noqa: B006 - not kept
    ) -> None:
        super().__init__()
        where = "model.block.attention"
        require_layers(f"{where}.without_rotation", without_rotation, layers)
        require_range(where, "above 0", softcap=softcap, scale=None if isinstance(scale, str) else scale)
        require_range(where, "at least 1", kv_heads=kv_heads)
        require_range(where, "at least 0 and below 1", weight_dropout=weight_dropout)
        kv_heads = kv_heads or heads
        if heads % kv_heads:
            raise ConfigError(
                f"model.block.attention.kv_heads: {kv_heads} does not divide the {heads} heads; "
                f"choose one of {', '.join(str(k) for k in range(1, heads + 1) if heads % k == 0)}",
                key="model.block.attention.kv_heads",
            )
        self.layer_index, self.heads, self.kv_heads, self.head_dim = layer_index, heads, kv_heads, head_dim
        self.turns = layer_index not in without_rotation
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * head_dim, bias=bias)
        self.qkv.weight.stacked = tuple(n * head_dim for n in (heads, kv_heads, kv_heads))
        self.out = nn.Linear(heads * head_dim, dim, bias=bias if out_bias is None else out_bias)
        self.out.writes_residual = True
        if qk_norm_over == "width" and qk_norm is None:
            raise ConfigError("model.block.attention.qk_norm_over says over what to normalize; set qk_norm as well")
        self.qk_norm_over = qk_norm_over
        over = (heads, kv_heads) if qk_norm_over == "width" else (1, 1)
        self.q_norm = build("norm", qk_norm, dim=head_dim * over[0]) if qk_norm is not None else None
        self.k_norm = build("norm", qk_norm, dim=head_dim * over[1]) if qk_norm is not None else None
        self.window = Window(layer_index, layers, window, pattern, window_start, window_step)
        self.score_width = head_dim
        self.scale = {"sqrt": head_dim**-0.5, "inverse": 1 / head_dim}.get(scale, scale)
        self.softcap, self.key_offset, self.backend = softcap, key_offset, backend
        self.dropout = dropout if weight_dropout is None else weight_dropout
        self.document_mask = document_mask

        self.table = _value_table(layer_index, layers, value_embeddings)
        if self.table is not None:
            if self.table == layer_index:
                self.value_embedding = nn.Embedding(vocab_size, kv_heads * head_dim)
            self.embedding_mix = nn.Parameter(torch.full((2,), 0.5))
        if value_residual and layers < 2:
            raise ConfigError(
                f"{where}.value_residual gives later layers the first one's values, and there is one layer; set it to "
                "false, or model.layers to 2 or more"
            )
        self.value_residual = value_residual
        if value_residual and layer_index > 0:
            self.residual_mix = nn.Parameter(torch.full((2,), 0.5))
        self.gate = _build_gate(gate, gate_width, dim, heads, head_dim)
        # Of what a subclass adds it would know nothing.
        self.sharding = self._sharding() if type(self) is Attention else None

    def _sharding(self) -> dict[str, str]:
        """Heads are divided, with all that is theirs; not where they are normalized together."""
        if self.qk_norm_over == "width":
            return {}
        gate = {"gate": "column"} if self.gate is not None else {}
        table = {"value_embedding": "column"} if self.table == self.layer_index else {}
        return {"qkv": "column", "out": "row", **gate, **table, "heads": "divided", "kv_heads": "divided"}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        B, T, _ = x_BTD.shape
        q, k, v = self._project(x_BTD)
        v = self._mix_values(v, context)
        rotary = self._rotary(context)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        view = context.view(window=self.window.now, documents=self.document_mask)
        if context.cache is not None:
            k, v = context.cache.update(self.layer_index, k, v)
        if self.key_offset:
            turning = 0 if rotary is None else 2 * rotary[0].shape[-1]
            if turning >= self.head_dim:
                raise ConfigError(
                    "model.block.attention.key_offset moves the dimensions that do not turn, and all of them do; "
                    "set model.position to {use: RoPE, fraction: 0.5}, or key_offset to false"
                )
            k = _offset_keys(k, context.starts(documents=self.document_mask), turning)
        scores = Scores(self.scale, self.softcap, context.slopes)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, view, scores, dropout=dropout, backend=self.backend).transpose(1, 2)  # (B, T, H, C)
        if self.gate is not None:
            y = y * self.gate(x_BTD[..., : self.gate.in_features]).sigmoid().view(B, T, self.heads, -1)
        return self.out(y.reshape(B, T, self.heads * self.head_dim))

    def _rotary(self, context: Context) -> Rotary | None:
        """The rotation of queries and keys in this layer; None where they stand still."""
        if self.turns:
            return context.rotary if self.window.share is None else context.window_rotary
        if context.rotary is None:
            raise ConfigError(
                "model.block.attention.without_rotation leaves out a rotation that no layer has; set model.position to "
                "RoPE, or leave it out",
                key="model.block.attention.without_rotation",
            )
        return None

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, C), keys and values (B, K, T, C)."""
        B, T, _ = x_BTD.shape
        H, K, C = self.heads, self.kv_heads, self.head_dim
        qkv = self.qkv(x_BTD)
        if self.q_norm is not None and self.qk_norm_over == "width":
            q, k, v = qkv.split((H * C, K * C, K * C), dim=-1)
            q, k = self.q_norm(q).view(B, T, H, C), self.k_norm(k).view(B, T, K, C)
            return q.transpose(1, 2), k.transpose(1, 2), v.view(B, T, K, C).transpose(1, 2)
        q, k, v = qkv.view(B, T, H + 2 * K, C).transpose(1, 2).split((H, K, K), dim=1)
        return (q, k, v) if self.q_norm is None else (self.q_norm(q), self.k_norm(k), v)

    def _mix_values(self, v_BKTC: Tensor, context: Context) -> Tensor:
        """Values with the token's own embedding and with the first layer's values added, as far as switched on."""
        if self.table is not None:
            if self.table == self.layer_index:
                context.values[self.table] = self.value_embedding(context.ids)
            embedded = context.values[self.table].view(v_BKTC.transpose(1, 2).shape).transpose(1, 2)
            own, table = self.embedding_mix.to(v_BKTC.dtype)
            v_BKTC = own * v_BKTC + table * embedded.to(v_BKTC.dtype)
        if self.value_residual:
            if self.layer_index == 0:
                context.values["first"] = v_BKTC
            else:
                own, first = self.residual_mix.to(v_BKTC.dtype)
                v_BKTC = own * v_BKTC + first * context.values["first"]
        return v_BKTC

    def before_step(self, progress: float) -> None:
        """Set the window for a step at `progress`, 0 to 1, of the run."""
        self.window.now = self.window.at(progress)

    def score_flops(self, length: int) -> float:
        """Training FLOPs of q·k and of weights·v, a token: 12·H·C for each of the keys that a query reads."""
        window = self.window.at(1.0)
        return 12.0 * self.heads * self.head_dim * (length if window is None else min(window, length))


def _build_gate(gate: str, width: int | None, dim: int, heads: int, head_dim: int) -> nn.Linear | None:
    """The layer that a sigmoid makes the output's gate of, from `width` of the input's dimensions; None for no gate."""
    if width is not None and (gate == "none" or not 0 < width <= dim):
        raise ConfigError(
            f"model.block.attention.gate_width: {width} of {dim} dimensions for gate {gate}; "
            f"make it from 1 to {dim}, and gate head or element",
            key="model.block.attention.gate_width",
        )
    if gate == "none":
        return None
    return nn.Linear(width or dim, heads if gate == "head" else heads * head_dim, bias=False)


def _value_table(layer_index: int, layers: int, tables: int) -> int | None:
    """Which value embedding a layer uses: the first layers one each, and the last layers the same again."""
    if not 0 <= tables <= layers:
        raise ConfigError(
            f"model.block.attention.value_embeddings: {tables} tables for {layers} layers; lower it",
            key="model.block.attention.value_embeddings",
        )
    if layer_index < tables:
        return layer_index
    again = layer_index - (layers - tables)
    return again if again >= 0 and tables > 0 else None


def _offset_keys(k_BKSC: Tensor, starts: Tensor, turning: int) -> Tensor:
    """Keys whose dimensions from `turning` on are those of the position before, but at the start of a text."""
    still = k_BKSC[..., turning:]
    moved = torch.where(starts[:, None, :, None], still, still.roll(1, dims=2))
    return torch.cat((k_BKSC[..., :turning], moved), dim=-1)


class MLA(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): the cache holds, a token, one latent
    vector of `kv_rank` and one rotated key of `rope_dim`, for all heads together.

    Keys and values of a head are projections of the latent (eq. 9–11). Position sits in the rotated key alone, which
    all heads share (eq. 14–19); the position component must turn just `rope_dim` dimensions (null: as many as a head
    has): half of a head's, as DeepSeek-V2 does, with `{use: RoPE, fraction: 0.5}`. `q_rank` compresses the
    queries as well (eq. 12–13). When one token is read from a cache, keys and values are never formed: queries go into
    the latent's space instead.
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
        kv_rank: int = 128,
        q_rank: int | None = None,
        rope_dim: int | None = None,
        latent_norm: Annotated[Slot, "norm"] = "RMSNorm",
        document_mask: bool = False,
    ) -> None:
        super().__init__()
        require_range("model.block.attention", "at least 1", kv_rank=kv_rank, q_rank=q_rank, rope_dim=rope_dim)
        rope_dim = rope_dim or head_dim
        self.layer_index, self.heads, self.head_dim = layer_index, heads, head_dim
        self.kv_rank, self.rope_dim = kv_rank, rope_dim
        self.dropout, self.document_mask = dropout, document_mask
        width = heads * (head_dim + rope_dim)
        if q_rank is None:
            self.q = nn.Linear(dim, width, bias=False)
        else:
            norm = build("norm", latent_norm, dim=q_rank)
            self.q = nn.Sequential(nn.Linear(dim, q_rank, bias=False), norm, nn.Linear(q_rank, width, bias=False))
        self.kv_down = nn.Linear(dim, kv_rank + rope_dim, bias=False)
        self.kv_norm = build("norm", latent_norm, dim=kv_rank)
        self.kv_up = nn.Linear(kv_rank, heads * 2 * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)
        self.out.writes_residual = True
        query = "q" if q_rank is None else "q.2"
        plan = {query: "column", "kv_up": "column", "out": "row", "heads": "divided"}
        self.sharding = plan if type(self) is MLA else None
        self.score_width = head_dim + rope_dim
        self.scale = self.score_width**-0.5

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        B, T, _ = x_BTD.shape
        H, C, R = self.heads, self.head_dim, self.rope_dim
        q_BHTC, q_rope = self.q(x_BTD).view(B, T, H, C + R).transpose(1, 2).split((C, R), dim=-1)
        latent, k_rope = self.kv_down(x_BTD)[:, None].split((self.kv_rank, R), dim=-1)  # one head: (B, 1, T, ·)
        latent = self.kv_norm(latent)
        if context.rotary is not None:
            self._check_rotation(2 * context.rotary[0].shape[-1])
            q_rope, k_rope = rotate(q_rope, context.rotary), rotate(k_rope, context.rotary)
        if context.cache is not None:
            latent, k_rope = context.cache.update(self.layer_index, latent, k_rope)
        view = context.view(documents=self.document_mask)
        scores = Scores(self.scale, None, context.slopes)
        dropout = self.dropout if self.training else 0.0
        if context.cache is not None and T == 1:
            k_up, v_up = self.kv_up.weight.view(H, 2 * C, self.kv_rank).split(C, dim=1)  # each (H, C, rank)
            q = torch.cat((q_BHTC @ k_up, q_rope), dim=-1)
            y_BHTC = attend(q, torch.cat((latent, k_rope), -1), latent, view, scores) @ v_up.mT
        else:
            S = latent.shape[2]
            k, v = self.kv_up(latent[:, 0]).view(B, S, H, 2 * C).transpose(1, 2).split(C, dim=-1)
            k = torch.cat((k, k_rope.expand(B, H, S, R)), dim=-1)
            y_BHTC = attend(torch.cat((q_BHTC, q_rope), dim=-1), k, v, view, scores, dropout=dropout)
        return self.out(y_BHTC.transpose(1, 2).reshape(B, T, H * C))

    def _check_rotation(self, turning: int) -> None:
        if turning != self.rope_dim:
            raise ConfigError(
                f"model.block.attention.rope_dim: MLA has {self.rope_dim} dimensions to turn, and the position "
                f"component turns {turning}; set rope_dim to {turning}, or model.position to "
                f"{{use: RoPE, fraction: {self.rope_dim / self.head_dim:g}}}",
                key="model.block.attention.rope_dim",
            )

    def score_flops(self, length: int) -> float:
        """Training FLOPs of q·k and of weights·v, a token: 6·H·(C + R) and 6·H·C for each key."""
        return 6.0 * self.heads * (2 * self.head_dim + self.rope_dim) * length
