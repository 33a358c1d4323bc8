"""The processes of a run: which of them this one is, and the few collectives that others need.

`torchrun` starts the processes; `init_distributed` joins them. Nothing outside this package asks how many there are to
decide what to compute: how a model lies over them is a `Layout`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gptlab.errors import GptlabError, option

T = TypeVar("T")
_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """`values` summed over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, part: Tensor, count: int) -> Tensor:
        """Parts of `count` rows, one after the other: of equal numbers of rows, the last ones with fewer or none."""
        if self.size == 1:
            return part
        rows = -(-count // self.size)
        padded = part.new_zeros(rows, *part.shape[1:])
        padded[: len(part)] = part
        found = part.new_empty(rows * self.size, *part.shape[1:])
        dist.all_gather_into_tensor(found, padded)
        return found[:count]

    def all_reduce_min(self, value: int) -> int:
        """The smallest `value` of all processes."""
        if self.size == 1:
            return value
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return min(values)

    def all_reduce_max(self, value: int) -> int:
        """The largest `value` of all processes."""
        return -self.all_reduce_min(-value)

    def broadcast(self, value: T) -> T:
        """The main process's `value`, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def check_alike(self, values: Mapping[str, str]) -> None:
        """Raise GptlabError, on every process, where one of them has other `values` than the main one, by what they are
        called: a machine that was not brought up to date would train something else without a word."""
        if self.size == 1:
            return
        said: list[tuple[str, Mapping[str, str]]] = [(socket.gethostname(), values)] * self.size
        dist.all_gather_object(said, said[0])
        (host, main), *others = said
        for rank, (other, theirs) in enumerate(others, start=1):
            for name in main:
                if main[name] != theirs.get(name):
                    raise GptlabError(
                        f"process {rank} on {other} has another {name} ({theirs.get(name)}) than process 0 on {host} "
                        f"({main[name]}); give every machine the same, and start again"
                    )

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def find_world() -> World:
    """The world that torchrun's environment variables describe; one process where there are none.

    Raises GptlabError where they are not numbers, or not all there.
    """
    try:
        rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES.items())
    except ValueError:
        given = ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ)
        raise GptlabError(f"{given}: no numbers of processes; unset them, or start with torchrun") from None
    if not 0 <= rank < size or (size > 1 and "RANK" not in os.environ):
        raise GptlabError(
            f"WORLD_SIZE is {size} and RANK is {os.environ.get('RANK', 'not set')}; unset both, or start with torchrun"
        )
    return World(rank=rank, size=size, local_rank=local_rank)


def restarts() -> int:
    """How often torchrun has started the processes anew, after one of them was lost; 0 without torchrun."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def init_distributed(world: World, device: torch.device) -> bool:
    """Join the other processes: NCCL between GPUs, gloo between CPUs. Nothing to do for one process.

    Returns whether this call joined them: who joined leaves (`destroy_distributed`). torchrun's processes can join
    once only; a second group would find the addresses of the first.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():
        return False
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise GptlabError(
            f"WORLD_SIZE is {world.size} and {' and '.join(missing)} not set; unset it, or start with torchrun"
        )
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


@contextlib.contextmanager
def noticing_losses(world: World) -> Iterator[None]:
    """Within: a process that finds another one gone raises GptlabError, where torch says so in its own words."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no class for it: what it raises is a RuntimeError that names the file it is from
        if world.size > 1 and (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise GptlabError(
                "another process of this run is gone; its own words say why. torchrun goes on by itself where it may "
                f"restart, else the same command goes on with {option('resume', True)}"
            ) from None
        raise


def destroy_distributed(joined: bool) -> None:
    """Leave the other processes where `init_distributed` joined them."""
    if joined:
        dist.destroy_process_group()
