"""Which layout a run gets: by how many processes there are, and by what its config says."""

from __future__ import annotations

import torch

from gptlab.config import Parallel, RunConfig
from gptlab.errors import ConfigError
from gptlab.parallel.layout import DataParallel, Layout, SingleProcess, check_stretches
from gptlab.parallel.world import World


def choose_layout(world: World, device: torch.device, parallel: Parallel | None = None) -> Layout:
    """The layout for `world`: where there are several processes a copy in each, or as many pieces as `parallel` says,
    of the parameters and of each sequence. The processes have joined each other.

    Raises ConfigError where the processes are no multiple of the pieces.
    """
    parallel = parallel or Parallel()
    tensor, pieces, context = split(world, parallel)
    if world.size == 1:
        return SingleProcess(world, device)
    found: Layout = DataParallel(world, device)
    if pieces > 1 or tensor > 1:
        from gptlab.parallel.sharded import Sharded  # which takes time to import

        found = Sharded(world, device, pieces, tensor)
    if context > 1:
        from gptlab.parallel.context import ContextParallel

        found = ContextParallel(found, context)
    return found


def check_layout(config: RunConfig, world: World) -> None:
    """Raise ConfigError where `config` cannot lie over the processes of `world`: before they join each other."""
    tensor, _, context = split(world, config.parallel)
    together = tensor * context
    shares, length = world.size // together, config.train.sequence_length
    if context > 1:
        check_stretches(length, context)
        if config.loss.use == "MultiToken":
            raise ConfigError(
                "parallel.context: MultiToken looks for targets beyond a stretch of a sequence; use CrossEntropy, or "
                "set parallel.context to 1",
                key="parallel.context",
            )
    if config.sequences_per_step % shares:
        among = f"{world.size} processes" if together == 1 else f"{shares} groups of {together} processes"
        raise ConfigError(
            f"train.batch_tokens: {config.sequences_per_step} sequences a step cannot be shared by {among}; "
            f"make it a multiple of {length * shares}",
            key="train.batch_tokens",
        )


def split(world: World, parallel: Parallel) -> tuple[int, int, int]:
    """Over how many processes layers are cut, then parameters (among those with the same part of a layer), and each
    sequence. Raises as `choose_layout`."""
    if world.size == 1:
        return 1, 1, 1
    tensor = _dividing(world.size, "tensor", parallel.tensor)
    rest = world.size // tensor
    pieces = rest if parallel.shard == "all" else _dividing(rest, "shard", parallel.shard, ", or all")
    return tensor, pieces, _dividing(rest, "context", parallel.context)


def _dividing(processes: int, name: str, wanted: int, otherwise: str = "") -> int:
    """`wanted`, which divides the processes that are there for it."""
    if processes % wanted:
        fitting = [number for number in range(1, processes + 1) if processes % number == 0]
        nearest = min(fitting, key=lambda number: abs(number - wanted))
        raise ConfigError(
            f"parallel.{name}: {processes} processes are no multiple of {wanted}; use {nearest}{otherwise}",
            key=f"parallel.{name}",
        )
    return wanted
