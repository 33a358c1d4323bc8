"""Losses: `loss(model, batch)` → a sum over predicted tokens, how many there were, and further metrics.

Sums and not means, so that a global batch cut into micro-batches and spread over devices adds up to exactly the
mean over all its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.config import require_range
from gptlab.errors import ConfigError
from gptlab.model.component import declared

IGNORE = -1
"""A target that is not to be predicted."""


@dataclass(frozen=True)
class TokenBatch:
    """A batch on its device: token ids, next-token targets (IGNORE: none), and document numbers, each (B, T) int64.

    `extra`: what a token stream of somebody's own gives beside them, by name, each (B, …).
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossSum:
    """`sum`: scalar, fp32, in nats; `count`: predicted tokens; `metrics`: further sums by name, scalars."""

    sum: Tensor
    count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _LossSpec:
    """What is made of the logits: the weight of each token ahead, how smooth the targets, how heavy the z-loss, and
    whether the parts are told beside the sum."""

    weights: tuple[float, ...] = (1.0,)
    smoothing: float = 0.0
    z: float = 0.0
    parts: bool = False


class CrossEntropy:
    """−log p(target), summed over tokens, in nats.

    `label_smoothing` ε mixes the targets with ε of the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567,
    section 7). `z_loss` adds z_loss·(log Σ exp logits)², which keeps logits from drifting (PaLM, arXiv:2204.02311,
    section 5, with 1e-4). With either the metric `cross_entropy` is the plain one; validation always is.

    `chunk` tokens go through head and softmax at a time, and their gradient is taken at once, so that logits of
    (B·T, V) never exist whole (the idea of Liger's fused loss, arXiv:2410.10989, section 3.2; benchmarks/loss.py).
    auto: chunks of at most 2²⁵ logits on CPU, where fresh memory costs more than arithmetic; the whole batch
    elsewhere, where torch.compile fuses it. null: always the whole batch.
    """

    slot = "loss"

    def __init__(
        self,
        *,
        chunk: int | Literal["auto"] | None = "auto",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        require_range("loss", "at least 1", chunk=None if isinstance(chunk, str) else chunk)
        require_range("loss", "at least 0 and below 1", label_smoothing=label_smoothing)
        require_range("loss", "at least 0", z_loss=z_loss)
        self.chunk, self.spec = chunk, _LossSpec((1.0,), label_smoothing, z_loss, bool(label_smoothing or z_loss))
        self._whole: Callable[[nn.Module, Tensor, Tensor, _LossSpec], Tensor] = _head_loss

    def compile(self, mode: str | None = None) -> None:
        """Fuse head and loss with torch.compile, in a mode of its, where they see the whole batch."""
        self._whole = torch.compile(_head_loss, mode=mode)

    def uncompile(self) -> None:
        """Back to plain PyTorch."""
        self._whole = _head_loss

    def __call__(self, model: nn.Module, batch: TokenBatch) -> LossSum:
        """`model` is a `gptlab.model.GPT`, as a layout wraps it, or has its `forward` and `logits`.

        Raises ConfigError for a model with
        blocks for tokens further ahead, which this loss would leave untrained."""
        if len(declared(model, "ahead")):
            raise ConfigError(
                "loss: a model with `ahead` needs the loss MultiToken; use it, or set model.ahead to 0", key="loss"
            )
        hidden = model(batch.inputs, batch.documents)
        terms = self._terms(model, hidden.flatten(0, -2), batch.targets.flatten()[:, None], self.spec)
        count = (batch.targets != IGNORE).sum()
        if not self.spec.parts:
            return LossSum(terms[0], count)
        return LossSum(terms[0], count, {"cross_entropy": terms[1], "z_loss": terms[-1]})

    def _terms(self, model: nn.Module, rows: Tensor, targets_NA: Tensor, spec: _LossSpec) -> Tensor:
        """The loss, then its parts: see `_head_loss`."""
        chunk = self._chunk_rows(rows.shape[0], model.vocab_size, rows.device.type)
        if chunk is None:
            return self._whole(model, rows, targets_NA, spec)
        parameters = [p for p in model.head.parameters() if p.requires_grad]
        return _Chunked.apply(rows, targets_NA, model, spec, chunk, *parameters)

    def _chunk_rows(self, rows: int, vocab_size: int, device: str) -> int | None:
        if self.chunk != "auto":
            return self.chunk
        if device != "cpu" or rows * vocab_size <= 2**25:
            return None
        return max(64, 2**25 // vocab_size)


class MultiToken(CrossEntropy):
    """Cross-entropy of the next tokens and of those after them: Σ weights[i] · −log p(target i + 1 ahead).

    A model with `ahead` blocks predicts each from hidden states of their own (Gloeckle et al. 2024, arXiv:2404.19737,
    eq. 2): then there is one weight more than blocks. Without, the same logits are held against all the targets (as in
    the modded-nanogpt records). What lies in another document, or beyond the sequence, is no target. The metrics
    `cross_entropy`, `cross_entropy_2`, … are the parts, unweighted. Generation and validation use the next token alone.
    """

    slot = "loss"

    def __init__(
        self,
        *,
        weights: list[float] = [1.0, 0.5],  # noqa: B006 - copied
        chunk: int | Literal["auto"] | None = "auto",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(chunk=chunk, label_smoothing=label_smoothing, z_loss=z_loss)
        if not weights or min(weights) < 0 or max(weights) == 0:
            raise ConfigError(
                f"loss.weights: {weights} must be one number or more, each 0 or more and one above 0",
                key="loss.weights",
            )
        self.spec = _LossSpec(tuple(weights), label_smoothing, z_loss, parts=True)

    def __call__(self, model: nn.Module, batch: TokenBatch) -> LossSum:
        """Raises ConfigError where weights and the model's blocks do not fit together."""
        weights, blocks = self.spec.weights, len(declared(model, "ahead"))
        targets = torch.stack([_targets_ahead(batch, i) for i in range(len(weights))], dim=-1).flatten(0, 1)  # (N, A)
        if blocks == 0:
            terms = self._terms(model, model(batch.inputs, batch.documents).flatten(0, 1), targets, self.spec)
        elif blocks + 1 == len(weights):
            hidden = model(batch.inputs, batch.documents, ahead=True).flatten(1, 2)  # (A, N, D)
            parts = [
                self._terms(model, hidden[i], targets[:, i : i + 1], replace(self.spec, weights=(weight,)))
                for i, weight in enumerate(weights)
            ]
            total, z = sum(part[0] for part in parts), sum(part[-1] for part in parts)
            terms = torch.stack([total, *(part[1] for part in parts), z])
        else:
            raise ConfigError(
                f"loss.weights: {len(weights)} weights for a model of {blocks} `ahead` blocks; "
                f"give {blocks + 1}, or set model.ahead to {len(weights) - 1} (or 0: the same logits for all)",
                key="loss.weights",
            )
        names = ["cross_entropy", *(f"cross_entropy_{i + 2}" for i in range(len(weights) - 1)), "z_loss"]
        parts = dict(zip(names, terms[1:].detach(), strict=True))
        return LossSum(terms[0], (batch.targets != IGNORE).sum(), parts)


def _targets_ahead(batch: TokenBatch, further: int) -> Tensor:
    """Targets that lie `further` tokens beyond the next one: (B, T), IGNORE where that is no token of the document."""
    if further == 0:
        return batch.targets
    moved = torch.full_like(batch.targets, IGNORE)
    same = batch.documents[:, further:] == batch.documents[:, :-further]
    moved[:, :-further] = torch.where(same, batch.targets[:, further:], IGNORE)
    return moved


def _head_loss(model: nn.Module, rows: Tensor, targets_NA: Tensor, spec: _LossSpec) -> Tensor:
    """Hidden states (N, D) and targets (N, A) → the loss, (1,); with parts also the cross-entropy of each of the A
    targets, and the z-loss. Sums over tokens, float32."""
    logits = model.logits(rows).float()
    if not spec.parts:
        return F.cross_entropy(logits, targets_NA[:, 0], ignore_index=IGNORE, reduction="sum")[None]
    total = logits.new_zeros(())
    terms = []
    for weight, targets in zip(spec.weights, targets_NA.unbind(1), strict=True):
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        terms.append(loss.detach())
        if spec.smoothing:  # −Σ_v log p(v) / V is lse − mean(logits)
            uniform = (logits.logsumexp(-1) - logits.mean(-1)).masked_fill(targets == IGNORE, 0.0).sum()
            loss = (1 - spec.smoothing) * loss + spec.smoothing * uniform
        total = total + weight * loss
    z = logits.new_zeros(())
    if spec.z:
        z = spec.z * logits.logsumexp(-1).square().masked_fill(targets_NA[:, 0] == IGNORE, 0.0).sum()
    return torch.stack([total + z, *terms, z.detach()])


class _Chunked(torch.autograd.Function):
    """`_head_loss` chunk by chunk; gradients of the loss are found in the forward pass and only scaled later."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets_NA: Tensor,
        model: nn.Module,
        spec: _LossSpec,
        chunk: int,
        *parameters: Tensor,
    ) -> Tensor:
        sums: Tensor | None = None
        needs_grad = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grads: list[Tensor | None] = [None] * len(parameters)
        for start in range(0, hidden.shape[0], chunk):
            piece = slice(start, start + chunk)
            if needs_grad:
                with torch.enable_grad():
                    rows = hidden[piece].detach().requires_grad_()
                    terms = _head_loss(model, rows, targets_NA[piece], spec)
                    grad_rows, *grad_parameters = torch.autograd.grad(terms[0], (rows, *parameters))
                grad_hidden[piece] = grad_rows
                for i, grad in enumerate(grad_parameters):
                    grads[i] = grad if grads[i] is None else grads[i].add_(grad)
            else:
                terms = _head_loss(model, hidden[piece], targets_NA[piece], spec)
            sums = terms.detach() if sums is None else sums + terms.detach()
        if needs_grad:
            ctx.save_for_backward(grad_hidden, *grads)
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *grads = ctx.saved_tensors
        return grad_hidden * grad[0], None, None, None, None, *(g * grad[0] for g in grads)
