"""torch.compile, where it works, and its modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gptlab.console import say
from gptlab.errors import ConfigError

GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that run a forward and a backward pass as CUDA graphs: one launch for hundreds of kernels."""


def choose_compile(asked: str | bool, device: torch.device, processes: int = 1) -> tuple[bool, str | None]:
    """Whether to compile, and in which mode of torch.compile (None: its default), as `system.compile` asks.

    Raises ConfigError for CUDA graphs off CUDA, where torch.compile would do without them and say nothing, and for
    several processes, whose gradients travel while a graph would run.
    """
    if isinstance(asked, bool) or asked == "auto":
        return asked is True or (asked == "auto" and device.type == "cuda"), None
    if asked in GRAPHS and device.type != "cuda":
        also = ", or max-autotune-no-cudagraphs" if asked == "max-autotune" else ""
        raise ConfigError(
            f"system.compile: {asked} runs CUDA graphs, and this is {device.type}; use true{also}", key="system.compile"
        )
    if asked in GRAPHS and processes > 1:
        raise ConfigError(
            f"system.compile: {asked} runs CUDA graphs, which are for one process, and here are {processes}; use true",
            key="system.compile",
        )
    return True, asked


def try_compile(model: nn.Module, loss: Any, warm_up: Callable[[], None], mode: str | None = None) -> bool:
    """Compile `model` and, where it knows how, `loss`; `warm_up` runs both once, forward and backward.

    Where that fails (no compiler, an operation it cannot trace), says why and leaves both as they were.
    """
    try:
        model.compile(mode=mode)
        if mode in GRAPHS:
            model._compiled_call_impl = _beginning_a_step(model._compiled_call_impl)
        if hasattr(loss, "compile"):
            loss.compile() if mode is None else loss.compile(mode=mode)
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


def _beginning_a_step(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, by which CUDA graphs may put its results where those of the call before it were. Nobody may keep these:
    what a step leaves is summed into tensors of its own, and gradients are moved (`keep_gradients`)."""

    def begin(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return call(*args, **kwargs)

    return begin


def keep_gradients(model: nn.Module, kept: set[int]) -> None:
    """Move gradients that a backward pass has made to memory of their own, out of that which the next CUDA graph writes
    to; from then on they are added to. `kept`: ids of the parameters whose gradients have been moved, which grows."""
    new = [p for p in model.parameters() if p.grad is not None and id(p) not in kept]
    for parameter, gradient in zip(new, torch._foreach_mul([p.grad for p in new], 1.0) if new else (), strict=True):
        parameter.grad = gradient
    kept.update(map(id, new))
