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
    pieces, context = pieces_of(world, parallel), context_of(world, parallel)
    if world.size == 1:
        return SingleProcess(world, device)
    found: Layout = DataParallel(world, device)
    if pieces > 1:
        from gptlab.parallel.sharded import Sharded  # which takes time to import

        found = Sharded(world, device, pieces)
    if context > 1:
        from gptlab.parallel.context import ContextParallel

        found = ContextParallel(found, context)
    return found


def check_layout(config: RunConfig, world: World) -> None:
    """Raise ConfigError where `config` cannot lie over the processes of `world`: before they join each other."""
    pieces_of(world, config.parallel)
    context = context_of(world, config.parallel)
    shares, length = world.size // context, config.train.sequence_length
    if context > 1:
        check_stretches(length, context)
        if config.loss.use == "MultiToken":
            raise ConfigError(
                "parallel.context: MultiToken looks for targets beyond a stretch of a sequence; use CrossEntropy, or "
                "set parallel.context to 1",
                key="parallel.context",
            )
    if config.sequences_per_step % shares:
        among = f"{world.size} processes" if context == 1 else f"{shares} groups of {context} processes"
        raise ConfigError(
            f"train.batch_tokens: {config.sequences_per_step} sequences a step cannot be shared by {among}; "
            f"make it a multiple of {length * shares}",
            key="train.batch_tokens",
        )


def pieces_of(world: World, parallel: Parallel) -> int:
    """Over how many of the processes a model is cut. Raises as `choose_layout`."""
    if parallel.shard == "all":
        return world.size
    return _dividing(world, "shard", parallel.shard, ", or all")


def context_of(world: World, parallel: Parallel) -> int:
    """Over how many of the processes a sequence is cut. Raises as `choose_layout`."""
    return _dividing(world, "context", parallel.context)


def _dividing(world: World, name: str, wanted: int, otherwise: str = "") -> int:
    """`wanted`, which divides the processes; 1 where there is one."""
    if world.size == 1:
        return 1
    if world.size % wanted:
        fitting = [number for number in range(1, world.size + 1) if world.size % number == 0]
        nearest = min(fitting, key=lambda number: abs(number - wanted))
        raise ConfigError(
            f"parallel.{name}: {world.size} processes are no multiple of {wanted}; use {nearest}{otherwise}",
            key=f"parallel.{name}",
        )
    return wanted
