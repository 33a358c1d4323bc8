"""Activations that are computed again in the backward pass and not kept from the forward pass (Chen et al. 2016,
arXiv:1604.06174): memory for time. The numbers are the same to the last bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]

_KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
"""What is kept where recomputing is *selective*: matrix products and attention, whose time would be paid again; norms,
rotations and activations are cheap."""


def recompute_blocks(blocks: Iterable[nn.Module], how: Recompute) -> None:
    """Let each block, while gradients are computed, keep what goes into it (*full*) and, if *selective*, what its
    products put out. In place; a block stays the same module, with the same names."""
    if how == "none":
        return
    options: dict[str, Any] = {}
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _KEPT)
    for block in blocks:
        block.forward = _Recomputed(block.forward, options)


class _Recomputed:
    def __init__(self, forward: Callable[..., Any], options: dict[str, Any]) -> None:
        self.forward, self.options = forward, options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **self.options, **kwargs)
