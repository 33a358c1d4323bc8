"""A loss of your own: cross-entropy with a little label smoothing. Edit from here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from gptlab.loss import IGNORE, LossSum, TokenBatch


class MyIdea:
    """A *sum* over tokens and their count, so that micro-batches and processes add up to the whole batch."""

    slot = "loss"
    off = {"smoothing": 0.0}  # noqa: RUF012 - how the feature is switched off …
    baseline = "CrossEntropy"  # … and what it then is, bit for bit

    def __init__(self, *, smoothing: float = 0.05) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: TokenBatch) -> LossSum:
        """The loss of a batch, in nats. Further sums may go into LossSum.metrics, by name."""
        hidden = model(batch.inputs, batch.documents)
        core = getattr(model, "module", model)  # the head is the model's own, not its wrapper's for several processes
        logits, targets = core.logits(hidden.flatten(0, -2)).float(), batch.targets.flatten()
        total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=self.smoothing)
        return LossSum(total, (targets != IGNORE).sum())
