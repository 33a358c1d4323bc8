"""What one process of many holds and sends, counted before there are any: a step of the real layout, on fake tensors
and torch's fake process group, which has as many members as one likes.

The first process is counted; the others hold as much, up to a rounding of pieces.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptlab.config import RunConfig, build
from gptlab.errors import GptlabError
from gptlab.hardware.recompute import recompute_blocks
from gptlab.loss import TokenBatch
from gptlab.model import build_model
from gptlab.model.backends import override
from gptlab.model.component import before_step, blocks_of, declared
from gptlab.model.pieces import local
from gptlab.parallel import Layout, World, check_layout, choose_layout
from gptlab.parallel.layout import DataParallel
from gptlab.planning.footprint import LiveBytes, fused_attention, materialize, reset_device_choices
from gptlab.training.accumulation import accumulate

_CPU = torch.device("cpu")
_COLLECTIVES = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "broadcast_": "broadcast",
    "alltoall_base_": "all-to-all",
}


@dataclass(frozen=True)
class Transfer:
    """What a step sends by one collective among the same number of processes.

    Attributes:
        collective: all-reduce, all-gather, …
        processes: that take part in a call.
        between_nodes: whether they are of several machines.
        calls: a step.
        payload: bytes of the whole tensors, those of all pieces together.
    """

    collective: str
    processes: int
    between_nodes: bool
    calls: int
    payload: int

    @property
    def sent(self) -> float:
        """Bytes that each process sends, in a ring: (n − 1)/n of the payload, for an all-reduce twice (Patarasuk and
        Yuan 2009, doi:10.1016/j.jpdc.2008.09.002)."""
        share = (self.processes - 1) / self.processes
        return self.payload * share * (2 if self.collective == "all-reduce" else 1)


@dataclass(frozen=True)
class RankPlan:
    """One process of `processes`, with `micro_batch` sequences at once, `micro_batches` times a step; bytes.

    `working` is the most that a forward and a backward pass need beyond weights, gradients and optimizer state:
    activations, and what is gathered for them.
    """

    processes: int
    micro_batch: int
    micro_batches: int
    weights: int
    gradients: int
    optimizer: int
    working: int
    transfers: tuple[Transfer, ...]

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return self.weights + self.gradients + self.optimizer + self.working


def plan_rank(
    config: RunConfig,
    vocab_size: int,
    processes: int,
    *,
    per_node: int,
    micro_batch: int | None = None,
    accelerator: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> RankPlan:
    """The plan of one of `processes`, `per_node` on each machine; `micro_batch` None: the config's, or one.

    `accelerator`, `dtype`: as of `footprint`. Raises ConfigError where the layout cannot be.
    """
    world = World(0, processes)
    check_layout(config, world)
    if dist.is_initialized():
        raise GptlabError("processes are planned by one that has not joined others; start it without torchrun")
    with _fake_group(processes):
        layout = without_reducer(choose_layout(world, _CPU, config.parallel))
        rows = config.sequences_per_step // layout.data_size
        fixed = config.system.micro_batch
        micro_batch = min(rows, micro_batch or (1 if fixed == "auto" else fixed))
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        model = build_model(config, vocab_size, device="meta")
        with fake:
            materialize(model)
        kernel = override(fused_attention) if accelerator else contextlib.nullcontext()
        with kernel, warnings.catch_warnings(action="ignore"):  # FSDP looks at memory that is none
            return measure(
                config, model, layout, micro_batch, -(-rows // micro_batch), per_node, dtype, fake, accelerator
            )


def measure(
    config: RunConfig,
    model: nn.Module,
    layout: Layout,
    micro_batch: int,
    micro_batches: int,
    per_node: int,
    dtype: torch.dtype,
    mode: contextlib.AbstractContextManager[Any],
    accelerator: bool,
) -> RankPlan:
    """Count a step of `model` in `layout`, whose processes are there, real or fake; `mode` is entered for computing."""
    layout.meet()  # outside `mode`: who is in a group is known, and no fake
    recompute_blocks(blocks_of(model), config.parallel.recompute)
    whole = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    wrapped = layout.wrap(model)
    loss = build("loss", config.loss)
    if accelerator:
        reset_device_choices(model, loss)
    optimizer = build("optimizer", config.optimizer, named_parameters=list(model.named_parameters()))
    if (share := declared(optimizer, "share_work")) is not None:
        share(layout.world)
    before_step(model.train(), 1.0)
    counts: list[_Calls] = []
    with mode:
        ids = torch.zeros(micro_batch, config.train.sequence_length, dtype=torch.int64)

        def pieces(count: int) -> Iterator[TokenBatch]:
            for _ in range(count):
                yield TokenBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids))

        def passes(count: int) -> None:
            with _Calls(per_node) as calls:
                accumulate(wrapped, loss, pieces(count), global_targets=1, layout=layout, dtype=dtype)
            counts.append(calls)

        passes(1)  # makes gradients, as every micro-batch but the first finds them
        if wrapped is not model:
            passes(1)  # DDP lays its buckets out anew, once
    optimizer.step()  # outside `mode`: where its pieces begin is no fake
    with mode:
        with LiveBytes() as live:
            passes(2 if micro_batches > 1 else 1)
        with _Calls(per_node) as ending:
            layout.clip(model, config.train.gradient_clip)
            optimizer.step()
    state = [value for of_one in optimizer.state.values() for value in of_one.values() if isinstance(value, Tensor)]
    found = RankPlan(
        processes=layout.world.size,
        micro_batch=micro_batch,
        micro_batches=micro_batches,
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=_bytes([p for p in model.parameters() if p.requires_grad]),
        optimizer=_bytes(state),
        working=live.peak,
        transfers=(),
    )
    transfers = _a_step(counts[0], counts[-1], micro_batches) + ending.found()
    if _has_copies(layout):
        transfers += (Transfer("all-reduce", layout.world.size, layout.world.size > per_node, 1, whole),)
    return replace(found, transfers=_merged(transfers))


def _a_step(one: _Calls, two: _Calls, micro_batches: int) -> tuple[Transfer, ...]:
    """What `micro_batches` send: the last one as alone, each before it what a second one adds."""
    alone = {(t.collective, t.processes, t.between_nodes): t for t in one.found()}
    if micro_batches == 1:
        return tuple(alone.values())
    found = []
    for both in two.found():
        key = (both.collective, both.processes, both.between_nodes)
        last = alone.get(key, Transfer(*key, 0, 0))
        more = micro_batches - 1
        calls = last.calls + more * (both.calls - last.calls)
        found.append(Transfer(*key, calls, last.payload + more * (both.payload - last.payload)))
    return tuple(found)


def _merged(transfers: tuple[Transfer, ...]) -> tuple[Transfer, ...]:
    found: dict[tuple[str, int, bool], Transfer] = {}
    for one in transfers:
        key = (one.collective, one.processes, one.between_nodes)
        before = found.get(key, Transfer(*key, 0, 0))
        found[key] = Transfer(*key, before.calls + one.calls, before.payload + one.payload)
    return tuple(one for one in sorted(found.values(), key=lambda one: -one.sent) if one.calls and one.processes > 1)


class _Calls(TorchDispatchMode):
    """Notes every collective: what it moves, and among whom."""

    def __init__(self, per_node: int) -> None:
        super().__init__()
        self.per_node = per_node
        self.noted: list[Transfer] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d" and name in _COLLECTIVES:
            group = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.ScriptObject))
            ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(group))
            nodes = {rank // self.per_node for rank in ranks}
            sizes = [_size(part) for part in args[:2]]  # pieces and the whole; an all-reduce has one
            self.noted.append(Transfer(_COLLECTIVES[name], len(ranks), len(nodes) > 1, 1, max(sizes)))
        return func(*args, **(kwargs or {}))

    def found(self) -> tuple[Transfer, ...]:
        """All of a kind together."""
        return _merged(tuple(self.noted))


def _size(part: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(part) if isinstance(leaf, Tensor))


def _bytes(tensors: list[Tensor]) -> int:
    parts = {id(tensor): local(tensor) for tensor in tensors}
    return sum(part.numel() * part.element_size() for part in parts.values())


class _Copies(DataParallel):
    """Copies without DDP's buckets, which take real memory; what they exchange is every gradient, once."""

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def backward_sync(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def without_reducer(layout: Layout) -> Layout:
    """`layout` with `_Copies` in the place of DDP."""
    if type(layout) is DataParallel:
        return _Copies(layout.world, layout.device)
    inner = vars(layout).get("inner")
    if inner is not None:
        vars(layout)["inner"] = without_reducer(inner)
    return layout


def _has_copies(layout: Layout) -> bool:
    return isinstance(layout, _Copies) or isinstance(vars(layout).get("inner"), _Copies)


@contextlib.contextmanager
def _fake_group(processes: int) -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
