"""What modules do between steps.

A module may have `before_step(progress)`, called before each optimizer step with the share of the run that is done
(a window that grows), and `after_step(add_up)`, called after it, which may return metrics (a router that balances).
Neither waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def before_step(model: nn.Module, progress: float) -> None:
    """Tell every module that asks how much of the run is done, 0 to 1."""
    for module in model.modules():
        if hasattr(module, "before_step"):
            module.before_step(progress)


@torch.no_grad()
def after_step(model: nn.Module, add_up: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Let every module that wants act after a step; their metrics, averaged over modules. `add_up`: over processes."""
    found: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if hasattr(module, "after_step"):
            for name, value in module.after_step(add_up).items():
                found.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean() for name, values in found.items()}
