"""The contracts of what is no part of a model: optimizers, schedules, growths, mixtures, token streams."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gptlab.contracts.core import Broken, contract
from gptlab.contracts.equivalence import require_equal_weights
from gptlab.contracts.subject import Subject, V, loss_sum
from gptlab.data import IGNORE, Batch, TokenDataset
from gptlab.model.component import declared
from gptlab.optim import show_loss
from gptlab.parallel import World
from gptlab.systems.checkpoint import Checkpoints, load_tensors

# ---------------------------------------------------------------- optimizer


def _steps(subject: Subject, model: nn.Module, optimizer: torch.optim.Optimizer, seeds: list[int]) -> list[float]:
    """One step on the batch of each seed; the loss before each, in nats a token."""
    loss, losses = subject.loss(), []
    for seed in seeds:
        out = loss_sum(loss, model, subject.batch(seed=seed))
        (out.sum / out.count).backward()
        losses.append(float(out.sum.detach()) / int(out.count))
        show_loss(optimizer, out.sum / out.count)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


@contract("moves", "a step moves every parameter that has a gradient", "optimizer")
def moves(subject: Subject) -> None:
    """One step of a tiny GPT."""
    model = subject.model(perturbed=True)
    optimizer = subject.optimizer(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _steps(subject, model, optimizer, [0])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and torch.equal(parameter, before[name]):
            raise Broken(
                "a step leaves a parameter where it was",
                where=name,
                fix="put every parameter of named_parameters into a group, at a rate above 0",
            )


@contract("learns", "twenty steps on one batch lower its loss", "optimizer")
def learns(subject: Subject) -> None:
    """At the component's own learning rate."""
    model = subject.model()
    losses = _steps(subject, model, subject.optimizer(model), [0] * 21)
    if not losses[-1] < losses[0]:
        raise Broken(
            f"the loss goes from {losses[0]:.4f} to {losses[-1]:.4f}",
            where="the loss on one batch, 20 steps",
            fix="check the sign of the step and its size; a lower rate, if it climbs",
        )


@contract("resumes", "saved and loaded it takes the same next step, bit for bit", "optimizer")
def resumes(subject: Subject) -> None:
    """A checkpoint after three steps, loaded into a new model and a new optimizer."""
    model = subject.model()
    optimizer = subject.optimizer(model)
    _steps(subject, model, optimizer, [0, 1, 2])
    other = subject.model(seed=2)
    loaded = subject.optimizer(other)
    with tempfile.TemporaryDirectory() as folder:
        path = Checkpoints(Path(folder), keep=1, world=World()).save(3, model, optimizer, {})
        load_tensors(path, other, loaded, World())
    _steps(subject, model, optimizer, [3, 4])
    _steps(subject, other, loaded, [3, 4])
    require_equal_weights(
        other,
        model,
        "the steps after loading are not those without saving",
        "keep all that a step depends on as tensors in self.state[parameter], made at the first step",
    )


@contract("repeatable", "the same gradients give the same steps, bit for bit", "optimizer")
def repeatable(subject: Subject) -> None:
    """Three steps, twice, with everybody's random state different."""
    models = []
    for attempt in range(2):
        np.random.seed(attempt)  # it is what a careless component would use
        model = subject.model()
        optimizer = subject.optimizer(model)
        _steps(subject, model, optimizer, [0, 1, 2])
        models.append(model)
    require_equal_weights(
        *models, "the same steps end elsewhere", "draw random numbers from torch, seeded by what is stepped"
    )


# ---------------------------------------------------------------- schedule, growth and mixture


@contract("multiplier", "the multiplier is finite and at least 0 at every step, and not always 0", "schedule")
def multiplier(subject: Subject) -> None:
    """From step 0 to the last, of runs of one step, of seven, and of a thousand."""
    for total in (1, 7, 1000):
        made = subject.schedule(total)
        values = [float(made(step)) for step in range(total)]
        for step, value in enumerate(values):
            if not (math.isfinite(value) and value >= 0):
                raise Broken(
                    f"the multiplier is {value}",
                    where=f"step {step} of {total}",
                    fix="stay finite and at least 0 for every step from 0 to total_steps − 1",
                )
        if not any(values):
            raise Broken("the multiplier is always 0", where=f"a run of {total} steps", fix="let some step have a rate")
        if [float(made(step)) for step in range(total)] != values:
            raise Broken(
                "the multiplier is no function of the step",
                where=f"a run of {total} steps, asked twice",
                fix="keep no state between calls: a run that resumes starts in the middle",
            )


@contract("counts", "a step takes a whole number of batches, at least 1; saved and loaded, the same ones", "growth")
def counts(subject: Subject) -> None:
    """Fifty steps whose gradients have norms between 0.01 and 100, one of them infinite; stopped after half of them."""
    made, begins = subject.growth(), [0]
    for number in range(50):
        count = made(begins[-1])
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise Broken(
                f"the step takes {count!r} batches",
                where=f"the step that begins at batch {begins[-1]}",
                fix="return an int, at least 1",
            )
        if made(begins[-1]) != count:
            raise Broken(
                "asked twice, the same step takes another number of batches",
                where=f"the step that begins at batch {begins[-1]}",
                fix="change what is remembered in `observe` alone",
            )
        begins.append(begins[-1] + count)
        _observe(made, number)
        if number == 24:
            state = json.loads(json.dumps(declared(made, "state")))
    again = subject.growth()
    declared(again, "state").update(state)
    for number in range(25, 50):
        if (count := again(begins[number])) != begins[number + 1] - begins[number]:
            raise Broken(
                f"the step takes {begins[number + 1] - begins[number]} batches, and after saving and loading {count}",
                where=f"the step that begins at batch {begins[number]}",
                fix="keep all that is remembered as numbers in the dictionary self.state, and count on nothing else",
            )
        _observe(again, number)


def _observe(growth: Any, number: int) -> None:
    if (observe := declared(growth, "observe")) is not None:
        observe(torch.tensor(math.inf if number == 10 else 10 ** (2 * math.sin(number / 3))))


@contract("shares", "weights are at least 0 and sum to 1 at any progress", "mix")
def shares(subject: Subject) -> None:
    """At a hundred and one moments of training, asked forwards and backwards."""
    made = subject.mixture()
    names = list(subject.config.data.sources or {})
    moments = [i / 100 for i in range(101)]
    seen = {}
    for moment in [*moments, *reversed(moments)]:
        weights = np.array(made(moment), dtype=float)
        fix = "return one weight a source, at least 0, divided by their sum"
        if weights.shape != (len(names),):
            raise Broken("not one weight a source", where=f"progress {moment}: shape {weights.shape}", fix=fix)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and abs(weights.sum() - 1) <= 1e-9):
            raise Broken("the weights are no shares", where=f"progress {moment}: {weights.tolist()}", fix=fix)
        if not np.array_equal(seen.setdefault(moment, weights), weights):
            raise Broken(
                "the weights are no function of the progress",
                where=f"progress {moment}, asked twice",
                fix="keep no state between calls: a run that resumes starts in the middle",
            )


# ---------------------------------------------------------------- token stream


@contract("addressed", "a batch is a function of its step, whoever asks and in whatever order", "stream")
def addressed(subject: Subject) -> None:
    """Six steps over made-up text, asked backwards, and by two and four processes."""
    fix = "compute everything from the step, the rank and the arguments of the constructor; keep nothing between calls"
    with tempfile.TemporaryDirectory() as folder:
        ids = np.random.default_rng(0).integers(0, V, 64 * subject.length, dtype=np.uint16)
        ids.tofile(Path(folder) / "train.bin")
        dataset = TokenDataset.open(folder, "train", vocab_size=V, end_of_text=0)
        made = subject.token_stream(dataset)
        whole = [made.batch(step) for step in range(6)]
        for step, batch in enumerate(whole):
            _require_batch(subject, batch, f"step {step}")
        for step in reversed(range(6)):
            _require_same_batch(
                subject.token_stream(dataset).batch(step), whole[step], f"step {step}, asked alone", fix
            )
            for size in (2, 4):
                parts = [made.batch(step, rank, size) for rank in range(size)]
                joined = Batch(
                    np.concatenate([part.inputs for part in parts]),
                    np.concatenate([part.targets for part in parts]),
                    np.concatenate([part.documents for part in parts]),
                    parts[-1].global_targets,
                )
                _require_same_batch(joined, whole[step], f"step {step}, shares of {size} processes joined", fix)


def _require_batch(subject: Subject, batch: Batch, where: str) -> None:
    rows, length = subject.config.sequences_per_step, subject.length
    shapes = {name: getattr(batch, name).shape for name in ("inputs", "targets", "documents")}
    if set(shapes.values()) not in ({(rows * cuts, length // cuts)} for cuts in range(1, length + 1)):
        raise Broken(
            "a batch has another shape than the run's",
            where=f"{where}: {shapes}, expected {(rows, length)} for each, or such rows cut into equal pieces",
            fix="give sequences_per_step × sequence_length of inputs, targets and documents",
        )
    predicted = int((batch.targets != IGNORE).sum())
    if predicted != batch.global_targets or not predicted:
        raise Broken(
            f"the batch says that it has {batch.global_targets} targets, and has {predicted}",
            where=where,
            fix="let global_targets be the number of targets other than IGNORE in the whole batch, over all processes",
        )


def _require_same_batch(actual: Batch, expected: Batch, where: str, fix: str) -> None:
    for name in ("inputs", "targets", "documents"):
        if not np.array_equal(getattr(actual, name), getattr(expected, name)):
            raise Broken("a batch is no function of its step", where=f"{where}: {name}", fix=fix)
    if actual.global_targets != expected.global_targets:
        raise Broken("a batch is no function of its step", where=f"{where}: global_targets", fix=fix)
