"""GPT: a decoder-only transformer, whole. Read it top to bottom; every part it names is a slot.

Letters in shapes and names, here and everywhere: B batch, T sequence, D model width, H heads, K key-value heads,
C head width, F MLP width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from gptlab.config import Slot, build
from gptlab.errors import ConfigError
from gptlab.model.attention import Cache, Context, document_positions


class Block(nn.Module):
    """A pre-norm residual block: attention, then MLP, each on a normalized copy of the stream."""

    slot = "block"

    def __init__(
        self,
        dim: int,
        layer_index: int,
        layers: int,
        heads: int,
        head_dim: int,
        context_length: int,
        dropout: float,
        norm: Slot,
        *,
        attention: Annotated[Slot, "attention"] = "Attention",
        mlp: Annotated[Slot, "mlp"] = "GELU",
    ) -> None:
        super().__init__()
        site = {
            "dim": dim,
            "layer_index": layer_index,
            "layers": layers,
            "heads": heads,
            "head_dim": head_dim,
            "context_length": context_length,
            "dropout": dropout,
        }
        self.attention_norm = build("norm", norm, dim=dim)
        self.attention = build("attention", attention, **site)
        self.mlp_norm = build("norm", norm, dim=dim)
        self.mlp = build("mlp", mlp, **site)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), context))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class GPT(nn.Module):
    """Token ids (B, T) → hidden states (B, T, D) → logits (B, T, V).

    `context_length` is the longest sequence the model can see (null: the run's sequence length). `tied` shares the
    embedding matrix with the head (Press and Wolf 2017, arXiv:1608.05859). `logit_softcap` bends logits into
    ±cap by cap·tanh(x/cap) (Gemma 2, arXiv:2408.00118, section 2). `pad_vocab` rounds the number of embedding rows up
    to a multiple of it, which tensor cores like; the extra rows are never predicted.

    Raises ConfigError where the shapes cannot work (heads that do not divide the width, …).
    """

    slot = "model"

    def __init__(
        self,
        vocab_size: int,
        sequence_length: int,
        *,
        dim: int = 256,
        layers: int = 6,
        heads: int = 4,
        head_dim: int | None = None,
        context_length: int | None = None,
        block: Annotated[Slot, "block"] = "Block",
        norm: Annotated[Slot, "norm"] = "RMSNorm",
        position: Annotated[Slot, "position"] = "RoPE",
        initialization: Annotated[Slot, "initialization"] = "GPT2Init",
        tied: bool = True,
        head_bias: bool = False,
        dropout: float = 0.0,
        logit_softcap: float | None = None,
        pad_vocab: int = 1,
    ) -> None:
        super().__init__()
        context_length = context_length or sequence_length
        _check_shapes(dim, layers, heads, head_dim, context_length, sequence_length, dropout)
        head_dim = head_dim or dim // heads
        self.vocab_size, self.dim, self.heads, self.head_dim = vocab_size, dim, heads, head_dim
        self.context_length, self.logit_softcap = context_length, logit_softcap
        site = {"heads": heads, "head_dim": head_dim, "context_length": context_length}
        rows = -(-vocab_size // pad_vocab) * pad_vocab

        self.embedding = nn.Embedding(rows, dim)
        self.position = build("position", position, dim=dim, **site)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            build("block", block, dim=dim, layer_index=i, layers=layers, dropout=dropout, norm=norm, **site)
            for i in range(layers)
        )
        self.norm = build("norm", norm, dim=dim)
        self.head = nn.Linear(dim, rows, bias=head_bias)
        if tied:
            self.head.weight = self.embedding.weight
        self.masks_documents = any(getattr(module, "document_mask", False) for module in self.modules())
        self._initialization = build("initialization", initialization, layers=layers)

    def initialize(self, seed: int) -> None:
        """Draw all weights anew, a function of `seed` and of each parameter's name."""
        self._initialization(self, seed)

    def forward(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        *,
        cache: Cache | None = None,
        return_logits: bool = False,
    ) -> Tensor:
        """Hidden states after the last norm, (B, T, D), or on request logits, (B, T, V).

        `documents_BT` numbers the packed document of each position. Attention with `document_mask` stays inside one,
        and positions then count from its start.
        With a `cache`, `ids_BT` are the tokens that follow what the cache holds.
        """
        length = ids_BT.shape[1]
        if cache is not None:
            positions = cache.positions(length)
        elif self.masks_documents and documents_BT is not None:
            positions = document_positions(documents_BT)  # a document is what it would be alone
        else:
            positions = torch.arange(length, device=ids_BT.device)
        context = Context(self.position.rotary(positions), documents_BT, cache)
        x_BTD = self.dropout(self.position.embed(self.embedding(ids_BT), positions))
        for block in self.blocks:
            x_BTD = block(x_BTD, context)
        x_BTD = self.norm(x_BTD)
        return self.logits(x_BTD) if return_logits else x_BTD

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The head: hidden states (…, D) → logits (…, V)."""
        logits = self.head(x_BTD)[..., : self.vocab_size]
        if self.logit_softcap is not None:
            logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        return logits

    def parameter_count(self, *, embeddings: bool = True) -> int:
        """Trainable numbers; without `embeddings`, those of token and position tables (and the head) are left out."""
        tables = {self.embedding.weight, self.head.weight, *self.position.parameters()}
        return sum(p.numel() for p in self.parameters() if embeddings or p not in tables)

    def flops_per_token(self, length: int | None = None) -> float:
        """Training FLOPs a token: 6 a weight that multiplies, plus 12·L·H·C·T for attention over T keys.

        Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B); like theirs, it gives causality no discount.
        """
        matrices = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        attended = sum(
            m.heads * m.head_dim for m in self.modules() if hasattr(m, "heads") and hasattr(m, "layer_index")
        )
        return 6.0 * matrices + 12.0 * attended * (length or self.context_length)


def _check_shapes(
    dim: int,
    layers: int,
    heads: int,
    head_dim: int | None,
    context_length: int,
    sequence_length: int,
    dropout: float,
) -> None:
    for name, value in (
        ("dim", dim),
        ("layers", layers),
        ("heads", heads),
        ("context_length", context_length),
    ):
        if value < 1:
            raise ConfigError(f"model.{name}: {value} is too small; it must be at least 1")
    if head_dim is None and dim % heads:
        near = min((h for h in range(1, dim + 1) if dim % h == 0), key=lambda h: abs(h - heads))
        raise ConfigError(
            f"model.heads: {heads} heads do not divide the width {dim}; use {near}, or set model.head_dim"
        )
    if sequence_length > context_length:
        raise ConfigError(
            f"train.sequence_length: {sequence_length} is longer than model.context_length {context_length}; "
            "shorten the first or raise the second"
        )
    if not 0 <= dropout < 1:
        raise ConfigError(f"model.dropout: {dropout} is no probability; it must be at least 0 and below 1")
