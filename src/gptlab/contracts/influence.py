"""The contracts of what may influence what in a model: shapes, causality, packed documents, windows, batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptlab.contracts.core import (
    Broken,
    Skipped,
    contract,
    position,
    require_close,
)
from gptlab.contracts.subject import (
    Subject,
    V,
    loss_sum,
    seeded_hidden,
)
from gptlab.model.component import Context, before_step, declared, window_width

_POSITIONS = 64  # changed tokens at once: memory is this many sequences
_WINDOW_POSITIONS = 16  # the same, where layers are looked at one by one


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
    model = subject.model(perturbed=True)
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
            before, after = (seeded_hidden(model, x) for x in (ids, changed[at : at + 1]))
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


@contract("documents", "a packed document is what it would be alone, forward and backward", "model")
def documents(subject: Subject) -> None:
    """Each document of two rows alone equals itself packed, and sends no gradient to its neighbours."""
    model = subject.model(perturbed=True, documents=True)
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
    model = subject.model(perturbed=True).eval()
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
    model = subject.model(perturbed=True).train()
    ids, numbers = subject.ids(4), subject.documents(4)
    changed = ids.clone()
    changed[1] = (changed[1] + 1 + torch.arange(subject.length)) % V
    fix = "take no statistics over the batch axis, and keep nothing from one row for the next"
    with torch.no_grad():
        before, after = seeded_hidden(model, ids, numbers), seeded_hidden(model, changed, numbers)
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
    hidden = seeded_hidden(model, ids, numbers)
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
