"""From a config to a job that is ready to train: check everything, build everything, only then write the first file."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gptlab.config import RunConfig, build, config_hash, hashed_values, run_name
from gptlab.console import say, waiting
from gptlab.data import TokenDataset, TokenStream, measured_on, open_splits, open_stream, validation_batches
from gptlab.errors import CheckpointError, ConfigError, DataError, option
from gptlab.files import atomic_folder
from gptlab.hardware.compile import GRAPHS, choose_compile, try_compile
from gptlab.hardware.device import describe
from gptlab.hardware.memory import largest_micro_batch
from gptlab.hardware.precision import pick_dtype
from gptlab.hardware.recompute import recompute_blocks
from gptlab.model import build_model
from gptlab.model.component import blocks_of, declared
from gptlab.model.float8 import require_float8
from gptlab.model.smoke_test import smoke_test_components
from gptlab.parallel import Layout, World, check_layout, choose_layout
from gptlab.planning.footprint import require_memory
from gptlab.record import runfolder
from gptlab.record.measurement import Identity, differences
from gptlab.record.metrics import read_metrics
from gptlab.run import load_initial_weights
from gptlab.systems.checkpoint import Checkpoints, load_tensors, read_matching_state
from gptlab.systems.metrics import METRICS, MetricsLog, read_samples
from gptlab.systems.signals import StopRequest
from gptlab.systems.sinks import open_sinks, require_sinks
from gptlab.tokenizer import Tokenizer
from gptlab.training.accumulation import accumulate, to_device
from gptlab.training.processes import check_alike, check_data_alike, lock_run, lost_line
from gptlab.training.tasks import require_tasks


@dataclass
class Job:
    """Everything that the loop works on."""

    config: RunConfig
    folder: Path
    world: World
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    model: nn.Module  # the model itself
    wrapped: nn.Module  # what is called in a step: the model as `layout` wraps it
    loss: Any
    optimizer: torch.optim.Optimizer
    schedule: Any
    growth: Any
    scaler: torch.amp.GradScaler
    stream: TokenStream
    validation: dict[str, TokenDataset]
    tokenizer: Tokenizer
    checkpoints: Checkpoints
    identity: dict[str, Any]  # the hashed values of the config, but for its length
    measured_on: Identity  # what its validations are read from
    metrics: MetricsLog | None = None  # the main process's
    micro_batch: int = 0  # sequences at once, of this process
    graphs: bool = False  # whether its passes are CUDA graphs
    step: int = 0  # in batches of `train.batch_tokens`: where the next step begins
    batches: int = 1  # that the last step took
    seconds: float = 0.0  # of training, over all sessions
    best: tuple[int, float] | None = None  # step and validation loss
    recent: list[float] = field(default_factory=list)  # the last losses, to know a spike by
    evaluated: int = -1  # the last step that was validated
    sampled: int = -1  # the last step after which samples were drawn
    reached: bool = False  # a validation loss at most `eval.target`: the run ends
    saved_at: float = field(default_factory=time.monotonic)  # when the last checkpoint was written, or training began
    save_due: bool = False  # `checkpoint.minutes` have gone by, as all processes agree
    stop: StopRequest = field(default_factory=StopRequest)

    def passed(self, every: int) -> bool:
        """Whether the last step reached a multiple of `every`, or went past it; never where that is 0."""
        return every > 0 and self.step > 0 and self.step // every > (self.step - self.batches) // every

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be trained."""
        return self.reached or self.step == self.config.total_steps

    def note_validation(self, step: int, loss: float) -> None:
        """Note what a validation found. That of the weights a run starts from has no checkpoint to be kept."""
        if step > 0 and (self.best is None or loss < self.best[1]):
            self.best = (step, loss)
        self.reached = step > 0 and self.config.eval.target is not None and loss <= self.config.eval.target


def build_job(
    config: RunConfig,
    world: World,
    device: torch.device,
    *,
    resume: bool = False,
    folder: str | Path | None = None,
    exit_stack: contextlib.ExitStack | None = None,
    hooks: Sequence[Any] = (),
) -> Job:
    """The job that `config` describes, in its folder. `exit_stack` holds the folder's lock from here on. `hooks`: see
    `train`.

    Raises GptlabError, before anything is written, for everything a user can mend that can be known by now.
    """
    check_alike(config, world)
    if config.system.threads is not None:
        torch.set_num_threads(config.system.threads)
    require_sinks(config.log)
    require_tasks(config.eval.tasks, world)
    compiled, mode = choose_compile(config.system.compile, device, world.size)
    with waiting("opening the data", shown=world.is_main):
        tokenizer, train_sets, validation = open_splits(config.data)
        for dataset in validation.values():  # that there is none must be known now, not after the last step
            next(validation_batches(dataset, config.validation_length, 1, config.eval.tokens))
            there = dataset.targets(config.eval.tokens)
            if world.is_main and there < (config.eval.tokens or 0):
                say(f"{dataset.path}: has {there:,} validation tokens, fewer than eval.tokens; all of them are read")
    fingerprints = {name: dataset.fingerprint for name, dataset in train_sets.items()}
    check_data_alike(fingerprints, world)
    named = folder is None
    folder = Path("runs") / run_name(config, fingerprints) if folder is None else Path(folder)
    origin = folder
    if resume and _would_become_another(folder, config_hash(config, fingerprints)):
        folder = folder.parent / run_name(config, fingerprints)
    if runfolder.is_foreign(folder):
        raise ConfigError(
            f"{folder} holds something else than a run; name another place with {option('out', argument='folder')}"
        )
    check_layout(config, world)
    if exit_stack is not None and world.is_main:
        lock_run(folder, exit_stack)
    if folder != origin and runfolder.state(folder) is runfolder.State.ABSENT:
        _begin_from(origin, folder, config, identity_of(config, fingerprints), world)
    identity = identity_of(config, fingerprints)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep, world=world)
    checkpoint, state = _find_resume_checkpoint(config, folder, checkpoints, identity, resume, named)
    if checkpoint is not None:
        _check_measured_alike(folder, measured_on(config, tokenizer, validation))
    with waiting("building the model", shown=world.is_main):
        job = _build(config, folder, world, device, checkpoints, identity, (tokenizer, train_sets, validation))
        if checkpoint is None:
            load_initial_weights(job.model, tokenizer)
        smoke_test_components(job.model, job.loss, to_device(job.stream.batch(0).rows(0, 1), device))
    with waiting("finding how many sequences fit", shown=world.is_main):
        job.micro_batch = _choose_micro_batch(job, state)
    if compiled:
        with waiting("compiling the model, before the first step", shown=world.is_main):
            job.graphs = mode in GRAPHS  # before anything is computed in them
            done = try_compile(job.model, job.loss, lambda: _forward_backward(job, job.micro_batch), mode)
            job.graphs = job.graphs and done
    _spread(job)
    if checkpoint is not None:
        with waiting(f"loading {checkpoint.name}", shown=world.is_main):
            load_tensors(checkpoint, job.model, job.optimizer, world)
        job.step, job.seconds, job.recent = state["step"], state["seconds"], state["recent"]
        job.scaler.load_state_dict(state["scaler"])
        if "growth" in state:
            job.batches = state["growth"]["batches"]
            declared(job.growth, "state").update(state["growth"]["state"])
    world.barrier()  # nobody looks for a folder any more when it is made
    if world.is_main:
        _open_folder(job, fingerprints, job.step if checkpoint is not None else None, hooks)
    job.best, job.evaluated, job.reached = world.broadcast((job.best, job.evaluated, job.reached))
    return job


def identity_of(config: RunConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint keeps of its config, to be resumed with an equal one: the hashed values but for the length."""
    values = hashed_values(config, fingerprints) | {"seed": config.seed.model_dump()}
    values["train"].pop("tokens")
    return values


def _would_become_another(folder: Path, digest: str) -> bool:
    """Whether going on in `folder` with a config of this hash would make another run of the one its name stands for."""
    named, sessions = runfolder.named_hash(folder), runfolder.read_sessions(folder)
    return bool(sessions) and named not in (None, digest) and sessions[-1].get("config_hash") != digest


def _begin_from(origin: Path, folder: Path, config: RunConfig, identity: dict[str, Any], world: World) -> None:
    """Begin a run where another one ended, which stays as it is: an experiment may rest on it.

    Raises CheckpointError where that one has no checkpoint to go on from, or of another config.
    """
    newest = Checkpoints(origin / "checkpoints", keep=1, world=world).newest_whole()
    if newest is None:
        raise CheckpointError(
            f"{origin} has weights and no checkpoint to resume from; start a run with "
            f"{option('set', f'model.init_from={origin}')}"
        )
    read_matching_state(newest, identity, config)
    if world.is_main:
        with atomic_folder(folder) as aside:
            shutil.copytree(newest, aside / "checkpoints" / newest.name, copy_function=_link)
            for name in ("metrics.jsonl", "env.json", "log.txt"):
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, aside / name)
        say(f"{origin} stays as it is; going on from its {newest.name} in {folder}")
    world.barrier()


def _link(source: str, target: str) -> None:
    """A second name for a file that nobody writes to again; a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _build(
    config: RunConfig,
    folder: Path,
    world: World,
    device: torch.device,
    checkpoints: Checkpoints,
    identity: dict[str, Any],
    data: tuple[Tokenizer, dict[str, TokenDataset], dict[str, TokenDataset]],
) -> Job:
    """Every component of the run, as new."""
    tokenizer, train_sets, validation = data
    dtype, layout = pick_dtype(config.train.dtype, device), choose_layout(world, device, config.parallel)
    stream = open_stream(config, train_sets)
    vocab_size = next(iter(train_sets.values())).vocab_size
    assert vocab_size is not None
    require_memory(config, vocab_size, device, world_size=layout.data_size)
    model = build_model(config, vocab_size, device=device)
    recompute_blocks(blocks_of(model), config.parallel.recompute)
    require_float8(model, device, heard=world.is_main)
    if config.validation_length > model.context_length:
        raise ConfigError(
            f"eval.sequence_length: {config.validation_length} is longer than the model's context of "
            f"{model.context_length}; lower it, or raise model.context_length",
            key="eval.sequence_length",
        )
    return Job(
        config=config,
        folder=folder,
        world=world,
        layout=layout,
        device=device,
        dtype=dtype,
        model=model,
        wrapped=model,
        loss=build("loss", config.loss),
        optimizer=_build_optimizer(config, model),
        schedule=build("schedule", config.schedule, total_steps=config.total_steps),
        growth=build_growth(config, model),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        stream=stream,
        validation=validation,
        tokenizer=tokenizer,
        checkpoints=checkpoints,
        identity=identity,
        measured_on=measured_on(config, tokenizer, validation),
    )


def _build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = build("optimizer", config.optimizer, named_parameters=list(model.named_parameters()))
    return found


def _spread(job: Job) -> None:
    """Lay the model over the processes, last of all: what was tried before needed it whole."""
    job.wrapped = job.layout.wrap(job.model)
    if job.layout.replaces_parameters:
        job.optimizer = _build_optimizer(job.config, job.model)
    if job.world.size > 1 and (share := declared(job.optimizer, "share_work")) is not None:
        share(job.world)


def build_growth(config: RunConfig, model: nn.Module) -> Any:
    """The growth of the batch; where the config has none, one batch a step."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    batch_tokens = config.train.batch_tokens
    return build("growth", config.train.growth or "Fixed", batch_tokens=batch_tokens, parameters=parameters)


def _find_resume_checkpoint(
    config: RunConfig, folder: Path, checkpoints: Checkpoints, identity: dict[str, Any], resume: bool, named: bool
) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume from and what it says of itself; None and nothing for a run that begins. `named`:
    whether the folder is called after the config, and nobody chose another."""
    if not resume:
        if folder.exists() and any(folder.iterdir()):
            place = option("out", argument="folder")
            other = f"change {option('set', 'name=NAME')}" if named else f"name another {place}"
            raise ConfigError(f"{folder} exists already; add {option('resume', True)} to continue it, or {other}")
        return None, {}
    newest = checkpoints.newest_whole()
    if newest is None and (folder / runfolder.WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has weights and no checkpoint to resume from; start a run with "
            f"{option('set', f'model.init_from={folder}')}"
        )
    return newest, read_matching_state(newest, identity, config) if newest is not None else {}


def _check_measured_alike(folder: Path, now: Identity) -> None:
    """One metrics.jsonl holds values of one kind. Raises DataError where the validations of a run that is resumed were
    read from something else than they would be now."""
    before = next((s["validation"] for s in reversed(runfolder.read_sessions(folder)) if "validation" in s), None)
    if before is not None and (changed := differences(before, now)):
        raise DataError(
            f"{folder}: was validated on something else so far, {changed[0]}; put the data back as they were, or start "
            f"another run with {option('set', 'name=NAME')}"
        )


def _choose_micro_batch(job: Job, state: Mapping[str, Any]) -> int:
    """Sequences at once. A resumed run keeps its own, because another split of the sum rounds differently."""
    config, share = job.config, job.config.sequences_per_step // job.layout.data_size
    if config.system.micro_batch != "auto":
        if config.system.micro_batch > share and job.world.is_main:
            say(f"system.micro_batch: a process has {share} sequences a step, and takes no more than these at once")
        return min(config.system.micro_batch, share)
    if state.get("world_size") == job.world.size:
        return int(state["micro_batch"])
    largest = largest_micro_batch(lambda n: _forward_backward(job, n), share, job.device)
    return job.world.all_reduce_min(largest)


def _forward_backward(job: Job, sequences: int) -> None:
    """One micro-batch without a step, by this process alone: what it costs in memory, and what compiles the model."""
    batch = job.stream.batch(job.config.total_steps - 1).rows(0, sequences)  # sequences may have grown until then
    alone = choose_layout(World(), job.device)
    accumulate(
        job.model,
        job.loss,
        [to_device(batch, job.device)],
        global_targets=batch.global_targets,
        layout=alone,
        dtype=job.dtype,
        graphs=job.graphs,
    )
    job.model.zero_grad(set_to_none=True)


def _open_folder(job: Job, fingerprints: Mapping[str, str], resume_step: int | None, hooks: Sequence[Any]) -> None:
    """Make the run folder (or go on in it), and read from it what was measured before."""
    job.folder.mkdir(parents=True, exist_ok=True)
    session = runfolder.session_record(
        config_hash(job.config, fingerprints),
        job.config,
        describe(job.device),
        job.world.size,
        validation=job.measured_on,
    )
    rows = [] if resume_step is None else read_metrics(job.folder / METRICS)
    for row in rows:
        if row["step"] <= job.step and (value := row.get("val/loss")) is not None:
            job.evaluated = row["step"]
            job.note_validation(row["step"], value)
    lost = "" if resume_step is None else lost_line(job.folder, rows, resume_step, job.seconds, job.world.size)
    if not job.finished or runfolder.state(job.folder) is not runfolder.State.FINISHED:
        runfolder.reopen(job.folder)
        runfolder.write_run_folder(job.folder, job.config, session)
    job.tokenizer.save(job.folder / "tokenizer")
    sinks = open_sinks(job.config, job.folder, resume_step, hooks)
    job.metrics = MetricsLog(job.folder, resume_step=resume_step, sinks=sinks)
    job.sampled = max((row["step"] for row in read_samples(job.folder)), default=-1)
    count = sum(p.numel() for p in job.model.parameters())
    announce(
        job,
        f"{job.folder}: {count:,} parameters on {job.device} in {str(job.dtype).removeprefix('torch.')}, "
        f"{job.config.total_steps} steps of {job.config.train.batch_tokens} tokens, {job.micro_batch} sequences at once"
        + (f", from step {resume_step}" if resume_step else ""),
    )
    if lost:
        announce(job, lost)


def announce(job: Job, text: str) -> None:
    """Print `text` and keep it in the run's log, once for all processes."""
    if job.world.is_main:
        say(text)
        runfolder.log_line(job.folder, text)
