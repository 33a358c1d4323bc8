"""torch.compile, where it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from gptlab.console import say


def try_compile(model: nn.Module, loss: Any, warm_up: Callable[[], None]) -> bool:
    """Compile `model` and, where it knows how, `loss`; `warm_up` runs both once, forward and backward.

    Where that fails (no compiler, an operation it cannot trace), says why and leaves both as they were.
    """
    model.compile()
    if hasattr(loss, "compile"):
        loss.compile()
    try:
        warm_up()
        return True
    except Exception as error:  # a compiler can fail in any way it likes
        model._compiled_call_impl = None
        if hasattr(loss, "uncompile"):
            loss.uncompile()
        model.zero_grad(set_to_none=True)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        say(
            f"torch.compile failed ({lines[0][:160]}); going on without it, slower. system.compile=false avoids the try"
        )
        return False
