"""Teacher-forced top-k accuracy: how often the token that comes next is among the k likeliest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from gptlab.data import Batch
from gptlab.hardware.precision import autocast
from gptlab.inference.scoring import IGNORE

KS = (1, 5, 10)
"""The k that are measured."""

_CHUNK_LOGITS = 2**24


@torch.no_grad()
def window_hits(
    model: nn.Module, batches: Iterable[Batch], *, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    """For each batch the counts of each of its rows, (B, 1 + len(KS)): targets, then those within each k.

    Every target is predicted from the true tokens before it. A token as likely as the target counts as likelier. The
    model is left in the mode it was in once all batches are taken.
    """
    training = model.training
    model.eval()
    try:
        for batch in batches:
            arrays = (batch.inputs, batch.targets, batch.documents)
            inputs, targets, documents = (torch.from_numpy(array).to(device, torch.int64) for array in arrays)
            with autocast(device, dtype):
                hidden = model(inputs, documents).flatten(0, -2)
                ranks = _ranks(model, hidden, targets.flatten()).view_as(targets)
            counted = targets != IGNORE
            columns = [counted, *(counted & (ranks < k) for k in KS)]
            yield torch.stack([column.sum(-1) for column in columns], dim=-1)
    finally:
        model.train(training)


def _ranks(model: nn.Module, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """How many tokens are at least as likely as the target, (N,); 0 for the likeliest."""
    rows = max(64, _CHUNK_LOGITS // model.vocab_size)
    pieces = []
    for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
        logits = model.logits(hidden).float()
        own = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1))
        pieces.append((logits >= own).sum(-1) - 1)
    return torch.cat(pieces)
