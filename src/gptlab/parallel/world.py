"""Several processes, one run: what torchrun started, and the few collectives that the loop needs."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptlab.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def require_share(self, rows: int, length: int) -> None:
        """Raise ConfigError where `rows` sequences of `length` tokens a step cannot be shared by all processes."""
        if rows % self.size:
            raise ConfigError(
                f"train.batch_tokens: {rows} sequences a step cannot be shared by {self.size} processes; "
                f"make it a multiple of {length * self.size}"
            )

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def minimum(self, value: int) -> int:
        """The smallest `value` of all processes."""
        if self.size == 1:
            return value
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return min(values)

    def agree(self, value: T) -> T:
        """The main process's `value`, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def find_world() -> World:
    """The world that torchrun's environment variables describe; one process where there are none."""
    return World(
        rank=int(os.environ.get("RANK", 0)),
        size=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


def connect(world: World, device: torch.device) -> bool:
    """Join the other processes: nccl between GPUs, gloo between CPUs. Nothing to do for one process.

    Whether this call joined them; who joined leaves. torchrun's processes can join once only: a second group would
    find the addresses of the first.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():
        return False
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


def disconnect(joined: bool) -> None:
    """Leave the other processes where `connect` joined them."""
    if joined:
        dist.destroy_process_group()


def replicate(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model as every process calls it: itself, or wrapped so that gradients are averaged over processes."""
    if world.size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer torch renames an argument
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def gradient_sync(replica: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients are averaged over processes once a step, with its `last` micro-batch."""
    if isinstance(replica, DistributedDataParallel) and not last:
        return replica.no_sync()
    return contextlib.nullcontext()
