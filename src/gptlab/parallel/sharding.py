"""Sharding plans: how the weights of a model are cut over tensor-parallel processes.

A plan is data beside the component that it is for, its class attribute `sharding`: each of its linear layers by name,
cut by its outputs (`column`) or by its inputs (`row`), as Megatron-LM cuts an MLP (Shoeybi et al. 2019,
arXiv:1909.08053, section 3). Nothing else knows which layers a component has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from gptlab.errors import ConfigError
from gptlab.model.component import declared_by_class

STYLES: Mapping[str, type[ParallelStyle]] = {"column": ColwiseParallel, "row": RowwiseParallel}


def sharding_plan(model: nn.Module) -> dict[str, str]:
    """Linear layer → "column" or "row", by the plans of the model's components. A component's plan speaks for all that
    is inside it; layers that no plan names are held whole by every process. A plan is not inherited: a subclass may add
    what the plan does not know.

    Raises ConfigError where a plan names no linear layer of its component, or a way to cut that does not exist.
    """
    return dict(_plan(model, ""))


def _plan(module: nn.Module, path: str) -> Iterator[tuple[str, str]]:
    own = declared_by_class(module, "sharding")
    if own is None:
        for name, child in module.named_children():
            yield from _plan(child, f"{path}{name}.")
        return
    layers = dict(module.named_modules())
    for name, style in own.items():
        if not isinstance(layers.get(name), nn.Linear):
            raise ConfigError(f"{type(module).__name__}.sharding: it has no linear layer {name!r}")
        if style not in STYLES:
            raise ConfigError(f"{type(module).__name__}.sharding: {name}: {style!r} is neither column nor row")
        yield f"{path}{name}", style


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Cut the weights of `model` over the processes of the one-dimensional `mesh`, in place, by its sharding plan.

    Every process calls it with the same weights. What goes in and comes out is whole on each. Raises ConfigError where
    what is to be cut is no multiple of the processes.
    """
    plan = sharding_plan(model)
    for name, style in plan.items():
        layer = model.get_submodule(name)
        width = layer.out_features if style == "column" else layer.in_features
        if width % mesh.size():
            raise ConfigError(
                f"{name}: {width} {style}s cannot be shared by {mesh.size()} processes; make it a multiple"
            )
    return parallelize_module(model, mesh, {name: STYLES[style]() for name, style in plan.items()}) if plan else model
