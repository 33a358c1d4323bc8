"""An optimizer of your own: the sign of a momentum. Edit from here."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptlab.optim import NamedParameters, parameter_groups


class MyIdea(torch.optim.Optimizer):
    """p ← p − lr · sign(momentum) (Lion without its interpolation, Chen et al. 2023, arXiv:2302.06675)."""

    slot = "optimizer"

    def __init__(
        self, named_parameters: NamedParameters, *, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.1
    ) -> None:
        rates = dict.fromkeys(("embedding", "head", "matrix", "scalar"), lr)
        groups = parameter_groups(named_parameters, rates=rates, weight_decay=weight_decay)
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. What it must remember is in `self.state[parameter]`, as tensors, so that checkpoints hold it."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(state["momentum"].sign(), alpha=group["lr"])
        return loss
