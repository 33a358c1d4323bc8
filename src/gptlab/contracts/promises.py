"""The contracts of a model, and of everything that is part of one or acts on one.

Where two computations must agree they are compared in float32, within `TOLERANCE` of the largest value: sums are taken
in another order (other shapes take other kernels), and nothing else may differ. Where nothing is computed in another
order, the bits must be equal. Weights are wild (`Subject.model`) wherever small ones could hide a fault.
"""

from __future__ import annotations

import itertools
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.contracts.core import Broken, Skipped, contract, position, require_close
from gptlab.contracts.ranks import Work, pool, work
from gptlab.contracts.subject import (
    Subject,
    T,
    V,
    at_length,
    default_component,
    gradients,
    loss_sum,
    rows_of,
    window_width,
)
from gptlab.errors import GptlabError
from gptlab.inference.generate import Reader, window_start
from gptlab.loss import IGNORE, TokenBatch
from gptlab.model.component import Context, after_step, before_step, declared
from gptlab.run import save_weights

_ROUNDING = 1e-4  # of the largest gradient
_POSITIONS = 64  # changed tokens at once: memory is this many sequences
_WINDOW_POSITIONS = 16  # the same, where layers are looked at one by one
_GRADIENT_TOLERANCE = 1e-4  # gradients add up B·T terms that partly cancel
_STEP_TOLERANCE = 0.05  # of a step: Muon orthogonalizes in bfloat16, which makes a rounding error one of two per cent
_COMPILED_TOLERANCE = 1e-4  # fused kernels round differently at every operation


# ---------------------------------------------------------------- shapes


@contract("builds", "builds in a tiny GPT; shapes fit, everything is finite", "model", "loss")
def builds(subject: Subject) -> None:
    """ids (B, T) → hidden (B, T, D) → logits (B, T, V) → a scalar loss sum."""
    model, batch = subject.model(), subject.batch()
    fix = "return what the slot's page in the manual says, of the shape that came in"
    hidden = model(batch.inputs, batch.documents)
    if not isinstance(hidden, Tensor) or hidden.shape[:2] != batch.inputs.shape or hidden.dim() != 3:
        shape = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise Broken("hidden states are not (B, T, D)", where=f"hidden: {shape}", fix=fix)
    logits = model(batch.inputs, batch.documents, return_logits=True)
    if logits.shape != (*batch.inputs.shape, V):
        raise Broken("logits are not (B, T, V)", where=f"logits: {list(logits.shape)}", fix=fix)
    _require_finite(logits, "logits")
    out = loss_sum(subject.loss(), model, batch)
    if out.sum.dim() != 0 or int(out.count) < 1:
        where = f"sum: shape {list(out.sum.shape)}, count: {int(out.count)}"
        raise Broken("the loss is not a scalar sum over a number of tokens", where=where, fix=fix)
    _require_finite(out.sum, "loss")


def _require_finite(tensor: Tensor, name: str) -> None:
    wrong = ~tensor.isfinite()
    if wrong.any():
        where = f"{name}: {position(tensor, wrong.nonzero()[0])}: {float(tensor[wrong][0])}"
        raise Broken("a value is not finite", where=where, fix="look for 0/0, log of 0, or a softmax over nothing")


# ---------------------------------------------------------------- what may not influence what


@contract("causal", "changing token t moves no output before t", "model")
def causal(subject: Subject) -> None:
    """Every t (64 of a longer sequence) at once in evaluation mode, one row a changed token; three in training mode."""
    model = subject.model(wild=True)
    length = subject.length
    ids = subject.ids(1)
    every = torch.linspace(0, length - 1, min(length, _POSITIONS)).round().long()
    changed = ids.repeat(len(every), 1)
    row = torch.arange(len(every))
    changed[row, every] = (changed[row, every] + 1) % V
    with torch.no_grad():
        model.eval()
        outputs = model(torch.cat([ids, changed]))
        _require_past_unmoved(outputs[1:], outputs[:1], every)
        model.train()
        for at in (1, len(every) // 2, len(every) - 1):
            before, after = (_seeded(model, x) for x in (ids, changed[at : at + 1]))
            _require_past_unmoved(after, before, every[at : at + 1])


def _require_past_unmoved(changed: Tensor, base: Tensor, at: Tensor) -> None:
    """`changed`: one row for each t of `at`, whose token t differs from that of `base` (1, T, D)."""
    scale = float(base.abs().max())
    names = ("t", "position", "channel")
    for row, t in zip(changed, at.tolist(), strict=True):
        require_close(
            row[:t],
            base[0, :t],
            "an output depends on a later token",
            name=f"hidden states after a change of token {t}",
            scale=scale,
            fix="let position t use positions ≤ t only: attend through context.view(), pad on the left, no mean over T",
            axes=names[1:],
        )
        if torch.equal(row[t], base[0, t]):
            raise Broken(
                "an output does not depend on its own token",
                where=f"hidden states: position {t}",
                fix="let the residual stream through: x + f(x)",
            )


def _seeded(model: nn.Module, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """A forward pass whose dropout, if there is any, is always the same."""
    torch.manual_seed(7)
    hidden: Tensor = model(ids, documents)
    return hidden


@contract("documents", "a packed document is what it would be alone, forward and backward", "model")
def documents(subject: Subject) -> None:
    """Each document of two rows alone equals itself packed, and sends no gradient to its neighbours."""
    model = subject.model(wild=True, documents=True)
    if not any(declared(module, "document_mask") for module in model.modules()):
        raise Skipped(
            "does not promise it: packed documents see each other; an argument (or attribute) `document_mask` = true "
            "would be held to it"
        )
    model.eval()
    ids, numbers = _distinct_ids(subject, 2), subject.documents(2)
    fix = "attend through context.view(documents=True), and carry nothing over where context.documents changes"
    with torch.no_grad():
        packed = model(ids, numbers)
        for row in range(2):
            cuts = [0, *subject.cuts(row), subject.length]
            for start, stop in itertools.pairwise(cuts):
                alone_ids = ids[row : row + 1, start:stop]
                require_close(
                    packed[row : row + 1, start:stop],
                    model(alone_ids, torch.zeros_like(alone_ids)),
                    "a document's outputs depend on the documents packed before it",
                    name=f"hidden states of the document at positions {start} to {stop - 1} of row {row}",
                    fix=fix,
                    scale=float(packed.abs().max()),
                )
    cut = subject.cuts(0)[0]
    influence = _influence(model, ids[:1], numbers[:1], lambda hidden: hidden[:, cut:])
    _require_no_influence(influence[:cut], influence, "a gradient crosses from one document into another", 0, fix)


@contract("window", "attention with a window of n sees n keys, not one more and not one fewer", "model")
def window(subject: Subject) -> None:
    """Each part that has a `window`, alone: a change of its input at t shows at t + n − 1, and no further.

    Alone, because layers after each other see further than each of them. A window that grows, at both ends of its way.
    """
    model = subject.model(wild=True).eval()
    if not any(window_width(module) is not None for module in model.modules()):
        raise Skipped(
            "does not promise it: no part has a window; an attribute `window`, a number or with one as `now`, "
            "would be held to it"
        )
    held: set[tuple[str, int]] = set()
    for progress in (0.0, 1.0):
        before_step(model, progress)
        for name, module, x_BTD, context in _calls(model, subject.ids(1).expand(1 + _WINDOW_POSITIONS, -1)):
            width = window_width(module)
            # Where a key holds something of the one before it, what a query sees begins one earlier.
            reach = (width or 0) + bool(declared(module, "key_offset"))
            if width is None or reach >= subject.length or (name, width) in held:
                continue
            held.add((name, width))
            _require_reach(name, module, x_BTD, context, width, reach)
    if not held:
        raise Skipped("no window is narrower than the longest sequence of this check")


def _calls(model: nn.Module, ids: Tensor) -> list[tuple[str, nn.Module, Tensor, Context]]:
    """The parts that are called with x (B, T, D) and the context, as attention and blocks are, and with which."""
    found = []

    def keep(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
            match inputs:
                case (Tensor() as x_BTD, Context() as context):
                    found.append((name, module, x_BTD.clone(), context))

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def _require_reach(name: str, module: nn.Module, x_BTD: Tensor, context: Context, width: int, reach: int) -> None:
    """`x_BTD`: equal rows; all but the first have their input changed, each at another position."""
    length = x_BTD.shape[1]
    row = torch.arange(1, x_BTD.shape[0])
    every = torch.linspace(0, length - 1 - reach, len(row)).round().long()
    noise = torch.randn(len(row), x_BTD.shape[2], generator=torch.Generator().manual_seed(13))
    x_BTD[row, every] = noise.to(x_BTD.dtype)
    base, *changed = module(x_BTD, context)
    for found, t in zip(changed, every.tolist(), strict=True):
        require_close(
            found[t + reach :],
            base[t + reach :],
            f"attention with a window of {width} sees more keys than that",
            name=f"output of {name}, from position {t + reach} on, after a change of its input at {t}",
            scale=float(base.abs().max()),
            fix="attend through context.view(window=…), in which a query sees so many keys, itself the last",
            axes=("position", "channel"),
        )
    if all(torch.equal(found[t + reach - 1], base[t + reach - 1]) for found, t in zip(changed, every, strict=True)):
        raise Broken(
            f"attention with a window of {width} sees fewer keys than that",
            where=f"output of {name}: a change of its input at t never shows at t + {reach - 1}",
            fix="let query t see the keys above t − window: itself and window − 1 before it",
        )


@contract("batch", "one sequence of a batch never influences another", "model")
def batch_rows(subject: Subject) -> None:
    """In training mode: changing row 1 moves no other row, forward; and row 0 sends no gradient to row 1."""
    model = subject.model(wild=True).train()
    ids, numbers = subject.ids(4), subject.documents(4)
    changed = ids.clone()
    changed[1] = (changed[1] + 1 + torch.arange(subject.length)) % V
    fix = "take no statistics over the batch axis, and keep nothing from one row for the next"
    with torch.no_grad():
        before, after = _seeded(model, ids, numbers), _seeded(model, changed, numbers)
    others = torch.tensor([0, 2, 3])
    require_close(
        after[others],
        before[others],
        "a row's outputs depend on another row of the batch",
        name="hidden states (of rows 0, 2, 3, in this order)",
        fix=fix,
    )
    pair = _distinct_ids(subject, 2)
    influence = _influence(model, pair, subject.documents(2), lambda hidden: hidden[:1])
    length = subject.length
    if 2 * length <= V:
        _require_no_influence(influence[length:], influence, "a gradient crosses from row 0 into row 1", 1, fix)


def _distinct_ids(subject: Subject, rows: int) -> Tensor:
    """Ids (rows, T) of which no two are equal, as far as the vocabulary goes; then they repeat."""
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(V, generator=generator)
    return order[torch.arange(rows * subject.length) % V].view(rows, subject.length)


def _influence(model: nn.Module, ids: Tensor, numbers: Tensor, select: Callable[[Tensor], Tensor]) -> Tensor:
    """How strongly the selected hidden states depend on each token, in the order of `ids`: (rows · T,).

    By the gradient of every token table, (V, D): ids are distinct, so a row of it belongs to one position.
    """
    model.zero_grad(set_to_none=True)
    hidden = _seeded(model, ids, numbers)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5))
    select(hidden * weights).sum().backward()
    found = torch.zeros(ids.numel())
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings >= V and module.weight.grad is not None:
            found += module.weight.grad.abs().sum(-1)[ids.flatten()]
    model.zero_grad(set_to_none=True)
    return found


def _require_no_influence(part: Tensor, whole: Tensor, message: str, row: int, fix: str) -> None:
    largest = float(whole.max())
    wrong = ~(part <= 1e-6 * largest)
    if wrong.any() or largest == 0:
        at = int(wrong.nonzero()[0]) if wrong.any() else 0
        raise Broken(message, where=f"gradient of the embedding of row {row}, position {at}: {part[at]:.3g}", fix=fix)


# ---------------------------------------------------------------- training and using


@contract("train and eval", "without dropout, training mode computes what evaluation does", "model")
def train_and_eval(subject: Subject) -> None:
    """One forward pass in either mode, dropout off: what is measured must be what was trained."""
    model, ids, numbers = subject.model(wild=True), subject.ids(2), subject.documents(2)
    with torch.no_grad():
        trained, used = _seeded(model.train(), ids, numbers), _seeded(model.eval(), ids, numbers)
    require_close(
        used,
        trained,
        "evaluation computes something else than training",
        name="hidden states in evaluation mode",
        fix="let self.training switch dropout only; call the argument of a noise that is meant …dropout, 0 for none",
    )


# ---------------------------------------------------------------- generation


@contract("cached", "cached logits are the uncached ones, token by token, beyond the context too", "model")
def cached(subject: Subject) -> None:
    """Two prompts of different lengths in one batch, with a cache, against each alone without one."""
    model = subject.model(wild=True).eval()
    context = getattr(model, "context_length", None)
    if context is None or not hasattr(model, "blocks"):
        raise Broken(
            "generation cannot use the model",
            where="model.context_length, model.blocks",
            fix="give the model both: how many tokens it sees, and its layers",
        )
    total = context + context // 2 + 2
    texts = subject.ids(2, length=total, seed=11).tolist()
    lengths = [9, 5]
    reader = Reader(model, [text[:n] for text, n in zip(texts, lengths, strict=True)], torch.device("cpu"), True)
    with torch.inference_mode():
        while lengths[0] < total:
            logits = reader.next_logits()
            for row, text in enumerate(texts):
                start = window_start(lengths[row], context)
                window = torch.tensor([text[start : lengths[row]]])
                require_close(
                    logits[row],
                    model(window, return_logits=True)[0, -1],
                    "logits with a cache are not those without",
                    name=f"logits of row {row} after {lengths[row]} tokens (context: {context})",
                    fix="store keys and values with context.cache.update(layer_index, k, v), attend to all it returns, "
                    "and take positions from context.rotary; keep no other state between calls",
                    axes=("token id",),
                    tolerance=_COMPILED_TOLERANCE,
                )
            reader.append([text[n] for text, n in zip(texts, lengths, strict=True)])
            lengths = [n + 1 for n in lengths]


# ---------------------------------------------------------------- the start, and the gradient


@contract("loss at init", "the loss at initialization is within 10% of ln V", "model", "loss")
def loss_at_init(subject: Subject) -> None:
    """A model that knows nothing gives each of V tokens the same probability: ln V nats.

    A loss that adds other terms tells the plain one as its metric `cross_entropy`, which is then what is looked at.
    """
    out = loss_sum(subject.loss(), subject.model(), subject.batch())
    plain = out.metrics.get("cross_entropy", out.sum)
    loss, expected = float(plain.detach()) / int(out.count), math.log(V)
    if not abs(loss - expected) <= 0.1 * expected:
        raise Broken(
            f"the loss at initialization is {loss:.3f} nats, ln V is {expected:.3f}",
            where="loss sum / count",
            fix="start with small logits: smaller initial weights, a norm before the head; return sums over tokens",
        )


@contract("gradient", "a gradient reaches every parameter, and none is NaN in bfloat16", "model", "loss")
def gradient(subject: Subject) -> None:
    """One backward pass under autocast to bfloat16, as training does where hardware is fast at it."""
    model = subject.model(wild=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = loss_sum(subject.loss(), model, subject.batch())
    out.sum.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None or not parameter.grad.any():
            raise Broken(
                "no gradient reaches a parameter",
                where=f"{name}, shape {list(parameter.shape)}",
                fix="use it in forward (not detached, not under no_grad), or freeze it with requires_grad_(False)",
            )
        wrong = ~parameter.grad.isfinite()
        if wrong.any():
            at = position(parameter, wrong.nonzero()[0], tuple(f"axis {i}" for i in range(parameter.dim())))
            raise Broken(
                "a gradient is not finite in bfloat16",
                where=f"{name}.grad: {at}",
                fix="compute exponentials, sums of squares and divisions in float32: x.float()",
            )


@contract("ignored", "a target that is not to be predicted counts for nothing", "loss")
def ignored(subject: Subject) -> None:
    """A batch half of whose rows have no target, against the other half alone: the same sum, count and gradients."""
    full = subject.batch()
    half = full.inputs.shape[0] // 2
    targets = full.targets.clone()
    targets[half:] = IGNORE
    fix = "pass ignore_index=IGNORE, sum over (targets != IGNORE) alone, and return how many those are as the count"
    message = "a target that is not to be predicted changes the loss"
    found = []
    for batch in (TokenBatch(full.inputs, targets, full.documents), rows_of(full, 0, half)):
        model = subject.model(wild=True)
        out = loss_sum(subject.loss(), model, batch)
        out.sum.backward()
        found.append((out, gradients(model)))
    (with_it, its_gradients), (without, expected) = found
    require_close(with_it.count, without.count, message, name="count", fix=fix, tolerance=0)
    require_close(with_it.sum, without.sum, message, name="loss sum", fix=fix)
    _require_gradients(its_gradients, expected, message, fix, _GRADIENT_TOLERANCE)


# ---------------------------------------------------------------- the same, computed otherwise


@contract("compiled", "compiled is eager: the same loss and gradients", "model", "loss")
def compiled(subject: Subject) -> None:
    """torch.compile of model and loss against neither, from the same weights."""
    batch = subject.batch()
    eager, other = subject.model(wild=True), subject.model(wild=True)
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
    except Exception as error:
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
    require_close(out.sum, expected.sum, message, name="loss", fix=fix, tolerance=_COMPILED_TOLERANCE)
    _require_gradients(gradients(other), gradients(eager), message, fix, _COMPILED_TOLERANCE)


def _require_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], message: str, fix: str, tolerance: float
) -> None:
    """Equal up to `tolerance` of each parameter's largest gradient (or of 5% of the model's, if that is larger:
    some gradients are zero but for rounding, as those of the biases of keys)."""
    floor = 0.05 * max(float(g.abs().max()) for g in expected.values() if g.numel())
    for name, value in expected.items():
        scale = max(float(value.abs().max()), floor)
        axes = tuple(f"axis {i}" for i in range(value.dim()))
        require_close(
            actual[name], value, message, name=f"{name}.grad", fix=fix, tolerance=tolerance, scale=scale, axes=axes
        )


@contract("accumulation", "micro-batches add up to the batch", "model", "loss", "optimizer")
def accumulation(subject: Subject) -> None:
    """Sum, count, metrics, gradients and, of an optimizer, two steps: 8 rows at once, and 2 at a time."""
    wild = not _steps_matter(subject)
    _require_same_work(
        subject,
        work(subject, pieces=4, wild=wild),
        work(subject, pieces=1, wild=wild),
        "four micro-batches do not give what one batch gives",
        "return sums over tokens, not means; keep no state from one forward pass to the next",
    )


@contract("2 ranks", "two processes with half the batch each are one with the whole", "model", "loss", "optimizer")
def ranks(subject: Subject) -> None:
    """Gradients averaged by DistributedDataParallel over gloo and, of an optimizer, two steps."""
    wild = not _steps_matter(subject)
    halves = pool().run(subject, wild=wild)
    if isinstance(halves, str):
        raise Broken(
            f"it does not train on two processes: {halves[:300]}",
            where="two processes on this CPU, gloo",
            fix="use every parameter in every forward pass, in the same order on all processes",
        )
    _require_same_work(
        subject,
        halves,
        work(subject, pieces=1, wild=wild),
        "two processes do not give what one gives",
        "return sums over tokens, not means; let a forward pass depend on its own rows only",
    )


def _steps_matter(subject: Subject) -> bool:
    """Whether what an optimizer makes of gradients is compared, from weights as they are and not wild ones.

    It is not for other parts: an optimizer that divides by the size of a gradient makes much of a rounding error.
    """
    return "optimizer" in subject.parts


def _require_same_work(subject: Subject, actual: Work, expected: Work, message: str, fix: str) -> None:
    for name, value in expected.sums.items():
        require_close(actual.sums[name], value, message, name=f"loss {name}", fix=fix, tolerance=1e-5)
    _require_gradients(actual.gradients, expected.gradients, message, fix, _GRADIENT_TOLERANCE)
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

    model = subject.model(wild=True)
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


@contract("off switch", "switched off it is the baseline, bit for bit", "model", "loss", "optimizer", "schedule", "mix")
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
    if switched_off.kind in ("schedule", "mix"):
        _require_equal_functions(switched_off, baseline)
        return
    switched_off, baseline = at_length(switched_off, T), at_length(baseline, T)
    ours, theirs = (work(s, pieces=1, documents=True, wild=False) for s in (switched_off, baseline))
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
    mixing = switched_off.kind == "mix"
    ours, theirs = (s.mixture() if mixing else s.schedule() for s in (switched_off, baseline))
    points = [i / 100 for i in range(101)] if mixing else list(range(101))
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
