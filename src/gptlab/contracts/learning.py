"""The contracts of training and using a model: modes, generation, the loss at the start, gradients, ignored targets."""

from __future__ import annotations

import math

import torch

from gptlab.contracts.core import (
    COMPILED_TOLERANCE,
    GRADIENT_TOLERANCE,
    Broken,
    contract,
    position,
    require_close,
    require_gradients,
)
from gptlab.contracts.subject import (
    Subject,
    V,
    gradients,
    loss_sum,
    rows_of,
    seeded_hidden,
)
from gptlab.inference.decoder import Decoder, window_start
from gptlab.loss import IGNORE, TokenBatch

# ---------------------------------------------------------------- training and using


@contract("train and eval", "without dropout, training mode computes what evaluation does", "model")
def train_and_eval(subject: Subject) -> None:
    """One forward pass in either mode, dropout off: what is measured must be what was trained."""
    model, ids, numbers = subject.model(perturbed=True), subject.ids(2), subject.documents(2)
    with torch.no_grad():
        trained, used = seeded_hidden(model.train(), ids, numbers), seeded_hidden(model.eval(), ids, numbers)
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
    model = subject.model(perturbed=True).eval()
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
    decoder = Decoder(model, [text[:n] for text, n in zip(texts, lengths, strict=True)], torch.device("cpu"), True)
    with torch.inference_mode():
        while lengths[0] < total:
            logits = decoder.next_logits()
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
                    tolerance=COMPILED_TOLERANCE,
                )
            decoder.append([text[n] for text, n in zip(texts, lengths, strict=True)])
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
    model = subject.model(perturbed=True)
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
        model = subject.model(perturbed=True)
        out = loss_sum(subject.loss(), model, batch)
        out.sum.backward()
        found.append((out, gradients(model)))
    (with_it, its_gradients), (without, expected) = found
    require_close(with_it.count, without.count, message, name="count", fix=fix, tolerance=0)
    require_close(with_it.sum, without.sum, message, name="loss sum", fix=fix)
    require_gradients(its_gradients, expected, message, fix, GRADIENT_TOLERANCE)
