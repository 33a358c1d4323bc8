"""Texts that a model writes while it is trained."""

from __future__ import annotations

import textwrap

from torch import nn

from gptlab.console import waiting
from gptlab.inference.generate import Sampling, decoding_copy, generate
from gptlab.training.setup import Job, announce


def are_due(job: Job, *, done: bool) -> bool:
    """Whether samples are to be drawn now: each `log.samples.every` steps, and after the last one."""
    every = job.config.log.samples.every
    return every > 0 and job.step > 0 and job.sampled != job.step and (done or job.passed(every))


def draw_samples(job: Job) -> None:
    """Continue the prompts of `log.samples`, and show and keep what comes of them. The main process does it alone.

    All draws are of the run's own seed, so that two texts differ by the model. The draw has a generator of its own, and
    the model that draws is a copy (`decoding_copy`): training goes on as if nothing had been drawn.
    """
    job.sampled = job.step
    with job.layout.whole(job.model) as model:
        if job.metrics is not None:
            _draw(job, model)


def _draw(job: Job, model: nn.Module) -> None:
    assert job.metrics is not None
    asked = job.config.log.samples
    sampling = Sampling(asked.tokens, temperature=asked.temperature, seed=job.config.seed.data)
    tokenizer = job.tokenizer
    prompts = [[tokenizer.end_of_text, *tokenizer.encode(prompt)] for prompt in asked.prompts]
    with waiting("drawing samples"):
        twin, training = decoding_copy(model, job.device, job.dtype), model.training
        rows = generate(twin, prompts, sampling, stop_ids=tokenizer.stop_ids, device=job.device)
        model.train(training)
    texts = {
        prompt: tokenizer.decode_continuation(row, begins=not prompt)
        for prompt, row in zip(asked.prompts, rows, strict=True)
    }
    job.metrics.write_samples(job.step, texts)
    shown = "\n".join(textwrap.indent(prompt + text, "  ", lambda line: True) for prompt, text in texts.items())
    announce(job, f"step {job.step}, what the model writes:\n{shown}")
