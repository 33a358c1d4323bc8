"""The footprint of a config: parameters, FLOPs, and bytes by kind, counted without allocating memory.

One step (forward, loss, backward, optimizer) of the real model is taken on fake tensors, which have shapes and no
content, and every storage that would live is counted. A model of 1.5B parameters takes seconds on a laptop.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptlab.config import RunConfig, build
from gptlab.errors import ConfigError
from gptlab.hardware.device import available_memory
from gptlab.hardware.precision import autocast, pick_dtype
from gptlab.hardware.recompute import recompute_blocks
from gptlab.loss import TokenBatch
from gptlab.model import build_model
from gptlab.model.backends import Scores, View, override
from gptlab.model.component import before_step, blocks_of, declared, modules_with, training_flops
from gptlab.planning.formatting import format_bytes
from gptlab.planning.plan import Footprint, largest_fit

_CPU = torch.device("cpu")
_COUNTED = 1_000_000  # steps, of a growth that is asked for every one
_MARGIN = 2  # how many times a rough count must fit, so that no exact one is made
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "new_empty")  # the last: `_FusedAttention`'s output


def footprint(
    config: RunConfig,
    vocab_size: int,
    micro_batch: int,
    *,
    accelerator: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    compiled: bool = False,
) -> Footprint:
    """The footprint of one process of a run, with `micro_batch` sequences at once and matrix products in `dtype`.

    `accelerator`: count what a GPU would keep, where attention is one fused kernel (it keeps queries, keys, values,
    output and a float32 a query and head; Dao 2023, arXiv:2307.08691, section 3.1) and logits are whole. `compiled`:
    what torch.compile is taken to keep of that: what matrix products and attention put out, all else being computed
    again, or what `parallel.recompute` leaves where that is less; and of the logits, themselves and their gradient in
    `dtype`. Raises ConfigError where the model cannot be built.
    """
    model = build_model(config, vocab_size, device="meta")
    flops = training_flops(model, config.train.sequence_length)
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {model.head.weight} if hasattr(model, "head") else set()
    counts = [sum(p.numel() for p in model.parameters() if p not in skip) for skip in (set(), tables)]
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        override(fused_attention) if accelerator else contextlib.nullcontext(),
    ):
        materialize(model)
        recompute_blocks(blocks_of(model), config.parallel.recompute)
        loss = build("loss", config.loss)
        if accelerator:
            reset_device_choices(model, loss)
        before_step(model.train(), 1.0)  # windows at their widest
        bytes_of = _Step(model, loss, config.train.sequence_length, micro_batch, dtype)
        optimizer = build("optimizer", config.optimizer, named_parameters=list(model.named_parameters()))
        optimizer.step()
    state = [value for of_one in optimizer.state.values() for value in of_one.values() if isinstance(value, Tensor)]
    return Footprint(
        vocab_size=vocab_size,
        parameters=counts[0],
        parameters_without_embeddings=counts[1],
        flops_per_token=flops,
        micro_batch=micro_batch,
        compiled=compiled,
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=_bytes([p for p in model.parameters() if p.requires_grad]),
        optimizer=_bytes(state),
        activations=min(bytes_of.products, bytes_of.kept) if compiled else bytes_of.kept,
        logits=bytes_of.head_products if compiled else bytes_of.peak - bytes_of.kept,
    )


def describe_growth(config: RunConfig, parameters: int) -> str:
    """What can be said beforehand of how many batches a step takes; empty where the batch does not grow."""
    if config.train.growth is None:
        return ""
    growth = build("growth", config.train.growth, batch_tokens=config.train.batch_tokens, parameters=parameters)
    if declared(growth, "observe") is not None:
        return "as many a step as train.growth decides while it trains"
    step = count = 0
    while step < config.total_steps and count < _COUNTED:
        step, count = step + growth(step), count + 1
    return f"in {count:,} steps" if step >= config.total_steps else f"in more than {count:,} steps"


def fitting_footprint(
    config: RunConfig, vocab_size: int, rows: int, limit: int, *, halve: bool = True, **how: Any
) -> Footprint:
    """The footprint with the largest power-of-two share of `rows` sequences at once that needs at most `limit` bytes.

    `halve`: false asks for all `rows` or nothing. `how`: the keyword arguments of `footprint`. Raises ConfigError where
    it does not fit.
    """
    if not halve:
        whole = footprint(config, vocab_size, rows, **how)
        if whole.total > limit:
            raise ConfigError(_too_large(whole, limit, config))
        return whole
    one = footprint(config, vocab_size, 1, **how)
    if one.total > limit:
        raise ConfigError(_too_large(one, limit, config))
    if rows == 1:
        return one
    fits = largest_fit(one, footprint(config, vocab_size, 2, **how), rows, limit)
    if how.get("accelerator") and config.loss.get("chunk", "auto") in ("auto", None):
        return fits
    found = footprint(config, vocab_size, fits.micro_batch, **how)  # a loss in chunks is not linear in the batch
    while found.total > limit:
        found = footprint(config, vocab_size, -(-found.micro_batch // 2), **how)
    return found


def require_memory(config: RunConfig, vocab_size: int, device: torch.device, *, world_size: int = 1) -> None:
    """Raise ConfigError where a step of a run needs more memory than `device` has: told before anything is allocated,
    because a machine that runs out of memory ends processes without a word.

    Where it is far from that by a rough count, no exact one is made, which would take seconds.
    """
    rows, fixed = config.sequences_per_step // world_size, config.system.micro_batch
    rows = 1 if fixed == "auto" else min(fixed, rows)
    limit = available_memory(device)
    model = build_model(config, vocab_size, device="meta")
    if _rough_bytes(model, rows, config.train.sequence_length) < limit / _MARGIN:
        return
    static = 2 * _bytes([*model.parameters(), *model.buffers()])  # and gradients
    if static > limit:  # told at once: a step of what is this large takes minutes to count
        raise ConfigError(
            f"{config.name} does not fit: its weights and their gradients alone need {format_bytes(static)} of "
            f"{format_bytes(limit)} that {device} has free; lower model.dim or model.layers"
        )
    kind = pick_dtype(config.train.dtype, device)
    found = footprint(config, vocab_size, rows, accelerator=device.type == "cuda", dtype=kind)
    if found.total > limit:
        raise ConfigError(_too_large(found, limit, config))


def _rough_bytes(model: nn.Module, rows: int, length: int) -> float:
    """About what one step takes, rather too much: weights, gradients and two moments; what goes into each matrix and
    comes out of it four times, and five times each score. Infinite for a model that does not say its heads."""
    heads, blocks = getattr(model, "heads", None), getattr(model, "blocks", None)
    if not isinstance(heads, int) or not isinstance(blocks, nn.ModuleList):
        return float("inf")
    parameters = list(model.parameters())
    a_token = 4 * sum(sum(p.shape[-2:]) for p in parameters if p.ndim > 1) + 5 * heads * length * len(blocks)
    return 4 * (4 * sum(p.numel() for p in parameters) + float(rows) * length * a_token)


def _too_large(found: Footprint, limit: int, config: RunConfig) -> str:
    needs, rows = format_bytes(found.total), found.micro_batch
    cause = f"{config.name} does not fit: {rows} sequence{'s' * (rows > 1)} at once need{'s' * (rows == 1)} {needs}"
    cause += f" of {format_bytes(limit)} usable, {format_bytes(found.total - limit)} too much"
    if found.static > limit:
        fix = (
            f"{format_bytes(found.static)} are weights, gradients and optimizer state: lower model.dim or model.layers"
        )
    elif rows > 1:
        fix = "lower system.micro_batch, or set it to auto"
    else:
        fix = f"lower train.sequence_length (now {config.train.sequence_length}) or model.dim"
    return f"{cause}; {fix}, or take a larger card"


class _Step:
    """Bytes of one forward and backward pass, beyond weights and gradients.

    `kept`: alive when the model has been through; `peak`: the most at any moment of both passes; `products`,
    `head_products`: what torch.compile is taken to keep of the two.
    """

    def __init__(self, model: nn.Module, loss: Any, length: int, micro_batch: int, dtype: torch.dtype) -> None:
        self.kept = self.products = self.head_products = 0
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)  # as from the second micro-batch on
        with LiveBytes() as live:
            ids = torch.zeros(micro_batch, length, dtype=torch.int64)
            batch = TokenBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids))

            def end(*_: Any) -> None:
                self.kept, self.products = live.bytes, live.products

            handle = model.register_forward_hook(end)
            with autocast(_CPU, dtype):
                out = loss(model, batch)
                self.head_products = 2 * (live.products - self.products)
            handle.remove()
            out.sum.backward()
            self.peak = live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages that were allocated while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.products = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        product = func.overloadpacket.__name__ in _PRODUCTS
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in known:
                self._add(storage, product)
        return result

    def _add(self, storage: torch.UntypedStorage, product: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        self.products += size * product
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.bytes -= size


class _FusedAttention(torch.autograd.Function):
    """A stand-in for a fused attention kernel: allocates and keeps what one does, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        sums = torch.empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums, bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, _, bias = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None if bias is None else bias.clone()


def fused_attention(q: Tensor, k: Tensor, v: Tensor, view: View, scores: Scores, dropout: float) -> Tensor:
    """A kernel for `override`: what one fused kernel keeps, (B, H, T, C)."""
    slopes = scores.slopes_H
    learned = slopes is not None and slopes.requires_grad  # then the mask is a tensor with a gradient: (1, H, T, S)
    bias = slopes.to(q.dtype)[None, :, None, None].expand(1, -1, q.shape[2], k.shape[2]).clone() if learned else None
    return _FusedAttention.apply(q, k, v, bias)


def materialize(model: nn.Module) -> None:
    """Put fake tensors in the place of meta ones; what is shared (a tied head) stays shared, unlike with `to_empty`."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is not None and old not in made:
                    new = torch.empty_like(old, device=_CPU)
                    made[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    made[old].__dict__.update(old.__dict__)  # such as what muP notes there
                held[name] = made.get(old) if old is not None else None


def reset_device_choices(model: nn.Module, loss: Any) -> None:
    """Reset what was chosen because fake tensors claim to be on a CPU."""
    for module in modules_with(model, "backend"):
        module.backend = "auto"
    if getattr(loss, "chunk", None) == "auto":
        loss.chunk = None


def _bytes(tensors: list[Tensor]) -> int:
    """Of the storages of `tensors`, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
