"""Several processes, one run: who they are (`World`) and how a model lies over them (`Layout`)."""

from gptlab.parallel.choice import check_layout, choose_layout
from gptlab.parallel.layout import Layout
from gptlab.parallel.world import World, destroy_distributed, find_world, init_distributed, noticing_losses, restarts

__all__ = [
    "Layout",
    "World",
    "check_layout",
    "choose_layout",
    "destroy_distributed",
    "find_world",
    "init_distributed",
    "noticing_losses",
    "restarts",
]
