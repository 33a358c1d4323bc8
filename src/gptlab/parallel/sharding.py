"""Tensor parallelism: the weights of a layer cut over processes, each of which computes with its part alone.

As Megatron-LM cuts a block (Shoeybi et al. 2019, arXiv:1909.08053, section 3): a *column* layer has some of the outputs
on each process, a *row* layer some of the inputs, and between them nothing is exchanged; what a row layer makes is
summed over the processes. How a component is cut is data beside it, its attribute `sharding`: by name its layers,
"column" or "row", and the numbers of things that are "divided" among the processes, as heads are. Nothing else knows
which layers a component has, and one that says nothing is held whole by every process.

Letters: B batch, T sequence, D width, F what a layer makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor

from gptlab.errors import ConfigError
from gptlab.model.component import declared, declared_by
from gptlab.model.pieces import local
from gptlab.model.position import NoPosition

WAYS = ("column", "row", "divided")


def sharding_plan(model: nn.Module) -> dict[str, str]:
    """Layer → "column" or "row", by the plans of the model's components. A component's plan speaks for all that is
    inside it; layers that no plan names are held whole by every process. A plan is not inherited: a subclass may add
    what the plan does not know.

    Raises ConfigError where a plan names nothing of its component, or a way to cut that does not exist.
    """
    found = {}
    for path, component, plan in _components(model):
        for name, way in plan.items():
            _check(component, name, way)
            if way != "divided":
                found[f"{path}{name}"] = way
    return found


def held_whole(model: nn.Module) -> list[str]:
    """The classes of what no plan cuts and has matrices, in the order in which they come."""
    cut = {id(part) for _, component, plan in _components(model) if plan for part in component.modules()}
    kinds: dict[str, None] = {}
    for name, part in model.named_modules():
        if id(part) not in cut and any(p.ndim > 1 for p in part.parameters(recurse=False)):
            above = model.get_submodule(name.rpartition(".")[0])
            kinds[name if above is model else type(above).__name__] = None
    return list(kinds)


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Cut the weights of `model` over the processes of the one-dimensional `mesh`, in place, by its sharding plans.

    Every process calls it with the same weights. What goes into a component and comes out of it is whole on each; after
    a backward pass `finish_gradients` completes the gradients. Parameters that are cut are DTensors; those whose rows
    had to be ordered anew for it, as the heads of stacked q, k and v, say so: see `in_order`.

    Raises ConfigError where what is to be cut is no multiple of the processes.
    """
    check_divides(model, mesh.size())
    if any(part.slopes() is not None for part in model.modules() if isinstance(part, NoPosition)):
        raise ConfigError(
            "parallel.tensor: slopes of a head each (ALiBi) are not cut; use another model.position, or set "
            "parallel.tensor to 1",
            key="parallel.tensor",
        )
    for _, component, plan in list(_components(model)):
        if not plan:
            continue
        after_sums = {component.get_submodule(name).bias for name, way in plan.items() if way == "row"}
        for name, way in plan.items():
            if way == "divided":
                _divide(component, name, mesh.size())
            else:
                _cut(component, name, way, mesh)
        for parameter in component.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor) and parameter not in after_sums:
                parameter.partial = True
        component.register_forward_pre_hook(_Entrance(mesh))
    return model


def check_divides(model: nn.Module, pieces: int) -> None:
    """Raise ConfigError where `shard` would, for so many processes."""
    for path, component, plan in _components(model):
        for name, way in plan.items():
            _check(component, name, way)
            if way == "divided":
                _require_multiple(getattr(component, name), f"{path}{name}", "", pieces)
                continue
            layer = component.get_submodule(name)
            for size in _sizes(layer, way):
                _require_multiple(size, f"{path}{name}", f" {'rows' if way == 'row' else 'columns'}", pieces)


def _sizes(layer: nn.Module, way: str) -> tuple[int, ...]:
    """What is cut of a layer: each of the matrices that are stacked in it, its inputs, or a table's columns."""
    if isinstance(layer, nn.Embedding):
        return (layer.embedding_dim,)
    assert isinstance(layer, nn.Linear)
    return declared(layer.weight, "stacked") or (layer.out_features,) if way == "column" else (layer.in_features,)


def finish_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """After a backward pass: sum, over the processes of `mesh`, the gradients of what each has whole and used for its
    part alone, as the gains of a norm of heads."""
    for parameter in model.parameters():
        if declared(parameter, "partial") and parameter.grad is not None:
            dist.all_reduce(local(parameter.grad), group=mesh.get_group())


# ---------------------------------------------------------------- cutting


def _components(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module, Mapping[str, str]]]:
    own = declared_by(module, "sharding")
    if own is not None:
        yield path, module, own
        return
    for name, child in module.named_children():
        yield from _components(child, f"{path}{name}.")


def _check(component: nn.Module, name: str, way: str) -> None:
    kind = type(component).__name__
    if way not in WAYS:
        raise ConfigError(f"{kind}.sharding: {name}: {way!r} is neither column nor row nor divided")
    if way == "divided":
        if not isinstance(getattr(component, name, None), int):
            raise ConfigError(f"{kind}.sharding: it has no number {name!r} to divide")
        return
    layer = dict(component.named_modules()).get(name)
    if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Embedding) and way == "column"):
        raise ConfigError(f"{kind}.sharding: it has no linear layer {name!r}")


def _divide(component: nn.Module, name: str, pieces: int) -> None:
    whole = getattr(component, name)
    vars(component).setdefault("_whole", {})[name] = whole
    setattr(component, name, whole // pieces)


def _require_multiple(size: int, path: str, what: str, pieces: int) -> None:
    if size % pieces:
        fitting = max(number for number in range(1, pieces + 1) if size % number == 0)
        raise ConfigError(
            f"parallel.tensor: {path}: {size}{what} cannot be shared by {pieces} processes; make it a multiple, or "
            f"parallel.tensor {fitting}",
            key="parallel.tensor",
        )


def _cut(component: nn.Module, name: str, way: str, mesh: DeviceMesh) -> None:
    """Put in the place of a layer one that has its part of the weights."""
    layer = component.get_submodule(name)
    pieces, stacked = mesh.size(), declared(layer.weight, "stacked")
    if isinstance(layer, nn.Embedding):
        found: nn.Module = _like(_ColumnEmbedding, layer, mesh)
        _place(found, "weight", Shard(1), mesh, None)
    elif way == "column":
        order = None if stacked is None else _order(stacked, pieces)
        found = _like(_Column, layer, mesh)
        _place(found, "weight", Shard(0), mesh, order)
        if layer.bias is not None:
            _place(found, "bias", Shard(0), mesh, order)
    else:
        found = _like(_Row, layer, mesh)
        _place(found, "weight", Shard(1), mesh, None)
    parent, _, own = name.rpartition(".")
    setattr(component.get_submodule(parent), own, found)


def _order(stacked: tuple[int, ...], pieces: int) -> Tensor:
    """Rows of stacked matrices, so that each process's part of all of them is one stretch."""
    starts = [sum(stacked[:index]) for index in range(len(stacked))]
    parts = [
        torch.arange(start + size * place // pieces, start + size * (place + 1) // pieces, device="cpu")
        for place in range(pieces)
        for start, size in zip(starts, stacked, strict=True)
    ]
    return torch.cat(parts)


def _like(kind: type[nn.Module], layer: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """A layer of `kind` with all that `layer` has, parameters included."""
    found = kind.__new__(kind)
    vars(found).update(vars(layer))
    found._parameters = dict(layer._parameters)
    found._mesh = mesh
    return found


def _place(layer: nn.Module, name: str, placement: Placement, mesh: DeviceMesh, order: Tensor | None) -> None:
    whole = getattr(layer, name)
    laid = whole.detach() if order is None else whole.detach()[order.to(whole.device)]
    cut = nn.Parameter(
        distribute_tensor(laid, mesh, [placement], src_data_rank=None), requires_grad=whole.requires_grad
    )
    vars(cut).update(vars(whole))
    if order is not None:
        cut.order = order
    setattr(layer, name, cut)


class _Column(nn.Linear):
    """Some of the outputs: (…, D) → (…, F / processes)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))


class _Row(nn.Linear):
    """Some of the inputs, and the sum over processes: (…, D / processes) → (…, F)."""

    _mesh: DeviceMesh

    def forward(self, x: Tensor) -> Tensor:
        found = _Sum.apply(F.linear(x, local(self.weight)), self._mesh.get_group())
        return found if self.bias is None else found + self.bias.to(found.dtype)


class _ColumnEmbedding(nn.Embedding):
    """Some of the columns of a table: ids (…) → (…, D / processes)."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, local(self.weight))


class _Entrance:
    """Before a component: what goes in is whole, and its gradient the sum of what each process's part asks for."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def __call__(self, component: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_SumBack.apply(given[0], self.mesh.get_group()), *given[1:])


class _Sum(torch.autograd.Function):
    """The sum over processes; the gradient of each part is that of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        found = x.contiguous().clone()
        dist.all_reduce(found, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SumBack(torch.autograd.Function):
    """The identity; the gradient is the sum over processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        found = grad.contiguous().clone()
        dist.all_reduce(found, group=ctx.group)
        return found, None
