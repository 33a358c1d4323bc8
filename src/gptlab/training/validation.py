"""Validation while training: what held-out text costs, logged and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from gptlab.console import track
from gptlab.data import validation_batches
from gptlab.inference.scoring import LossResult, evaluate_loss, token_sizes
from gptlab.planning.formatting import format_seconds
from gptlab.run import Run
from gptlab.training.setup import Job, announce
from gptlab.training.tasks import task_results


def evaluate(job: Job, *, tokens: int | None) -> None:
    """Validate on the first `tokens` of each source (None: all), and log: per source where there are several, and over
    all of them."""
    with job.layout.whole(job.model) as model:
        _evaluate(job, model, tokens)


def _evaluate(job: Job, model: nn.Module, tokens: int | None) -> None:
    results, also = {}, job.config.eval.also
    for name, dataset in job.validation.items():
        batches = validation_batches(
            dataset,
            job.config.validation_length,
            min(job.config.sequences_per_step, job.micro_batch * job.world.size),
            tokens,
            job.world.rank,
            job.world.size,
        )
        results[name] = evaluate_loss(
            model,
            track(
                batches,
                "validation" if len(job.validation) == 1 else f"validation on {name}",
                total=dataset.targets(tokens),
                unit="tokens",
                size=lambda batch: batch.global_targets,
                shown=job.world.is_main,
            ),
            sizes=token_sizes(job.tokenizer, dataset),
            device=job.device,
            dtype=job.dtype,
            world=job.world,
            accuracy="accuracy" in also,
        )
    tokens = job.step * job.config.train.batch_tokens
    run = Run(job.folder, job.config, model, job.tokenizer, job.device, job.dtype, job.step)
    answers = task_results(run, job.config.eval, job.world)
    row = {"step": job.step, "tokens": tokens, **_validation_row(results, also), **answers}
    row["seconds"] = round(job.seconds, 4)
    job.evaluated = job.step
    job.note_validation(job.step, row["val/loss"])
    if job.metrics is not None:
        job.metrics.write([row])
        shown = [f"validation loss {row['val/loss']:.4f}"]
        shown += [f"{row[key]:.4f} {words}" for key, words in _SHOWN.items() if key in row]
        shown += [f"{value:.4f} {key.removeprefix('val/').replace('/', ' ')}" for key, value in answers.items()]
        announce(job, f"step {job.step}: {', '.join(shown)}")
        if job.reached:
            announce(
                job,
                f"reached the target of {job.config.eval.target:g} after {format_seconds(job.seconds)} of training, "
                f"{tokens:,} tokens",
            )


_SHOWN = {"val/bits_per_byte": "bits per byte", "val/perplexity": "perplexity", "val/accuracy": "accuracy"}


def _validation_row(results: Mapping[str, LossResult], also: Sequence[str]) -> dict[str, Any]:
    """What a validation found, over all sources and of each, by the names of metrics.jsonl."""
    whole = LossResult.sum(results.values())
    row: dict[str, Any] = {"val/loss": whole.loss}
    if whole.bits_per_byte is not None:
        row["val/bits_per_byte"] = whole.bits_per_byte
    if "perplexity" in also:
        row["val/perplexity"] = whole.perplexity
    if "accuracy" in also:
        row["val/accuracy"] = whole.accuracy
    if len(results) > 1:
        row |= {f"val/loss/{name}": result.loss for name, result in results.items()}
    return row
