"""Training: one loop for every run; what varies is in the slots, and was built by `setup`.

The order of things at each step, said out loud: save, evaluate, stop, step, log. A batch and its dropout are functions
of (seed, step), so a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.config import RunConfig
from gptlab.console import waiting
from gptlab.data import micro_batches
from gptlab.data.permutation import hash64
from gptlab.errors import BusyError, DivergedError, GptlabError, option
from gptlab.hardware.allocator import keep_freed_memory
from gptlab.hardware.device import peak_flops, pick_device
from gptlab.hardware.memory import peak_memory
from gptlab.model.component import after_step, before_step, declared, training_flops
from gptlab.optim import set_learning_rate, show_loss
from gptlab.parallel import (
    check_layout,
    destroy_distributed,
    find_world,
    init_distributed,
    noticing_losses,
    restarts,
)
from gptlab.planning.formatting import format_bytes, format_seconds
from gptlab.record import runfolder
from gptlab.record.facts import write_facts
from gptlab.run import Run, load, save_weights
from gptlab.systems.display import TrainingDisplay
from gptlab.systems.signals import stop_signals
from gptlab.training.accumulation import accumulate, to_device
from gptlab.training.conclusion import gather_facts, write_views
from gptlab.training.samples import are_due, draw_samples
from gptlab.training.setup import Job, announce, build_job
from gptlab.training.validation import evaluate

_SPIKE_WINDOW = 50  # steps


def train(
    config: RunConfig, *, resume: bool = False, folder: str | Path | None = None, hooks: Sequence[Any] = ()
) -> Run:
    """Train what `config` describes and return the run, finished or cleanly interrupted.

    `folder`: the run's folder; by default runs/NAME-HASH-seedN. `resume` continues from the newest whole checkpoint
    there, starts where there is none, and extends a finished run whose config asks for more tokens; processes that
    torchrun has started anew do so unasked. `hooks`: functions
    that are given each row of metrics.jsonl, or objects with `write(row)`, `samples(step, texts)`, `close()`. Raises
    GptlabError for everything a user can mend: before any training where that can be known. Where `folder` is given
    and there, failed.json in it says what was raised, for a program that trains by a process of its own.
    """
    started = time.monotonic()
    world = find_world()
    device = pick_device(config.system.device, world.local_rank)
    check_layout(config, world)
    joined = init_distributed(world, device)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        resume = world.all_reduce_max(resume or restarts() > 0) > 0  # a machine that has just joined follows the others
        with noticing_losses(world), contextlib.ExitStack() as exit_stack:
            job = build_job(config, world, device, resume=resume, folder=folder, exit_stack=exit_stack, hooks=hooks)
            with stop_signals() as job.stop:
                loop(job)
            with waiting("drawing the curve, writing facts", shown=world.is_main):
                _conclude(job, time.monotonic() - started)
            world.barrier()
    except DivergedError:
        raise  # the loop has written down all that it knew
    except GptlabError as error:
        if folder is not None and world.is_main and not isinstance(error, BusyError):
            runfolder.note_error(Path(folder), error)
        raise
    finally:
        destroy_distributed(joined)
    if job.stop.signal == signal.SIGINT.name and hasattr(sys, "ps1"):
        raise KeyboardInterrupt  # a person at a prompt or in a notebook: what comes after this call is not to be run
    return load(job.folder, device=config.system.device)


def loop(job: Job) -> None:
    """Train until the last step or until told to stop: save, evaluate, stop, step, log."""
    config, total = job.config, job.config.total_steps
    pending: list[StepResult] = []
    flush_every = 1 if job.device.type == "cpu" else 10
    peak = peak_flops(job.device)
    display = TrainingDisplay(
        total,
        job.step,
        training_flops(job.layout.as_built(job.model), config.train.sequence_length),
        peak and peak * job.world.size,
    )
    first = job.step
    clock = time.monotonic()
    with display if job.world.is_main else contextlib.nullcontext():
        while True:
            done, stopping = job.step == total or job.reached, bool(job.stop.reason)
            evaluating = job.evaluated != job.step and (
                done or job.passed(config.eval.every) or (job.step == 0 and config.is_validated_at_start)
            )
            saving = job.step > first and (
                done
                or stopping
                or job.passed(config.checkpoint.every)
                or job.save_due
                or (evaluating and config.checkpoint.best)
            )
            sampling = are_due(job, done=done)
            before_step(job.model, job.step / total)
            if pending and (saving or evaluating or sampling):
                _flush(job, pending, display, clock)
            if saving:
                save(job)
            if evaluating:
                evaluate(job, tokens=config.eval.tokens)
            if job.reached and not done:  # this was the last step after all
                done, sampling = True, are_due(job, done=True)
                if not saving:
                    save(job)
                    saving = True
            if sampling:
                draw_samples(job)
            if saving:
                job.checkpoints.prune(job.best[0] if config.checkpoint.best and job.best else None)
            if done or stopping:
                break
            if not pending:
                clock = time.monotonic()
            pending.append(step(job))
            job.step, job.batches = pending[-1].step, pending[-1].batches
            if len(pending) == flush_every:
                _flush(job, pending, display, clock)
    if job.metrics is not None:
        job.metrics.close()
    if not done:
        announce(
            job, f"{job.stop.reason}: stopped after step {job.step} of {total}; continue with {option('resume', True)}"
        )
    elif weights := job.layout.full_state(job.model):
        with waiting("writing the weights", shown=job.world.is_main):
            save_weights(weights, job.folder / runfolder.WEIGHTS)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves to be logged; tensors stay on the device until then, so that nothing waits for them."""

    step: int  # batches of the run that are done
    batches: int  # of these, what the step took
    loss: Tensor  # this process's sum over the mean's divisor, nats
    metrics: dict[str, Tensor]
    gradient_norm: Tensor
    multiplier: float
    skipped: bool


def step(job: Job) -> StepResult:
    """One optimizer step on the whole global batch, of as many batches as the run's growth says."""
    config = job.config
    torch.manual_seed(hash64(config.seed.dropout, job.step, job.world.rank // job.layout.copies) >> 1)
    multiplier = job.schedule(job.step)
    set_learning_rate(job.optimizer, multiplier)
    count = min(job.growth(job.step), config.total_steps - job.step)
    length = config.train.sequence_length
    batches = [job.stream.batch(job.step + index, job.layout.data_rank, job.layout.data_size) for index in range(count)]
    done = accumulate(
        job.wrapped,
        job.loss,
        (to_device(piece, job.device) for batch in batches for piece in micro_batches(batch, job.micro_batch, length)),
        global_targets=sum(batch.global_targets for batch in batches),
        layout=job.layout,
        dtype=job.dtype,
        scaler=job.scaler,
        graphs=job.graphs,
    )
    job.scaler.unscale_(job.optimizer)
    norm = job.layout.clip(job.model, config.train.gradient_clip)
    skipped = config.train.bad_step == "skip" and _must_skip(job, done.loss, norm)
    if not skipped:
        show_loss(job.optimizer, done.loss, job.world.all_reduce)
        job.scaler.step(job.optimizer)
        if (observe := declared(job.growth, "observe")) is not None:  # a mean, so that all processes decide alike
            observe(job.world.all_reduce(norm.detach().clone()) / job.world.size)
    job.scaler.update()  # of a skipped step too: the next one unscales again
    if not skipped:
        for name, value in after_step(job.model, job.world.all_reduce).items():
            done.metrics[name] = value / job.world.size  # the log adds up what the processes say
    job.optimizer.zero_grad(set_to_none=True)
    return StepResult(job.step + count, count, done.loss, done.metrics, norm.detach(), multiplier, skipped)


def _must_skip(job: Job, loss: Tensor, norm: Tensor) -> bool:
    """Whether the step just computed must be skipped. Waits for the device."""
    return _divergence_reason(job, job.world.all_reduce(loss.clone()).item(), norm.item(), job.step + 1) != ""


def _flush(job: Job, results: list[StepResult], display: TrainingDisplay, clock: float) -> None:
    """Fetch what steps left on the device: one wait, one sum over processes. Writes rows, and stops at a bad step."""
    names = list(results[0].metrics)
    minutes = job.config.checkpoint.minutes
    due = minutes > 0 and time.monotonic() - job.saved_at > 60 * minutes
    asked = torch.tensor([float(job.stop.requested), float(due)], device=job.device)
    rows = [torch.stack([r.loss, *(r.metrics[name] for name in names)]) for r in results]
    values = job.world.all_reduce(torch.cat([asked, *rows])).tolist()
    norms = torch.stack([r.gradient_norm for r in results]).tolist()
    if values[0]:  # agreed by all, so that all stop after the same step
        job.stop.reason = job.stop.signal or "another process was stopped"
    job.save_due = bool(values[1])
    elapsed = time.monotonic() - clock
    width, logged, reason, total = 1 + len(names), [], "", job.config.total_steps
    batches = sum(result.batches for result in results)
    tokens_per_second = batches * job.config.train.batch_tokens / max(elapsed, 1e-9)
    for index, (result, norm) in enumerate(zip(results, norms, strict=True)):
        loss, *extra = values[2 + index * width : 2 + (index + 1) * width]
        job.seconds += elapsed * result.batches / batches
        row = {
            "step": result.step,
            "tokens": result.step * job.config.train.batch_tokens,
            "train/loss": loss,
            **{f"train/{name}": value for name, value in zip(names, extra, strict=True)},
            "gradient_norm": norm,
            "lr_multiplier": result.multiplier,
            "tokens_per_second": round(tokens_per_second, 1),
            "seconds": round(job.seconds, 4),
        }
        if job.config.train.growth is not None:
            row["batches"] = result.batches
        reason = "" if result.skipped else _divergence_reason(job, loss, norm, result.step)
        if result.skipped:
            row["skipped"] = True
        else:
            job.recent = [*job.recent, loss][-_SPIKE_WINDOW:]
        every = job.config.log.every
        if result.step // every > (result.step - result.batches) // every or result.step == total or reason:
            logged.append(row)
        if reason:
            break
    if job.metrics is not None:
        job.metrics.write(logged)
        display.update(results[-1].step, loss, tokens_per_second)
        if (line := display.log_line()) is not None:
            runfolder.log_line(job.folder, line)
    results.clear()
    if reason:
        saved = job.checkpoints.all()
        advice = (
            f"{saved[-1].name} is whole, {option('resume', True)} goes on from it"
            if saved
            else "there is no checkpoint to go back to"
        )
        error = DivergedError(f"{reason}; {advice}", step=result.step)
        if job.world.is_main:
            runfolder.log_line(job.folder, str(error))
            runfolder.write_failure(job.folder, runfolder.Failure(runfolder.DIVERGED, str(error), step=error.step))
        raise error


def _divergence_reason(job: Job, loss: float, norm: float, step: int) -> str:
    """Why this step must not count, or "". `norm` may be infinite under float16's scaler, which skips by itself."""
    at = f"step {step}"
    mend = "lower optimizer.lr, or set train.bad_step=skip"
    if not loss < float("inf"):
        return f"{at}: the loss is {loss}; {mend}"
    if not norm < float("inf") and not job.scaler.is_enabled():
        return f"{at}: the gradient is not finite; {mend}"
    limit = job.config.train.spike
    if limit is not None and len(job.recent) == _SPIKE_WINDOW and loss > statistics.median(job.recent) + limit:
        median = statistics.median(job.recent)
        return f"{at}: the loss jumped to {loss:.3f} from a median of {median:.3f} (train.spike: {limit}); {mend}"
    return ""


def save(job: Job) -> None:
    """Write a checkpoint of this moment."""
    if job.metrics is not None:
        job.metrics.sync()  # the log reaches at least as far as the checkpoint
    state = {
        "step": job.step,
        "tokens": job.step * job.config.train.batch_tokens,
        "seconds": job.seconds,
        "recent": job.recent,
        "scaler": job.scaler.state_dict(),
        "micro_batch": job.micro_batch,
        "world_size": job.world.size,
        "identity": job.identity,
    }
    if job.config.train.growth is not None:
        state["growth"] = {"batches": job.batches, "state": declared(job.growth, "state")}
    with waiting("saving a checkpoint", shown=job.world.is_main):
        path = job.checkpoints.save(job.step, job.model, job.optimizer, state)
    job.saved_at, job.save_due = time.monotonic(), False
    if job.world.is_main:
        runfolder.log_line(job.folder, f"saved {path.name}")


def _conclude(job: Job, seconds: float) -> None:
    """Pictures and tables of the numbers; of a finished run its facts too. `seconds`: how long this session took."""
    memory = job.world.all_reduce_max(peak_memory(job.device))
    if job.world.is_main:
        write_views(job.folder)
    if job.world.is_main and job.finished and not (job.folder / runfolder.FACTS).exists():
        facts = gather_facts(
            job.folder, job.config, job.layout.as_built(job.model), job.device, job.dtype, job.world, step=job.step
        )
        measured = replace(facts, seconds=job.seconds, wall_seconds=seconds, peak_memory_bytes=memory)
        write_facts(job.folder, measured)
        runfolder.log_line(job.folder, f"peak memory {format_bytes(memory)}, {format_seconds(job.seconds)} of training")
