"""A model cut over processes: each has a piece of every parameter, gradient and optimizer state (torch's FSDP2).

Zhao et al. 2023 (arXiv:2304.11277) and Rajbhandari et al. 2020 (arXiv:1910.02054, stage 3). A block's parameters are
gathered before it is computed and dropped after; gradients are averaged and cut in one collective. With fewer pieces
than processes the model is cut inside groups of neighbours, as those of one machine are, and each group has it whole.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from gptlab.console import say
from gptlab.errors import ConfigError
from gptlab.model.component import blocks_of
from gptlab.model.pieces import in_order, local
from gptlab.parallel.layout import Layout
from gptlab.parallel.sharding import finish_gradients, held_whole, shard
from gptlab.parallel.world import World


class Sharded(Layout):
    """The model in `pieces`, and as many times as there are groups of so many processes; each piece, where `tensor` is
    above 1, by so many neighbouring processes that compute with a part of its layers each."""

    replaces_parameters = True

    def __init__(self, world: World, device: torch.device, pieces: int, tensor: int = 1) -> None:
        super().__init__(world, device)
        self.pieces, self.copies = pieces, tensor
        self._hollow: nn.Module | None = None  # the model as it was before it was cut, without memory

    @functools.cached_property
    def meshes(self) -> tuple[DeviceMesh, DeviceMesh]:
        """The processes among which parameters are cut and copied, and those that share layers. All ask for it."""
        groups = self.data_size // self.pieces
        names = ("replicate", "shard", "tensor")
        mesh = init_device_mesh(self.device.type, (groups, self.pieces, self.copies), mesh_dim_names=names)
        return mesh["shard"] if groups == 1 else mesh["replicate", "shard"], mesh["tensor"]

    @property
    def data_rank(self) -> int:
        """Processes that share layers read the same batch."""
        return self.world.rank // self.copies

    @property
    def data_size(self) -> int:
        """One share for the processes that share layers."""
        return self.world.size // self.copies

    @property
    def loss_scale(self) -> float:
        """Gradients are averaged over all shares, and the loss is the mean over all tokens of the global batch."""
        return float(self.data_size)

    def meet(self) -> None:
        """As of `Layout`."""
        _ = self.meshes

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
        data, tensor = self.meshes
        if self.copies > 1:
            shard(model, tensor)
            if self.world.is_main and (whole := held_whole(model)):
                say(f"parallel.tensor: each process has the whole of {', '.join(whole)}")
        said = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
        if self.data_size > 1:
            self._cut_states(model, data)
        for name, parameter in model.named_parameters():  # what a parameter says of itself, such as `stacked`
            for key, value in said[name].items():
                setattr(parameter, key, value)
        return model

    def _cut_states(self, model: nn.Module, mesh: DeviceMesh) -> None:
        # What has no gradient, as the biases of a router, is moved by hand and stays whole.
        still = {parameter for parameter in model.parameters() if not parameter.requires_grad}
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh, ignored_params=still)
        fully_shard(model, mesh=mesh, ignored_params=still)

    @contextlib.contextmanager
    def backward_sync(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Gradients stay whole, and are exchanged and cut with the last micro-batch."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
        yield

    def clip(self, model: nn.Module, limit: float | None) -> Tensor:
        """As of `Layout`; the norm is that of all pieces."""
        if self.copies > 1:
            finish_gradients(model, self.meshes[1])
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        alike: dict[Any, list[Tensor]] = {}  # tensors that lie over the same processes in the same way
        for gradient in gradients:
            cut = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
            alike.setdefault(cut, []).append(gradient)
        norms = [_gathered(nn.utils.get_total_norm(some)) for some in alike.values()]
        norm = torch.stack(norms).norm()
        if limit is not None:
            scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # as of torch's clip_grad_norm_
            torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
        return norm

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """As of `Layout`: gathered one by one, so that no process holds the model twice."""
        found = {}
        for name, parameter in model.named_parameters():
            gathered = in_order(parameter.detach(), parameter)
            if self.world.is_main:
                found[name] = gathered.cpu().contiguous()
        return found

    def as_built(self, model: nn.Module) -> nn.Module:
        """The model before it was cut, without memory."""
        return model if self._hollow is None else self._hollow

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """A copy with all weights, as long as it is read: a process needs the memory of one whole model more."""
        assert self._hollow is not None
        twin = _copy_on(self.device, self._hollow)
        with torch.no_grad():
            for (_, mine), (_, its) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
                its.copy_(in_order(mine.detach(), mine))
            for (_, mine), (_, its) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
                its.copy_(mine)
        for mine, its in zip(model.modules(), twin.modules(), strict=True):  # a window that has grown since
            own = {"training", "forward", *vars(mine).get("_whole", ())}  # `_whole`: numbers that were divided
            for key, value in vars(mine).items():
                if not key.startswith("_") and key not in own:
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
