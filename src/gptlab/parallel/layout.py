"""How a model lies over the processes of a run.

A `Layout` is all that the loop knows of parallelism: it wraps the model, says when gradients are to be exchanged, clips
them, and gives whole weights back. Three layouts exist: one process, a copy of the model in each (DDP), and pieces of
it in each (FSDP, `gptlab.parallel.sharded`). A new one is a class; the loop, checkpoints and contracts do not change.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptlab.errors import ConfigError
from gptlab.loss import TokenBatch
from gptlab.parallel.world import World


class Layout(ABC):
    """A way to spread one model and one global batch over the processes of `world`."""

    replaces_parameters = False
    """Whether `wrap` puts others in the place of the model's parameters, which an optimizer must be given anew."""

    copies = 1
    """How many processes compute the same loss, each with a part of the layers."""

    def __init__(self, world: World, device: torch.device) -> None:
        self.world, self.device = world, device

    @property
    def data_rank(self) -> int:
        """Which share of a global batch this process reads, of `data_size`."""
        return self.world.rank

    @property
    def data_size(self) -> int:
        """In how many shares the processes read a global batch."""
        return self.world.size

    def part(self, batch: TokenBatch) -> TokenBatch:
        """What this process computes of its share of a batch: by default all."""
        return batch

    @property
    @abstractmethod
    def loss_scale(self) -> float:
        """What a process's share of the loss is multiplied by before `backward`, so that gradients are those of the sum
        over all processes."""

    def meet(self) -> None:  # noqa: B027 - most have no groups of their own
        """Make the groups of processes that it needs; they are made at the latest when needed. All call it."""

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """What is called in a training step in the place of `model`; it has the attributes of `model` too."""

    @abstractmethod
    def backward_sync(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: gradients are exchanged with the `last` of a step alone."""

    def clip(self, model: nn.Module, limit: float | None) -> Tensor:
        """Scale all gradients so that their norm is at most `limit` (None: leave them). Returns the norm before, a
        scalar on the device."""
        return nn.utils.clip_grad_norm_(model.parameters(), float("inf") if limit is None else limit)

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Every parameter whole, on the CPU, by name, on the main process; empty on the others. All call it."""
        if not self.world.is_main:
            return {}
        return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with all of its weights on every process, to be read and not trained: `model`, or a copy. All
        processes enter it."""
        yield model

    def as_built(self, model: nn.Module) -> nn.Module:
        """The model to count on: as it was before it was laid over processes."""
        return model

    @abstractmethod
    def unwrap(self, wrapped: nn.Module) -> nn.Module:
        """The model that `wrap` was given."""


class SingleProcess(Layout):
    """The model itself, on one device."""

    loss_scale = 1.0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`"""
        return model

    def backward_sync(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Nothing is exchanged."""
        return contextlib.nullcontext()

    def unwrap(self, wrapped: nn.Module) -> nn.Module:
        """`wrapped`"""
        return wrapped


class DataParallel(Layout):
    """A copy of the model in each process, which sees its share of the batch; gradients are averaged (Li et al. 2020,
    arXiv:2006.15704)."""

    @property
    def loss_scale(self) -> float:
        """DDP averages over processes, and the loss is the mean over all tokens of the global batch."""
        return float(self.world.size)

    def wrap(self, model: nn.Module) -> nn.Module:
        """DDP around `model`."""
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer torch renames an argument
            return _Replica(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def backward_sync(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """DDP's `no_sync` for all but the last micro-batch."""
        assert isinstance(wrapped, _Replica)
        return contextlib.nullcontext() if last else wrapped.no_sync()

    def unwrap(self, wrapped: nn.Module) -> nn.Module:
        """DDP's `module`."""
        module: nn.Module = wrapped.module
        return module


class _Replica(DistributedDataParallel):
    """DDP whose other attributes are those of its model, so that a loss may ask it for `logits`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def check_stretches(length: int, pieces: int) -> None:
    """Raise ConfigError where sequences of `length` tokens cannot be cut into so many equal stretches."""
    if length % pieces:
        nearest = max(1, round(length / pieces)) * pieces
        raise ConfigError(
            f"parallel.context: sequences of {length} tokens cannot be cut into {pieces} equal stretches; make "
            f"train.sequence_length {nearest}, or parallel.context a number that divides it",
            key="parallel.context",
        )
