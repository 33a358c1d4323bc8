"""Losses: `loss(model, batch)` → a sum over predicted tokens, how many there were, and further metrics.

Sums and not means, so that a global batch cut into micro-batches and spread over devices adds up to exactly the
mean over all its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -1
"""A target that is not to be predicted."""


@dataclass(frozen=True)
class TokenBatch:
    """A batch on its device: token ids, next-token targets (IGNORE: none), and document numbers, each (B, T) int64."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor


@dataclass(frozen=True)
class LossSum:
    """`sum`: scalar, fp32, in nats; `count`: predicted tokens; `metrics`: further sums by name, scalars."""

    sum: Tensor
    count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class CrossEntropy:
    """−log p(target), summed over tokens, in nats.

    `chunk` tokens go through head and softmax at a time, and their gradient is taken at once, so that logits of
    (B·T, V) never exist whole (the idea of Liger's fused loss, arXiv:2410.10989, section 3.2). auto: chunks of at
    most 2²⁵ logits on CPU, where fresh memory costs more than arithmetic; the whole batch elsewhere, where
    torch.compile fuses it. null: always the whole batch.
    """

    slot = "loss"

    def __init__(self, *, chunk: int | Literal["auto"] | None = "auto") -> None:
        self.chunk = chunk
        self._whole: Callable[[nn.Module, Tensor, Tensor], Tensor] = _head_loss

    def compile(self) -> None:
        """Fuse head and loss with torch.compile, where they see the whole batch."""
        self._whole = torch.compile(_head_loss)

    def uncompile(self) -> None:
        """Back to plain PyTorch."""
        self._whole = _head_loss

    def __call__(self, model: nn.Module, batch: TokenBatch) -> LossSum:
        """Raises nothing of its own; `model` is a `gptlab.model.GPT` or has its `forward` and `logits`."""
        hidden = model(batch.inputs, batch.documents)
        count = (batch.targets != IGNORE).sum()
        core = getattr(model, "module", model)  # logits live on the model itself, not on its DDP wrapper
        rows, targets = hidden.flatten(0, -2), batch.targets.flatten()
        chunk = self._chunk_rows(rows.shape[0], core.vocab_size, rows.device.type)
        if chunk is None:
            return LossSum(self._whole(core, rows, targets), count)
        parameters = [p for p in core.head.parameters() if p.requires_grad]
        return LossSum(_Chunked.apply(rows, targets, core.logits, chunk, *parameters), count)

    def _chunk_rows(self, rows: int, vocab_size: int, device: str) -> int | None:
        if self.chunk != "auto":
            return self.chunk
        if device != "cpu" or rows * vocab_size <= 2**25:
            return None
        return max(64, 2**25 // vocab_size)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")


def _head_loss(model: nn.Module, rows: Tensor, targets: Tensor) -> Tensor:
    return _cross_entropy(model.logits(rows), targets)


class _Chunked(torch.autograd.Function):
    """Cross-entropy of a head applied chunk by chunk; gradients are found in the forward pass and only scaled later."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        logits: Callable[[Tensor], Tensor],
        chunk: int,
        *parameters: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        needs_grad = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grads: list[Tensor | None] = [None] * len(parameters)
        for start in range(0, hidden.shape[0], chunk):
            piece = slice(start, start + chunk)
            if not needs_grad:
                total += _cross_entropy(logits(hidden[piece]), targets[piece])
                continue
            with torch.enable_grad():
                rows = hidden[piece].detach().requires_grad_()
                loss = _cross_entropy(logits(rows), targets[piece])
                grad_rows, *grad_parameters = torch.autograd.grad(loss, (rows, *parameters))
            total += loss.detach()
            grad_hidden[piece] = grad_rows
            for i, grad in enumerate(grad_parameters):
                grads[i] = grad if grads[i] is None else grads[i].add_(grad)
        if needs_grad:
            ctx.save_for_backward(grad_hidden, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *grads = ctx.saved_tensors
        return grad_hidden * grad, None, None, None, *(g * grad for g in grads)
