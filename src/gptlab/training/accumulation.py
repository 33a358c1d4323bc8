"""Gradients of a global batch, micro-batch by micro-batch: for the loop, the contracts and the coordinate check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.data import Batch
from gptlab.hardware.compile import keep_gradients
from gptlab.hardware.precision import autocast
from gptlab.loss import LossSum, TokenBatch
from gptlab.parallel import Layout


@dataclass(frozen=True)
class Accumulated:
    """What forward and backward of a process's share of a batch leave; tensors stay on the device.

    Attributes:
        loss: this process's part of the mean loss over the global batch, nats a token, scalar float32.
        count: targets that this process predicted, scalar.
        metrics: this process's parts of the loss's further metrics, by name.
    """

    loss: Tensor
    count: Tensor
    metrics: dict[str, Tensor]


def accumulate(
    wrapped: nn.Module,
    loss: Any,
    micro_batches: Iterable[TokenBatch],
    *,
    global_targets: int,
    layout: Layout,
    dtype: torch.dtype,
    scaler: torch.amp.GradScaler | None = None,
    graphs: bool = False,
) -> Accumulated:
    """Add to the parameters' gradients that of the mean loss over the global batch.

    Args:
        wrapped: what `layout.wrap` gave.
        loss: the loss component.
        micro_batches: this process's share of the batch, on the device, in pieces.
        global_targets: predicted tokens of the whole global batch, over all processes: what sums are divided by.
        layout: exchanges gradients between processes, once, with the last piece.
        dtype: precision of the matrix products.
        scaler: of gradients in float16; None: no scaling.
        graphs: whether the passes are CUDA graphs, whose results the next one overwrites.
    """
    total = torch.zeros((), device=layout.device)
    count = torch.zeros((), dtype=torch.int64, device=layout.device)
    metrics: dict[str, Tensor] = {}
    kept: set[int] = set()
    for piece, last in _with_last(micro_batches):
        with layout.backward_sync(wrapped, last), autocast(layout.device, dtype):
            out: LossSum = loss(wrapped, layout.part(piece))
            share = out.sum * (layout.loss_scale / global_targets)
            (share if scaler is None else scaler.scale(share)).backward()
        if graphs:
            keep_gradients(wrapped, kept)
        total += out.sum.detach().float() / (global_targets * layout.copies)
        count += out.count
        for name, value in out.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value.detach() / (global_targets * layout.copies)
    return Accumulated(total, count, metrics)


def to_device(batch: Batch, device: torch.device) -> TokenBatch:
    """A batch of arrays as tensors on `device`; to CUDA without waiting, so that the copy overlaps with work queued."""

    def move(array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, torch.int64, non_blocking=True)

    extra = {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.extra.items()}
    return TokenBatch(move(batch.inputs), move(batch.targets), move(batch.documents), extra)


def _with_last(items: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, bool]]:
    """Each item, and whether it is the last."""
    waiting: TokenBatch | None = None
    for item in items:
        if waiting is not None:
            yield waiting, False
        waiting = item
    if waiting is not None:
        yield waiting, True
