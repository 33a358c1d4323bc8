"""GPT: a decoder-only transformer, whole. Read it top to bottom; every part it names is a slot.

Letters in shapes and names, here and everywhere: B batch, T sequence, D model width, H heads, K key-value heads,
C head width, F MLP width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from gptlab.config import Slot, build, require_range, starting_run
from gptlab.config.numbers import require_bounds
from gptlab.errors import ConfigError
from gptlab.model.backends import Cache
from gptlab.model.component import (
    Context,
    LayerArgs,
    declared,
    document_positions,
    flops_per_token,
    modules_with,
)
from gptlab.model.float8 import build_head
from gptlab.model.mup import check_base
from gptlab.model.position import check_position


class GPT(nn.Module):
    """Token ids (B, T) → hidden states (B, T, D) → logits (B, T, V).

    `context_length` is the longest sequence the model can see (null: the run's sequence length). `tied` shares the
    embedding matrix with the head (Press and Wolf 2017, arXiv:1608.05859). `embedding_norm` normalizes embeddings;
    `final_norm: false` leaves out the last norm, which post-norm blocks do not need. `embedding_scale` and
    `logit_scale` multiply embeddings and logits. `logit_softcap` bends logits into ±cap by cap·tanh(x/cap) (Gemma 2,
    arXiv:2408.00118, section 2). `pad_vocab` rounds the number of embedding rows up to a multiple of it, which tensor
    cores like; the extra rows are never predicted. `float8_head` multiplies by the head in 8 bits while training (see
    `gptlab.model.float8`). `dropout` is that of every site which has none of its own. `ahead`
    adds so many blocks beside each other after the last, each for a token further on (Gloeckle et al. 2024,
    arXiv:2404.19737, section 2): for the loss `MultiToken`. `mup` names the base of a maximal update parametrization,
    this model with other widths, as `{dim: 128, heads: 2}`: see `gptlab.model.mup`. `init_from`: a run folder whose
    weights training starts from, and whose `model` section holds for all that this one does not say.

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
        residual: Annotated[Slot, "residual"] = "Residual",
        initialization: Annotated[Slot, "initialization"] = "GPT2Init",
        tied: bool = True,
        head_bias: bool = False,
        embedding_norm: Annotated[Slot | None, "norm"] = None,
        embedding_scale: float = 1.0,
        final_norm: bool = True,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        pad_vocab: int = 1,
        float8_head: bool = False,
        ahead: int = 0,
        mup: dict[str, int] | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        context_length = sequence_length if context_length is None else context_length
        _check_shapes(dim, layers, heads, head_dim, context_length, sequence_length)
        above_0 = {"embedding_scale": embedding_scale, "logit_scale": logit_scale, "logit_softcap": logit_softcap}
        require_range("model", "above 0", **above_0)
        require_range("model", "at least 1", pad_vocab=pad_vocab)
        require_range("model", "at least 0", ahead=ahead)
        require_range("model", "at least 0 and below 1", dropout=dropout, embedding_dropout=embedding_dropout)
        check_base(mup)
        head_dim = head_dim or dim // heads
        self.vocab_size, self.dim, self.heads, self.head_dim = vocab_size, dim, heads, head_dim
        self.context_length, self.logit_softcap = context_length, logit_softcap
        self.embedding_scale, self.logit_scale = embedding_scale, logit_scale
        self.init_from, self.mup = starting_run(init_from), dict(mup or {})
        layer_args = [
            LayerArgs(dim, i, layers, heads, head_dim, context_length, dropout, vocab_size, norm) for i in range(layers)
        ]
        rows = -(-vocab_size // pad_vocab) * pad_vocab

        self.embedding = nn.Embedding(rows, dim)
        self.position = layer_args[0].build("position", position)
        self.embedding_norm = build("norm", embedding_norm, dim=dim) if embedding_norm is not None else None
        self.dropout = nn.Dropout(dropout if embedding_dropout is None else embedding_dropout)
        self.blocks = nn.ModuleList(layer.build("block", block) for layer in layer_args)
        check_position(self.position, self.blocks)
        self.residual = build("residual", residual, layers=layers)
        self.ahead = nn.ModuleList(layer_args[-1].build("block", block) for _ in range(ahead))
        self.norm = build("norm", norm, dim=dim) if final_norm else nn.Identity()
        self.head = build_head(dim, rows, bias=head_bias, float8=float8_head)
        if tied:
            self.head.weight = self.embedding.weight
        self.masks_documents = any(module.document_mask for module in modules_with(self, "document_mask"))
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
        ahead: bool = False,
    ) -> Tensor:
        """Hidden states after the last norm, (B, T, D), or on request logits, (B, T, V).

        `documents_BT` numbers the packed document of each position. Attention with `document_mask` stays inside one,
        and positions then count from its start. With a `cache`, `ids_BT` are the tokens that follow what it holds, and
        documents are numbered for both.
        With `ahead`, hidden states for each of the next tokens, (1 + ahead, B, T, D).
        """
        length = ids_BT.shape[1]
        if self.masks_documents and documents_BT is not None:
            positions = document_positions(documents_BT)[:, -length:]  # a document is what it would be alone
        elif cache is not None:
            positions = cache.positions(length)
        else:
            positions = torch.arange(length, device=ids_BT.device)
        rotary, slopes = self.position.rotary(positions), self.position.slopes()
        in_windows = declared(self.position, "window_rotary")
        context = Context(
            ids_BT, rotary, slopes, documents_BT, cache, None if in_windows is None else in_windows(positions)
        )
        x_BTD = self.embedding(ids_BT)
        if self.embedding_scale != 1.0:
            x_BTD = x_BTD * self.embedding_scale
        x_BTD = self.position.embed(x_BTD, positions)
        x_BTD = self.dropout(x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD))
        x_BTD = self.residual(x_BTD, self.blocks, context)
        if ahead:
            return torch.stack([self.norm(x) for x in (x_BTD, *(block(x_BTD, context) for block in self.ahead))])
        x_BTD = self.norm(x_BTD)
        return self.logits(x_BTD) if return_logits else x_BTD

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The head: hidden states (…, D) → logits (…, V)."""
        logits = self.head(x_BTD)[..., : self.vocab_size]
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_softcap is not None:
            logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        return logits

    def parameter_count(self, *, embeddings: bool = True) -> int:
        """Trainable numbers; without `embeddings`, those of all embedding tables (and the head) are left out."""
        tables = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)} | {self.head.weight}
        return sum(p.numel() for p in self.parameters() if p.requires_grad and (embeddings or p not in tables))

    def flops_per_token(self, length: int | None = None) -> float:
        """Training FLOPs a token in sequences of `length` (None: the context length); see `gptlab.model.component`."""
        return flops_per_token(self, length or self.context_length)


def _check_shapes(
    dim: int,
    layers: int,
    heads: int,
    head_dim: int | None,
    context_length: int,
    sequence_length: int,
) -> None:
    sizes = {"dim": dim, "layers": layers, "heads": heads, "head_dim": head_dim, "context_length": context_length}
    require_range("model", "at least 1", **sizes)
    require_bounds("model", **sizes)
    if head_dim is None and dim % heads:
        near = min((h for h in range(1, dim + 1) if dim % h == 0), key=lambda h: abs(h - heads))
        raise ConfigError(
            f"model.heads: {heads} heads do not divide the width {dim}; use {near}, or set model.head_dim",
            key="model.heads",
        )
    if sequence_length > context_length:
        raise ConfigError(
            f"train.sequence_length: {sequence_length} is longer than model.context_length {context_length}; "
            "shorten the first or raise the second",
            key="train.sequence_length",
        )
