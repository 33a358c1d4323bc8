"""A model cut over processes: each has a piece of every parameter, gradient and optimizer state (torch's FSDP2).

Zhao et al. 2023 (arXiv:2304.11277) and Rajbhandari et al. 2020 (arXiv:1910.02054, stage 3). A block's parameters are
gathered before it is computed and dropped after; gradients are averaged and cut in one collective. With fewer pieces
than processes the model is cut inside groups of neighbours, as those of one machine are, and each group has it whole.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from gptlab.errors import ConfigError
from gptlab.model.component import declared
from gptlab.parallel.layout import Layout
from gptlab.parallel.world import World


class Sharded(Layout):
    """The model in `pieces`, and as many times as there are groups of so many processes."""

    replaces_parameters = True

    def __init__(self, world: World, device: torch.device, pieces: int) -> None:
        super().__init__(world, device)
        self.pieces = pieces
        self._hollow: nn.Module | None = None  # the model as it was before it was cut, without memory

    @property
    def loss_scale(self) -> float:
        """Gradients are averaged over all processes, and the loss is the mean over all tokens of the global batch."""
        return float(self.world.size)

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, cut in place: its blocks each by itself, and what is left of it together.

        Raises ConfigError for a parameter that cannot be cut.
        """
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                raise ConfigError(
                    f"parallel.shard: {name} is a lone number and cannot be cut; give it one dimension, or set "
                    "parallel.shard to 1",
                    key="parallel.shard",
                )
        self._hollow = _copy_on(torch.device("meta"), model)
        said = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
        groups = self.world.size // self.pieces
        shape, names = ((self.pieces,), ("shard",)) if groups == 1 else ((groups, self.pieces), ("replicate", "shard"))
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        # What has no gradient, as the biases of a router, is moved by hand and stays whole.
        still = {parameter for parameter in model.parameters() if not parameter.requires_grad}
        for block in [*getattr(model, "blocks", ()), *(declared(model, "ahead") or ())]:
            fully_shard(block, mesh=mesh, ignored_params=still)
        fully_shard(model, mesh=mesh, ignored_params=still)
        for name, parameter in model.named_parameters():  # what a parameter says of itself, such as `stacked`
            for key, value in said[name].items():
                setattr(parameter, key, value)
        return model

    @contextlib.contextmanager
    def backward_sync(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Gradients stay whole, and are exchanged and cut with the last micro-batch."""
        assert isinstance(wrapped, FSDPModule)
        wrapped.set_requires_gradient_sync(last)
        yield

    def clip(self, model: nn.Module, limit: float | None) -> Tensor:
        """As of `Layout`; the norm is that of all pieces."""
        norm = super().clip(model, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """As of `Layout`: gathered one by one, so that no process holds the model twice."""
        found = {}
        for name, parameter in model.named_parameters():
            gathered = _gathered(parameter.detach())
            if self.world.is_main:
                found[name] = gathered.cpu().contiguous()
        return found

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """A copy with all weights, as long as it is read: a process needs the memory of one whole model more."""
        assert self._hollow is not None
        twin = _copy_on(self.device, self._hollow)
        with torch.no_grad():
            for (_, mine), (_, its) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
                its.copy_(_gathered(mine.detach()))
            for (_, mine), (_, its) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
                its.copy_(mine)
        for mine, its in zip(model.modules(), twin.modules(), strict=True):  # a window that has grown since
            for key, value in vars(mine).items():
                if not key.startswith("_") and key != "training":
                    setattr(its, key, value)
        yield twin.train(model.training)

    def unwrap(self, wrapped: nn.Module) -> nn.Module:
        """`wrapped`"""
        return wrapped


def _copy_on(device: torch.device, model: nn.Module) -> nn.Module:
    """A copy whose parameters have places on `device` and hold nothing yet; tied ones are tied."""
    places = {}
    for parameter in model.parameters():
        place = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
        vars(place).update(vars(parameter))
        places[id(parameter)] = place
    return copy.deepcopy(model, places)


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
