"""How much arithmetic a model asks for."""

from __future__ import annotations

from torch import nn


def flops_per_token(model: nn.Module, length: int) -> float:
    """Training FLOPs a token: 6 a weight that multiplies, plus what attention's scores cost over `length` keys.

    Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B); like theirs, it gives causality no discount. A module
    may say more exactly: `active_weights()`, the weights that one token meets (a mixture of experts), and
    `score_flops(length)`; attention that says nothing, but has heads, counts 12·H·C·T.
    """
    scores = 0.0
    for module in model.modules():
        if hasattr(module, "score_flops"):
            scores += module.score_flops(length)
        elif hasattr(module, "heads") and hasattr(module, "layer_index"):
            scores += 12.0 * module.heads * module.head_dim * length
    return 6.0 * _active_weights(model) + scores


def training_flops(model: nn.Module, length: int) -> float:
    """What a model says of its own training FLOPs a token; 0 where it says nothing."""
    return float(model.flops_per_token(length)) if hasattr(model, "flops_per_token") else 0.0


def _active_weights(module: nn.Module) -> float:
    if hasattr(module, "active_weights"):
        return float(module.active_weights())
    own = module.weight.numel() if isinstance(module, nn.Linear) else 0
    return own + sum(_active_weights(child) for child in module.children())
