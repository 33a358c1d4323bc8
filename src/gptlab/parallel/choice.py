"""Which layout a run gets: by how many processes there are, and by what its config says."""

from __future__ import annotations

import torch

from gptlab.config import Parallel
from gptlab.errors import ConfigError
from gptlab.parallel.layout import DataParallel, Layout, SingleProcess
from gptlab.parallel.world import World


def choose_layout(world: World, device: torch.device, parallel: Parallel | None = None) -> Layout:
    """The layout for `world`: where there are several processes a copy in each, or as many pieces as `parallel` says.

    Raises ConfigError where the processes are no multiple of the pieces.
    """
    pieces = pieces_of(world, parallel or Parallel())
    if world.size == 1:
        return SingleProcess(world, device)
    if pieces == 1:
        return DataParallel(world, device)
    from gptlab.parallel.sharded import Sharded  # which takes time to import

    return Sharded(world, device, pieces)


def pieces_of(world: World, parallel: Parallel) -> int:
    """Over how many of the processes a model is cut. Raises as `choose_layout`."""
    wanted = parallel.shard
    if world.size == 1 or wanted == 1:
        return 1
    if wanted == "all":
        return world.size
    if world.size % wanted:
        fitting = [number for number in range(1, world.size + 1) if world.size % number == 0]
        nearest = min(fitting, key=lambda number: abs(number - wanted))
        raise ConfigError(
            f"parallel.shard: {world.size} processes are no multiple of {wanted}; use {nearest}, or all",
            key="parallel.shard",
        )
    return wanted
