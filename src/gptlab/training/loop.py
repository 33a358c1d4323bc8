"""Training: build → loop → step. One loop for every run; what varies is in the slots.

The order of things at each step, said out loud: save, evaluate, stop, step, log. A batch and its dropout are functions
of (seed, step), so a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.config import RunConfig, build, config_hash, hashed_values, run_name
from gptlab.console import say
from gptlab.data import Batch, BatchStream, TokenDataset, micro_batches, open_splits, validation_batches
from gptlab.data.permutation import hash64
from gptlab.errors import BusyError, CheckpointError, ConfigError, DivergedError, GptlabError
from gptlab.hardware.allocator import keep_memory
from gptlab.hardware.compile import try_compile
from gptlab.hardware.device import describe, peak_flops, pick_device
from gptlab.hardware.memory import largest_micro_batch, peak_memory
from gptlab.hardware.precision import autocast, pick_dtype
from gptlab.inference.scoring import evaluate_loss
from gptlab.loss import LossSum, TokenBatch
from gptlab.model import build_model
from gptlab.model.component import after_step, before_step, training_flops
from gptlab.model.smoke_test import rehearse
from gptlab.optim import set_learning_rate
from gptlab.parallel.world import World, connect, disconnect, find_world, gradient_sync, replicate
from gptlab.record import runfolder
from gptlab.record.facts import write_facts
from gptlab.record.metrics import read_metrics
from gptlab.run import Run, load, save_weights, start_from
from gptlab.systems.checkpoint import Checkpoints, checked_state, load_tensors
from gptlab.systems.display import TrainingDisplay
from gptlab.systems.metrics import MetricsLog, require_sinks
from gptlab.systems.signals import StopRequest, stop_signals
from gptlab.tokenizer import Tokenizer
from gptlab.training.conclusion import gather_facts, write_views

_SPIKE_WINDOW = 50


def train(config: RunConfig, *, resume: bool = False, folder: str | Path | None = None) -> Run:
    """Train what `config` describes and return the run, finished or cleanly interrupted.

    `folder`: the run's folder; by default runs/NAME-HASH-seedN. `resume` continues from the newest whole checkpoint
    there, starts where there is none, and extends a finished run whose config asks for more tokens. Raises
    GptlabError for everything a user can mend: before any training where that can be known. Where `folder` is given,
    failed.json in it says what was raised, for a program that trains by a process of its own.
    """
    started = time.monotonic()
    world = find_world()
    device = pick_device(config.system.device, world.local_rank)
    joined = connect(world, device)
    if device.type == "cpu":
        keep_memory()
    try:
        with contextlib.ExitStack() as held:
            job = build_job(config, world, device, resume=resume, folder=folder, held=held)
            with stop_signals() as job.stop:
                loop(job)
            _conclude(job, time.monotonic() - started)
            world.barrier()
    except DivergedError:
        raise  # the loop has written down all that it knew
    except GptlabError as error:
        if folder is not None and world.is_main and not isinstance(error, BusyError):
            failure = runfolder.Failure(type(error).__name__, str(error), key=getattr(error, "key", None))
            runfolder.write_failure(Path(folder), failure)
        raise
    finally:
        disconnect(joined)
    return load(job.folder, device=config.system.device)


@dataclass
class Job:
    """Everything that the loop works on."""

    config: RunConfig
    folder: Path
    world: World
    device: torch.device
    dtype: torch.dtype
    model: nn.Module  # the model itself
    replica: nn.Module  # what is called: the model, or its wrapper for several processes
    loss: Any
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    stream: BatchStream
    validation: dict[str, TokenDataset]
    tokenizer: Tokenizer
    checkpoints: Checkpoints
    metrics: MetricsLog | None  # the main process's
    micro_batch: int
    identity: dict[str, Any]  # the hashed values of the config, but for its length
    step: int = 0
    seconds: float = 0.0
    best: tuple[int, float] | None = None  # step and validation loss
    recent: list[float] = field(default_factory=list)  # the last losses, to know a spike by
    evaluated: int = 0  # the last step that was validated
    stop: StopRequest = field(default_factory=StopRequest)


# ---------------------------------------------------------------- build


def build_job(
    config: RunConfig,
    world: World,
    device: torch.device,
    *,
    resume: bool = False,
    folder: str | Path | None = None,
    held: contextlib.ExitStack | None = None,
) -> Job:
    """Check everything, build everything, and only then write the first file. `held` keeps the folder's lock."""
    if config.system.threads is not None:
        torch.set_num_threads(config.system.threads)
    dtype = pick_dtype(config.train.dtype, device)
    require_sinks(tensorboard=config.log.tensorboard, wandb=config.log.wandb)
    tokenizer, train_sets, validation = open_splits(config.data)
    for dataset in validation.values():  # too little of it must be known now, not after the last step
        next(validation_batches(dataset, config.train.sequence_length, 1, config.eval.tokens))
    prints = {name: dataset.fingerprint for name, dataset in train_sets.items()}
    folder = Path(folder) if folder is not None else Path("runs") / run_name(config, prints)
    world.require_share(config.sequences_per_step, config.train.sequence_length)
    if held is not None and world.is_main:
        held.enter_context(runfolder.training_lock(folder))
    identity = hashed_values(config, prints) | {"seed": config.seed.model_dump()}
    identity["train"].pop("tokens")
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep, world=world)
    newest, state = _where_to_go_on(config, folder, checkpoints, identity, resume)
    weights = {name: dataset.tokens for name, dataset in train_sets.items()}
    stream = BatchStream(
        list(train_sets.items()),
        build("mix", config.data.mix or "Weights", sources=weights),
        sequence_length=config.train.sequence_length,
        sequences_per_step=config.sequences_per_step,
        seed=config.seed.data,
        total_steps=config.total_steps,
        epochs=config.data.epochs,
    )
    vocab_size = next(iter(train_sets.values())).vocab_size
    assert vocab_size is not None
    model = build_model(config, vocab_size, device=device)
    if newest is None:
        start_from(model, tokenizer)
    replica = replicate(model, world, device)
    optimizer = build("optimizer", config.optimizer, named_parameters=list(model.named_parameters()))
    job = Job(
        config=config,
        folder=folder,
        world=world,
        device=device,
        dtype=dtype,
        model=model,
        replica=replica,
        loss=build("loss", config.loss),
        optimizer=optimizer,
        schedule=build("schedule", config.schedule, total_steps=config.total_steps),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        stream=stream,
        validation=validation,
        tokenizer=tokenizer,
        checkpoints=checkpoints,
        metrics=None,
        micro_batch=0,
        identity=identity,
    )
    rehearse(model, job.loss, _to_device(stream.batch(0).rows(0, 1), device))
    job.micro_batch = _pick_micro_batch(job, state)
    if config.system.compile is True or (config.system.compile == "auto" and device.type == "cuda"):
        try_compile(model, job.loss, lambda: _forward_backward(job, job.micro_batch))
    resume_step = None
    if newest is not None:
        load_tensors(newest, model, optimizer, world)
        resume_step = job.step = state["step"]
        job.seconds, job.recent = state["seconds"], state["recent"]
        job.scaler.load_state_dict(state["scaler"])
    if world.is_main:
        _open_folder(job, prints, resume_step)
    job.best, job.evaluated = world.agree((job.best, job.evaluated))
    return job


def _where_to_go_on(
    config: RunConfig, folder: Path, checkpoints: Checkpoints, identity: dict[str, Any], resume: bool
) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume from and what it says of itself; None and nothing for a run that begins."""
    if not resume:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} exists already; add --resume to continue it, or change --set name=NAME")
        return None, {}
    newest = checkpoints.newest_whole()
    if newest is None and (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has weights and no checkpoint to resume from; start a run with --set model.init_from={folder}"
        )
    return newest, checked_state(newest, identity, config) if newest is not None else {}


def _pick_micro_batch(job: Job, state: dict[str, Any]) -> int:
    """Sequences at once. A resumed run keeps its own, because another split of the sum rounds differently."""
    config, rows = job.config, job.config.sequences_per_step // job.world.size
    if config.system.micro_batch != "auto":
        return min(config.system.micro_batch, rows)
    if state.get("world_size") == job.world.size:
        return int(state["micro_batch"])

    found = largest_micro_batch(lambda n: _forward_backward(job, n), rows, job.device)
    return job.world.minimum(found)


def _forward_backward(job: Job, rows: int) -> None:
    """One micro-batch without a step: what it costs in memory, and what compiles the model."""
    with autocast(job.device, job.dtype):
        out = job.loss(job.model, _to_device(job.stream.batch(0).rows(0, rows), job.device))
    out.sum.backward()
    job.model.zero_grad(set_to_none=True)


def _open_folder(job: Job, prints: dict[str, str], resume_step: int | None) -> None:
    """Make the run folder (or go on in it)."""
    job.folder.mkdir(parents=True, exist_ok=True)
    session = runfolder.session_record(
        config_hash(job.config, prints), job.config, describe(job.device), job.world.size
    )
    if job.step < job.config.total_steps or runfolder.state(job.folder) is not runfolder.State.FINISHED:
        runfolder.write_run_folder(job.folder, job.config, session)
    job.tokenizer.save(job.folder / "tokenizer")
    log = job.config.log
    job.metrics = MetricsLog(
        job.folder, resume_step=resume_step, tensorboard=log.tensorboard, wandb=log.wandb, project=log.wandb_project
    )
    for row in read_metrics(job.metrics.path):
        if (value := row.get("val/loss")) is not None:
            job.evaluated = row["step"]
            job.best = min(job.best or (row["step"], value), (row["step"], value), key=lambda pair: pair[1])
    count = sum(p.numel() for p in job.model.parameters())
    _say(
        job,
        f"{job.folder}: {count:,} parameters on {job.device} in {str(job.dtype).removeprefix('torch.')}, "
        f"{job.config.total_steps} steps of {job.config.train.batch_tokens} tokens, {job.micro_batch} sequences at once"
        + (f", from step {resume_step}" if resume_step else ""),
    )


# ---------------------------------------------------------------- loop


def loop(job: Job) -> None:
    """Train until the last step or until told to stop: save, evaluate, stop, step, log."""
    config, total = job.config, job.config.total_steps
    pending: list[StepResult] = []
    flush_every = 1 if job.device.type == "cpu" else 10
    peak = peak_flops(job.device)
    display = TrainingDisplay(
        total, job.step, training_flops(job.model, config.train.sequence_length), peak and peak * job.world.size
    )
    first = job.step
    clock = time.monotonic()
    with display if job.world.is_main else contextlib.nullcontext():
        while True:
            done, stopping = job.step == total, bool(job.stop.reason)
            evaluating = job.evaluated != job.step and (done or _is_multiple(job.step, config.eval.every))
            saving = job.step > first and (
                done
                or stopping
                or _is_multiple(job.step, config.checkpoint.every)
                or (evaluating and config.checkpoint.best)
            )
            before_step(job.model, job.step / total)
            if pending and (saving or evaluating):
                _flush(job, pending, display, clock)
            if saving:
                save(job)
            if evaluating:
                evaluate(job, display)
            if saving:
                job.checkpoints.prune(job.best[0] if config.checkpoint.best and job.best else None)
            if done or stopping:
                break
            if not pending:
                clock = time.monotonic()
            pending.append(step(job))
            job.step += 1
            if len(pending) == flush_every:
                _flush(job, pending, display, clock)
    if job.metrics is not None:
        job.metrics.close()
    if not done:
        _say(job, f"{job.stop.reason}: stopped after step {job.step} of {total}; continue with --resume")
    elif job.world.is_main:
        save_weights(job.model, job.folder / "model.safetensors")


@dataclass(frozen=True)
class StepResult:
    """What a step leaves to be logged; tensors stay on the device until then, so that nothing waits for them."""

    step: int
    loss: Tensor  # this process's sum over the mean's divisor, nats
    metrics: dict[str, Tensor]
    gradient_norm: Tensor
    multiplier: float
    skipped: bool


def step(job: Job) -> StepResult:
    """One optimizer step on the whole global batch."""
    config = job.config
    torch.manual_seed(hash64(config.seed.dropout, job.step, job.world.rank) >> 1)
    multiplier = job.schedule(job.step)
    set_learning_rate(job.optimizer, multiplier)
    batch = job.stream.batch(job.step, job.world.rank, job.world.size)
    pieces = list(micro_batches(batch, job.micro_batch))
    loss = torch.zeros((), device=job.device)
    metrics: dict[str, Tensor] = {}
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        with gradient_sync(job.replica, last), autocast(job.device, job.dtype):
            out: LossSum = job.loss(job.replica, _to_device(piece, job.device))
            # DDP averages over processes; the loss is the mean over all tokens of the global batch.
            job.scaler.scale(out.sum * (job.world.size / batch.global_targets)).backward()
        loss += out.sum.detach().float() / batch.global_targets
        for name, value in out.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value.detach() / batch.global_targets
    job.scaler.unscale_(job.optimizer)
    limit = config.train.gradient_clip
    norm = nn.utils.clip_grad_norm_(job.model.parameters(), float("inf") if limit is None else limit)
    skipped = config.train.bad_step == "skip" and _why_bad(job, job.world.sum(loss.clone()).item(), norm.item()) != ""
    if not skipped:
        job.scaler.step(job.optimizer)
        job.scaler.update()
        for name, value in after_step(job.model, job.world.sum).items():
            metrics[name] = value / job.world.size  # the log adds up what the processes say
    job.optimizer.zero_grad(set_to_none=True)
    return StepResult(job.step + 1, loss, metrics, norm.detach(), multiplier, skipped)


def _flush(job: Job, results: list[StepResult], display: TrainingDisplay, clock: float) -> None:
    """Fetch what steps left on the device: one wait, one sum over processes. Writes rows, and stops at a bad step."""
    names = list(results[0].metrics)
    stop = torch.tensor(float(job.stop.requested), device=job.device)
    rows = [torch.stack([r.loss, *(r.metrics[name] for name in names)]) for r in results]
    values = job.world.sum(torch.cat([stop[None], *rows])).tolist()
    norms = torch.stack([r.gradient_norm for r in results]).tolist()
    if values[0]:  # agreed by all, so that all stop after the same step
        job.stop.reason = job.stop.signal or "another process was stopped"
    elapsed = time.monotonic() - clock
    width, logged, bad = 1 + len(names), [], ""
    tokens_per_second = len(results) * job.config.train.batch_tokens / max(elapsed, 1e-9)
    for index, (result, norm) in enumerate(zip(results, norms, strict=True)):
        loss, *extra = values[1 + index * width : 1 + (index + 1) * width]
        job.seconds += elapsed / len(results)
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
        bad = bad or ("" if result.skipped else _why_bad(job, loss, norm, result.step))
        if result.skipped:
            row["skipped"] = True
        else:
            job.recent = [*job.recent, loss][-_SPIKE_WINDOW:]
        if _is_multiple(result.step, job.config.log.every) or result.step == job.config.total_steps or bad:
            logged.append(row)
        if bad:
            break
    if job.metrics is not None:
        job.metrics.write(logged)
        display.update(results[-1].step, loss, tokens_per_second)
    results.clear()
    if bad:
        kept = job.checkpoints.all()
        bad += (
            f"; {kept[-1].name} is whole, --resume goes on from it"
            if kept
            else "; there is no checkpoint to go back to"
        )
        if job.world.is_main:
            runfolder.log_line(job.folder, bad)
            runfolder.write_failure(job.folder, runfolder.Failure(runfolder.DIVERGED, bad, step=result.step))
        raise DivergedError(bad, step=result.step)


def _why_bad(job: Job, loss: float, norm: float, step_number: int | None = None) -> str:
    """Why this step must not count, or "". `norm` may be infinite under float16's scaler, which skips by itself."""
    at = f"step {step_number or job.step + 1}"
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
    path = job.checkpoints.save(job.step, job.model, job.optimizer, state)
    if job.world.is_main:
        runfolder.log_line(job.folder, f"saved {path.name}")


def evaluate(job: Job, display: TrainingDisplay) -> None:
    """Validate on fixed tokens, and log: per source where there are several, and over all of them."""
    results = {}
    for name, dataset in job.validation.items():
        batches = validation_batches(
            dataset,
            job.config.train.sequence_length,
            min(job.config.sequences_per_step, job.micro_batch * job.world.size),
            job.config.eval.tokens,
            job.world.rank,
            job.world.size,
        )
        results[name] = evaluate_loss(
            job.model,
            batches,
            token_bytes=job.tokenizer.token_bytes(),
            device=job.device,
            dtype=job.dtype,
            world=job.world,
        )
    tokens = sum(result.tokens for result in results.values())
    loss = sum(result.nats for result in results.values()) / tokens
    row: dict[str, Any] = {"step": job.step, "tokens": job.step * job.config.train.batch_tokens, "val/loss": loss}
    size = sum(result.bytes for result in results.values())
    if size:
        bits = [r.bits_per_byte * r.bytes for r in results.values() if r.bits_per_byte is not None]
        row["val/bits_per_byte"] = sum(bits) / size
    if len(results) > 1:
        row |= {f"val/loss/{name}": result.loss for name, result in results.items()}
    row["seconds"] = round(job.seconds, 4)
    job.evaluated = job.step
    if job.best is None or loss < job.best[1]:
        job.best = (job.step, loss)
    if job.metrics is not None:
        job.metrics.write([row])
        text = f"step {job.step}: validation loss {loss:.4f}"
        if size:
            text += f", {row['val/bits_per_byte']:.4f} bits per byte"
        display.message(text)
        runfolder.log_line(job.folder, text)


def _conclude(job: Job, seconds: float) -> None:
    """Pictures and tables of the numbers; of a finished run its facts too. `seconds`: how long this session took."""
    memory = -job.world.minimum(-peak_memory(job.device))
    if job.world.is_main:
        write_views(job.folder)
    if job.world.is_main and job.step == job.config.total_steps and not (job.folder / "facts.json").exists():
        found = gather_facts(job.folder, job.config, job.model, job.device, job.dtype, job.world)
        write_facts(job.folder, replace(found, seconds=job.seconds, wall_seconds=seconds, peak_memory_bytes=memory))


# ---------------------------------------------------------------- small parts


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _to_device(batch: Batch, device: torch.device) -> TokenBatch:
    def move(array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda":
            tensor = tensor.pin_memory()  # so that the copy overlaps with work already queued
        return tensor.to(device, torch.int64, non_blocking=True)

    return TokenBatch(move(batch.inputs), move(batch.targets), move(batch.documents))


def _say(job: Job, text: str) -> None:
    if job.world.is_main:
        say(text)
        runfolder.log_line(job.folder, text)
