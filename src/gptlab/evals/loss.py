"""Loss, perplexity and bits per byte on validation text, in windows as in training's own validation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from gptlab.data import Batch, TokenDataset
from gptlab.errors import GptlabError, option
from gptlab.evals.benchmark import Benchmark, Column, Evaluation, Options
from gptlab.evals.validation import measure_windows, ratio_error, validation_sets, window_length, window_settings
from gptlab.inference.scoring import LossResult, token_sizes, window_sums
from gptlab.run import Run


def evaluate_loss(run: Run, options: Options) -> Evaluation:
    """Loss, perplexity and bits per byte on validation text, in windows as in training's own validation."""
    sets = validation_sets(run.folder, run.config.data, run.tokenizer, options.data)
    length = window_length(run, options)

    def measure(name: str, dataset: TokenDataset) -> torch.Tensor:
        sizes = token_sizes(run.tokenizer, dataset)

        def sums(batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
            return window_sums(run.model, batches, sizes=sizes, device=run.device, dtype=run.dtype)

        return measure_windows(run, dataset, "loss", name, length, options.limit, sums)

    rows = {name: measure(name, dataset) for name, dataset in sets.items()}
    every = torch.cat(list(rows.values()))
    results, errors = _loss_numbers(every)
    if len(sets) > 1:
        results["sources"] = {name: _loss_numbers(found)[0] for name, found in rows.items()}
    return Evaluation("loss", results, errors, window_settings(sets, length))


def _loss_numbers(rows: torch.Tensor) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Numbers and standard errors from the sums of windows, (windows, 4): a loss is a ratio of sums over windows."""
    nats, tokens, text_nats, size = rows.sum(0).tolist()
    total = LossResult(nats, round(tokens), text_nats, round(size))
    results: dict[str, Any] = {
        "loss": total.loss,
        "perplexity": total.perplexity,
        "bits_per_byte": total.bits_per_byte,
        "tokens": total.tokens,
        "bytes": total.bytes,
        "windows": len(rows),
    }
    if not math.isfinite(total.loss):
        raise GptlabError(
            f"the loss is {total.loss}: the weights are not finite; evaluate an earlier {option('checkpoint')}"
        )
    loss_error = ratio_error(rows[:, 0], rows[:, 1])
    errors = {"loss": loss_error, "perplexity": None if loss_error is None else total.perplexity * loss_error}
    byte_error = ratio_error(rows[:, 2], rows[:, 3]) if total.bytes else None
    errors["bits_per_byte"] = None if byte_error is None else byte_error / math.log(2)
    return results, errors


BENCHMARK = Benchmark(
    "loss",
    evaluate_loss,
    (Column("loss", "loss"), Column("perplexity", "perplexity", digits=2), Column("bits/byte", "bits_per_byte")),
    reads_data=True,
)
