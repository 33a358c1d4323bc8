"""The contracts of what must come out the same: compiled, in pieces, by two processes, again, saved, switched off.

Where two computations must agree they are compared in float32, within `TOLERANCE` of the largest value: sums are taken
in another order (other shapes take other kernels), and nothing else may differ. Where nothing is computed in another
order, the bits must be equal. Weights are perturbed (`Subject.model`) wherever small ones could hide a fault.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gptlab.contracts.core import (
    COMPILED_TOLERANCE,
    GRADIENT_TOLERANCE,
    Broken,
    Skipped,
    contract,
    require_close,
    require_gradients,
)
from gptlab.contracts.places import default_component
from gptlab.contracts.ranks import TwoSteps, rank_pool, two_steps
from gptlab.contracts.subject import (
    Subject,
    T,
    at_length,
    gradients,
    loss_sum,
)
from gptlab.errors import ConfigError, GptlabError
from gptlab.model.component import after_step, before_step
from gptlab.parallel.sharding import check_divides, sharding_plan
from gptlab.run import save_weights

_ROUNDING = 1e-4  # of the largest gradient
_STEP_TOLERANCE = 0.05  # of a step: Muon orthogonalizes in bfloat16, which makes a rounding error one of two per cent


# ---------------------------------------------------------------- the same, computed otherwise


@contract("compiled", "compiled is eager: the same loss and gradients", "model", "loss")
def compiled(subject: Subject) -> None:
    """torch.compile of model and loss against neither, from the same weights."""
    batch = subject.batch()
    eager, other = subject.model(perturbed=True), subject.model(perturbed=True)
    expected = loss_sum(subject.loss(), eager, batch)
    expected.sum.backward()
    torch._dynamo.reset()
    # Not other.compile(): torch gives up, silently, on what it has compiled too often; it is made anew here.
    fast, loss = torch.compile(other, backend=subject.backend), subject.loss()
    try:
        out = loss_sum(loss, fast, batch)
        out.sum.backward()
    except GptlabError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [""]
        raise Broken(
            f"torch.compile failed: {type(error).__name__}: {lines[0][:160]}",
            where=f"backend {subject.backend}",
            fix="use torch operations on tensors, no .item(), no data-dependent Python",
        ) from None
    finally:
        torch._dynamo.reset()
    fix = "keep Python state, random numbers and shapes that depend on data out of forward"
    message = "compiled and eager disagree"
    require_close(out.sum, expected.sum, message, name="loss", fix=fix, tolerance=COMPILED_TOLERANCE)
    require_gradients(gradients(other), gradients(eager), message, fix, COMPILED_TOLERANCE)


@contract("accumulation", "micro-batches add up to the batch", "model", "loss", "optimizer")
def accumulation(subject: Subject) -> None:
    """Sum, count, metrics, gradients and, of an optimizer, two steps: 8 rows at once, and 2 at a time."""
    perturbed = not _steps_matter(subject)
    _require_same_work(
        subject,
        two_steps(subject, pieces=4, perturbed=perturbed),
        two_steps(subject, pieces=1, perturbed=perturbed),
        "four micro-batches do not give what one batch gives",
        "return sums over tokens, not means; keep no state from one forward pass to the next",
    )


@contract("2 ranks", "two processes with half the batch each are one with the whole", "model", "loss", "optimizer")
def ranks(subject: Subject) -> None:
    """Gradients averaged by DistributedDataParallel over gloo and, of an optimizer, two steps."""
    perturbed = not _steps_matter(subject)
    halves = rank_pool().run(subject, "two steps", perturbed=perturbed)
    if isinstance(halves, str):
        raise Broken(
            f"it does not train on two processes: {halves[:300]}",
            where="two processes on this CPU, gloo",
            fix="use every parameter in every forward pass, in the same order on all processes",
        )
    _require_same_work(
        subject,
        TwoSteps(**halves),
        two_steps(subject, pieces=1, perturbed=perturbed),
        "two processes do not give what one gives",
        "return sums over tokens, not means; let a forward pass depend on its own rows only",
    )


@contract("sharded", "cut over two processes by its sharding plan it computes the same", "model")
def sharded(subject: Subject) -> None:
    """Hidden states and all gradients, tensor parallel over gloo. Skipped where the component (of a config: every one)
    has no plan."""
    model = subject.model()
    own = [model] if subject.component is None else [m for m in model.modules() if type(m) is subject.component]
    plan = {name: style for module in own for name, style in sharding_plan(module).items()}
    if not plan:
        raise Skipped("it does not say how to cut its weights; a class attribute `sharding` would")
    try:
        check_divides(model, 2)
    except ConfigError as error:
        raise Skipped(str(error)) from None
    found = rank_pool().run(subject, "sharded")
    fix = "cut the layers that read the input by column and those that write the output by row, nothing else between"
    if isinstance(found, str):
        raise Broken(f"it does not run when cut: {found[:300]}", where=", ".join(plan), fix=fix)
    for name, expected in found["whole"].items():
        message = "cut over two processes it computes something else"
        scale = max(float(expected.abs().max()), 1e-6)
        require_close(
            found["sharded"][name], expected, message, name=name, fix=fix, tolerance=GRADIENT_TOLERANCE, scale=scale
        )


def _steps_matter(subject: Subject) -> bool:
    """Whether what an optimizer makes of gradients is compared, from weights as they are and not perturbed ones.

    It is not for other parts: an optimizer that divides by the size of a gradient makes much of a rounding error.
    """
    return "optimizer" in subject.parts


def _require_same_work(subject: Subject, actual: TwoSteps, expected: TwoSteps, message: str, fix: str) -> None:
    for name, value in expected.sums.items():
        require_close(actual.sums[name], value, message, name=f"loss {name}", fix=fix, tolerance=1e-5)
    require_gradients(actual.gradients, expected.gradients, message, fix, GRADIENT_TOLERANCE)
    for name, value in expected.kept.items():
        require_close(actual.kept[name], value, message, name=f"{name} after two steps", fix=fix)
    largest = max(float(g.abs().max()) for g in expected.gradients.values())
    for name, value in expected.moved.items() if _steps_matter(subject) else ():
        if float(expected.gradients[name].abs().max()) <= _ROUNDING * largest:
            continue  # such a gradient is rounding, as where a norm undoes a scale, and Adam makes steps of it
        size = float(value.norm())
        off = float((actual.moved[name] - value).norm())
        if not off <= _STEP_TOLERANCE * size + 1e-12:
            where = f"{name} after two steps: {off:.3g} away, having moved {size:.3g} (allowed: {_STEP_TOLERANCE:.0%})"
            raise Broken(message, where=where, fix=fix)


# ---------------------------------------------------------------- the same, another time


@contract("deterministic", "weights are a function of the seed, a step with dropout of the torch seed", "model", "loss")
def deterministic(subject: Subject) -> None:
    """Built twice and stepped twice, with everybody else's random state different each time."""
    results = []
    for attempt in range(2):
        torch.manual_seed(100 + attempt)
        np.random.seed(100 + attempt)  # it is what a careless component would use
        random.seed(100 + attempt)
        model = subject.model(dropout=0.1)
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        out = loss_sum(subject.loss(), model, subject.batch())
        out.sum.backward()
        results.append((weights, {"loss": out.sum.detach()}, gradients(model)))
    fixes = (
        "draw initial weights in nn.Linear or nn.Embedding (initialization fills those by name), or with "
        "gptlab.model.initialization.parameter_generator",
        "draw random numbers from torch only",
        "draw random numbers from torch only",
    )
    kinds = ("an initial weight depends on more than the seed", *["a step depends on more than the torch seed"] * 2)
    for first, second, fix, message in zip(*results, fixes, kinds, strict=True):
        for name, value in first.items():
            axes = tuple(f"axis {i}" for i in range(value.dim()))
            require_close(second[name], value, message, name=name, fix=fix, tolerance=0, axes=axes)


@contract("save and load", "saved and loaded again it gives the same outputs", "model")
def save_and_load(subject: Subject) -> None:
    """model.safetensors of a model that has taken three steps, loaded into one with other initial weights."""
    from safetensors.torch import load_file

    model = subject.model(perturbed=True)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=1e-3), subject.loss()
    for step in range(3):
        before_step(model, step / 3)
        loss_sum(loss, model, subject.batch(seed=step)).sum.backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step(model, lambda tensor: tensor)
    before_step(model, 1.0)
    other = subject.model(seed=2)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(model, Path(folder) / "model.safetensors")
        stored = load_file(Path(folder) / "model.safetensors")
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(stored[name])
        ids = subject.ids(2)
        require_close(
            other.eval()(ids),
            model.eval()(ids),
            "a loaded model is not the one that was saved",
            name="hidden states",
            fix="keep everything that training changes in nn.Parameter (requires_grad=False if no gradient is wanted)",
            tolerance=0,
        )


def require_equal_weights(actual: nn.Module, expected: nn.Module, message: str, fix: str) -> None:
    """Raise Broken unless two models have the same bits in every parameter."""
    values = dict(actual.named_parameters())
    for name, parameter in expected.named_parameters():
        axes = tuple(f"axis {i}" for i in range(parameter.dim()))
        require_close(values[name], parameter, message, name=name, fix=fix, tolerance=0, axes=axes)


# ---------------------------------------------------------------- the off-switch rule


@contract(
    "off switch",
    "switched off it is the baseline, bit for bit",
    *("model", "loss", "optimizer", "schedule", "growth", "mix"),
)
def off_switch(subject: Subject) -> None:
    """Losses, gradients and weights of two steps with the arguments `off`, against the component `baseline`."""
    off = subject.declared("off")
    if off is None:
        raise Skipped(
            "declares no `off`; a class attribute off = {argument: value} says how its feature is switched off, and "
            'baseline = "NAME" what it then is'
        )
    baseline = subject.declared("baseline") or default_component(subject.kind)
    require_off(subject.with_value({**subject.value, **off}), subject.with_value(baseline))


def require_off(switched_off: Subject, baseline: Subject) -> None:
    """Raise Broken unless two subjects of one slot train alike, bit for bit.

    Compared are the loss and the gradients of the first step, in every parameter that the baseline has; and the second
    step's outcome, where neither has parameters of its own (a neutral one would move).
    """
    if switched_off.kind in ("schedule", "growth", "mix"):
        _require_equal_functions(switched_off, baseline)
        return
    switched_off, baseline = at_length(switched_off, T), at_length(baseline, T)
    ours, theirs = (two_steps(s, pieces=1, documents=True, perturbed=False) for s in (switched_off, baseline))
    fix = "with the feature off, run exactly the baseline's operations, and name what is shared alike"
    message = "switched off, it is not the baseline bit for bit"
    groups = {"loss": (ours.sums, theirs.sums), "gradient of": (ours.gradients, theirs.gradients)}
    if ours.moved.keys() == theirs.moved.keys():
        groups["two steps of"] = (ours.moved, theirs.moved)
    for group, (mine, other) in groups.items():
        for name, value in other.items():
            if name not in mine:
                raise Broken(message, where=f"{group} {name}: the baseline has it, this has not", fix=fix)
            axes = tuple(f"axis {i}" for i in range(value.dim()))
            require_close(mine[name], value, message, name=f"{group} {name}", fix=fix, tolerance=0, axes=axes)


def _require_equal_functions(switched_off: Subject, baseline: Subject) -> None:
    make = {"mix": Subject.mixture, "growth": Subject.growth, "schedule": Subject.schedule}[switched_off.kind]
    ours, theirs = make(switched_off), make(baseline)
    points = [i / 100 for i in range(101)] if switched_off.kind == "mix" else list(range(101))
    for point in points:
        mine, other = torch.as_tensor(ours(point)), torch.as_tensor(theirs(point))
        require_close(
            mine,
            other,
            "switched off, it is not the baseline bit for bit",
            name=f"value at {point}",
            fix="with the feature off, compute exactly what the baseline does",
            tolerance=0,
        )
