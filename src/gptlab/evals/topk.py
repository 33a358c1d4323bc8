"""Teacher-forced top-k accuracy: how often the token that comes next is among the k likeliest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.data import IGNORE, Batch
from gptlab.evals.benchmark import Benchmark, Column, Evaluation, Options
from gptlab.evals.validation import measure_windows, ratio_error, validation_sets, window_length, window_settings
from gptlab.hardware.precision import autocast
from gptlab.run import Run

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


def evaluate_topk(run: Run, options: Options) -> Evaluation:
    """How often the next token of validation text is among the k likeliest, given the true tokens before it."""
    sets = validation_sets(run.folder, run.config.data, run.tokenizer, options.data)

    def hits(batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
        return window_hits(run.model, batches, device=run.device, dtype=run.dtype)

    length = window_length(run, options)
    found = [measure_windows(run, one, "top-k", name, length, options.limit, hits) for name, one in sets.items()]
    rows = torch.cat(found)
    results: dict[str, Any] = {"tokens": int(rows[:, 0].sum()), "windows": len(rows)}
    errors: dict[str, float | None] = {}
    for number, k in enumerate(KS, start=1):
        results[f"top_{k}"] = float(rows[:, number].sum() / rows[:, 0].sum())
        errors[f"top_{k}"] = ratio_error(rows[:, number], rows[:, 0])
    return Evaluation("topk", results, errors, window_settings(sets, length))


BENCHMARK = Benchmark("topk", evaluate_topk, tuple(Column(f"top-{k}", f"top_{k}") for k in KS), reads_data=True)
