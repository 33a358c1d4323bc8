"""Blocks: one layer of the residual stream, (B, T, D) → (B, T, D).

Letters: B batch, T sequence, D width, H heads, C head width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.config import Slot, build, require_range
from gptlab.errors import ConfigError
from gptlab.model.backends import Scores, attend
from gptlab.model.component import Context, LayerArgs, require_layers


class Block(nn.Module):
    """A residual block: attention, then MLP.

    `placement` says where the norms stand. *pre*: x + f(norm(x)) (Xiong et al. 2020, arXiv:2002.04745); *post*:
    norm(x + f(x)), the original transformer; *sandwich*: x + norm(f(norm(x))) (Ding et al. 2021, arXiv:2105.13290);
    *reordered*: x + norm(f(x)) (OLMo 2, arXiv:2501.00656, section 3.2). `branch_scale`: what attention and MLP add is
    multiplied by one learned number each, which starts here (Bachlechner et al. 2020, ReZero, arXiv:2003.04887); null:
    by nothing. `attention_dropout` and `mlp_dropout` act on what is added; null: the model's dropout. The layers of
    `without_attention`, counted from 0, are an MLP alone (modded-nanogpt leaves it out of its eighth).
    """

    slot = "block"

    def __init__(
        self,
        layer: LayerArgs,
        *,
        attention: Annotated[Slot, "attention"] = "Attention",
        mlp: Annotated[Slot, "mlp"] = "GELU",
        placement: Literal["pre", "post", "sandwich", "reordered"] = "pre",
        branch_scale: float | None = None,
        attention_dropout: float | None = None,
        mlp_dropout: float | None = None,
        without_attention: list[int] = [],  # noqa: B006 - not kept
    ) -> None:
        super().__init__()
        _check_without(without_attention, layer, attention)
        rates = {"attention_dropout": attention_dropout, "mlp_dropout": mlp_dropout}
        require_range("model.block", "at least 0 and below 1", **rates)
        self.placement = placement
        attends = layer.layer_index not in without_attention
        self.attention_norm = layer.build_norm() if attends else None
        self.attention = layer.build("attention", attention) if attends else None
        self.mlp_norm = layer.build_norm()
        self.mlp = layer.build("mlp", mlp)
        self.attention_dropout = nn.Dropout(layer.dropout if attention_dropout is None else attention_dropout)
        self.mlp_dropout = nn.Dropout(layer.dropout if mlp_dropout is None else mlp_dropout)
        sandwich = placement == "sandwich"
        self.attention_out_norm = layer.build_norm() if sandwich and attends else None
        self.mlp_out_norm = layer.build_norm() if sandwich else None
        branches = 2 if attends else 1
        self.branch_scale = nn.Parameter(torch.full((branches,), branch_scale)) if branch_scale is not None else None

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D): attention, then MLP, each added to the stream; norms where `placement` says."""
        if self.attention is not None:
            x_BTD = self._add("attention", x_BTD, self.attention(self._branch_input("attention", x_BTD), context))
        return self._add("mlp", x_BTD, self.mlp(self._branch_input("mlp", x_BTD)))

    def _branch_input(self, branch: str, x: Tensor) -> Tensor:
        """What a branch reads of the stream: `norm(x)` for pre and sandwich, else x."""
        return getattr(self, f"{branch}_norm")(x) if self.placement in ("pre", "sandwich") else x

    def _add(self, branch: str, x: Tensor, y: Tensor) -> Tensor:
        """The stream with a branch's output added, x + y; normalized is y (sandwich, reordered) or the sum (post)."""
        norm, out_norm = getattr(self, f"{branch}_norm"), getattr(self, f"{branch}_out_norm")
        match self.placement:
            case "sandwich":
                y = out_norm(y)
            case "reordered":
                y = norm(y)
        if self.branch_scale is not None:
            y = y * self.branch_scale[0 if branch == "attention" else -1].to(y.dtype)
        x = x + getattr(self, f"{branch}_dropout")(y)
        return norm(x) if self.placement == "post" else x


def _check_without(without: list[int], layer: LayerArgs, attention: Slot) -> None:
    require_layers("model.block.without_attention", without, layer.layers)
    holds = attention.get("value_embeddings", 0) + bool(attention.get("value_residual", False))
    if layer.layer_index in without and layer.layer_index < holds:
        raise ConfigError(
            f"model.block.without_attention: the attention of layer {layer.layer_index} holds values that later layers "
            "use; leave it in, or take fewer value_embeddings or no value_residual",
            key="model.block.without_attention",
        )


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x)): both read the same stream (GPT-J; PaLM, arXiv:2204.02311, section 2).

    `shared_norm: false` gives the MLP a norm of its own (GPT-NeoX, arXiv:2204.06745, section 2.1).
    """

    slot = "block"

    def __init__(
        self,
        layer: LayerArgs,
        *,
        attention: Annotated[Slot, "attention"] = "Attention",
        mlp: Annotated[Slot, "mlp"] = "GELU",
        shared_norm: bool = True,
    ) -> None:
        super().__init__()
        self.attention_norm = layer.build_norm()
        self.mlp_norm = None if shared_norm else layer.build_norm()
        self.attention = layer.build("attention", attention)
        self.mlp = layer.build("mlp", mlp)
        self.dropout = nn.Dropout(layer.dropout)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        n_BTD = self.attention_norm(x_BTD)
        m_BTD = n_BTD if self.mlp_norm is None else self.mlp_norm(x_BTD)
        return x_BTD + self.dropout(self.attention(n_BTD, context) + self.mlp(m_BTD))


class LatentAttentionBlock(nn.Module):
    """hlb-GPT's block: one matrix in, one matrix out, and between them attention and a gated MLP in one latent space.

    A GeGLU of width `expand` · D is cut in two: the last D are the values of one narrow attention head (width
    D / `qk_divisor`), the rest goes past it. Scores fall linearly with distance, by a slope that each layer learns
    (softplus of a scalar that starts at 1), so the block needs no other position (Balsam 2023, hlb-GPT,
    https://github.com/tysam-code/hlb-gpt). `heads` and `head_dim` of the model have no part in it.
    """

    slot = "block"
    beside = {"model": {"position": "NoPosition"}}  # noqa: RUF012 - read as a constant
    own_distance = True  # of the position component it uses what is added to the embeddings, and nothing else

    def __init__(
        self,
        dim: int,
        layer_index: int,
        dropout: float,
        norm: Slot,
        *,
        expand: int = 2,
        qk_divisor: int = 8,
        document_mask: bool = False,
    ) -> None:
        super().__init__()
        require_range("model.block", "at least 1", expand=expand, qk_divisor=qk_divisor)
        if dim % qk_divisor:
            raise ConfigError(
                f"model.block.qk_divisor: {qk_divisor} must divide the width {dim}; choose another",
                key="model.block.qk_divisor",
            )
        self.layer_index, self.dim, self.qk_dim, self.hidden = layer_index, dim, dim // qk_divisor, expand * dim
        self.score_width, self.scale = self.qk_dim, self.qk_dim**-0.5
        self.norm = build("norm", norm, dim=dim)
        self.expand = nn.Linear(dim, 2 * self.qk_dim + 2 * self.hidden, bias=False)
        self.widths = self.expand.weight.stacked = (self.qk_dim, self.qk_dim, self.hidden, self.hidden)
        self.project = nn.Linear(self.hidden, dim, bias=False)
        self.project.writes_residual = True
        self.distance = nn.Parameter(torch.ones(1))
        self.dropout, self.document_mask = nn.Dropout(dropout), document_mask

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        q, k, linear, gate = self.expand(self.norm(x_BTD)).split(self.widths, dim=-1)
        local, v = (linear * F.gelu(gate)).split((self.hidden - self.dim, self.dim), dim=-1)
        q, k, v = q[:, None], k[:, None], v[:, None]  # one head
        if context.cache is not None:
            k, v = context.cache.update(self.layer_index, k, v)
        view = context.view(documents=self.document_mask)
        y = attend(q, k, v, view, Scores(self.scale, slopes_H=F.softplus(self.distance)))
        return x_BTD + self.dropout(self.project(torch.cat((local, y[:, 0]), dim=-1)))

    def score_flops(self, length: int) -> float:
        """Training FLOPs of q·k and of weights·v, a token: 6 for each dimension of keys and values, for each key."""
        return 6.0 * (self.qk_dim + self.dim) * length
