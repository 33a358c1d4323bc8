"""Optimizers and schedules.

An optimizer is built from `(named_parameters)` and sorts them by what they do: the *embedding* tables, the *head*,
*matrices* inside blocks, and *scalars* (every bias, gain and other parameter with fewer than two dimensions). Weight
decay applies to what has two dimensions. Each kind may have a learning rate of its own.

A schedule is built from `(total_steps)` and maps a step to a multiplier of every group's rate.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from gptlab.config import require_range
from gptlab.errors import ConfigError

NamedParameters = Iterable[tuple[str, Tensor]]
KINDS = ("embedding", "head", "matrix", "scalar")


def parameter_kind(name: str, parameter: Tensor) -> str:
    """What a parameter does, one of KINDS. A tied head is an embedding."""
    if parameter.ndim < 2:
        return "scalar"
    if name.startswith("head."):
        return "head"
    return "embedding" if any(part.endswith("embedding") for part in name.split(".")) else "matrix"


def parameter_groups(
    named_parameters: NamedParameters,
    *,
    rates: dict[str, float],
    weight_decay: float,
    slower: Callable[[str, float], float] = lambda kind, rate: rate,
) -> list[dict[str, Any]]:
    """One group a kind and width, in the order of KINDS: `rates` by kind, decay for what has two dimensions.

    Under muP a parameter says how its rate falls with width (`gptlab.model.mup`; 1 elsewhere); `slower(kind, rate)`
    is what an optimizer makes of that. The decay of a step, rate · decay, stays as it is.
    """
    members: dict[tuple[int, float], list[Tensor]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            kind = parameter_kind(name, parameter)
            width = getattr(getattr(parameter, "growth", None), "rate", 1.0)
            members.setdefault((KINDS.index(kind), slower(kind, width)), []).append(parameter)
    groups = []
    for (index, width), parameters in sorted(members.items(), key=lambda item: (item[0][0], -item[0][1])):
        kind = KINDS[index]
        lr, decay = rates[kind] * width, 0.0 if kind == "scalar" else weight_decay / width
        groups.append({"kind": kind, "params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Give every group `multiplier` times its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * multiplier


def _rates(lr: float, embedding_lr: float | None, head_lr: float | None, scalar_lr: float | None) -> dict[str, float]:
    given = {"embedding": embedding_lr, "head": head_lr, "matrix": None, "scalar": scalar_lr}
    require_range("optimizer", "at least 0", lr=lr, **{f"{kind}_lr": rate for kind, rate in given.items()})
    return {kind: lr if rate is None else rate for kind, rate in given.items()}


def _check_adam(betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    for beta in betas:
        require_range("optimizer", "at least 0 and below 1", betas=beta)
    require_range("optimizer", "above 0", eps=eps)
    require_range("optimizer", "at least 0", weight_decay=weight_decay)


def _check_used(groups: list[dict[str, Any]], **rates: float | None) -> None:
    """Raise ConfigError for a rate, by its argument's name, of a kind of which the model has no parameter."""
    for name, rate in rates.items():
        kind = name.removesuffix("_lr")
        if rate is not None and kind not in {group["kind"] for group in groups}:
            why = "a tied head is an embedding; set embedding_lr" if kind == "head" else "set it to null"
            raise ConfigError(f"optimizer.{name}: the model has no parameter of the kind {kind!r} to learn so; {why}")


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    parameters = [p for group in groups for p in group["params"]]
    return all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in parameters)


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), fused."""

    slot = "optimizer"

    def __init__(
        self,
        named_parameters: NamedParameters,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        embedding_lr: float | None = None,
        head_lr: float | None = None,
        scalar_lr: float | None = None,
    ) -> None:
        _check_adam(betas, eps, weight_decay)
        rates = _rates(lr, embedding_lr, head_lr, scalar_lr)
        groups = parameter_groups(named_parameters, rates=rates, weight_decay=weight_decay)
        _check_used(groups, embedding_lr=embedding_lr, head_lr=head_lr, scalar_lr=scalar_lr)
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=_can_fuse(groups))


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside blocks, AdamW for embeddings, head and scalars (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/): momentum, orthogonalized by a Newton–Schulz iteration.

    `lr` is the matrices' rate, `adamw_lr` that of everything else unless a kind has its own. `adjust_lr`:
    *original* scales the rate by √max(1, rows/columns), *match_rms_adamw* by 0.2·√max(rows, columns), so that a rate
    tuned for AdamW fits (Liu et al. 2025, arXiv:2502.16982, section 2.2). Both algorithms are torch's own.
    Under muP the rate of an orthogonal update needs no change with width as *original* (its spectral norm is what muP
    asks for: Yang et al. 2023, arXiv:2310.17813), and falls by √n where it matches AdamW's.
    """

    slot = "optimizer"

    def __init__(
        self,
        named_parameters: NamedParameters,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr: Literal["original", "match_rms_adamw"] = "original",
        weight_decay: float = 0.0,
        adamw_lr: float = 1e-3,
        embedding_lr: float | None = None,
        head_lr: float | None = None,
        scalar_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        _check_adam(betas, eps, weight_decay)
        require_range("optimizer", "at least 0", lr=lr, adamw_lr=adamw_lr)
        require_range("optimizer", "at least 0 and below 1", momentum=momentum)
        require_range("optimizer", "from 1 to 99", ns_steps=ns_steps)  # torch's own limit
        rates = {**_rates(adamw_lr, embedding_lr, head_lr, scalar_lr), "matrix": lr}

        def slower(kind: str, rate: float) -> float:
            return rate if kind != "matrix" else 1.0 if adjust_lr == "original" else math.sqrt(rate)

        groups = parameter_groups(named_parameters, rates=rates, weight_decay=weight_decay, slower=slower)
        _check_used(groups, embedding_lr=embedding_lr, head_lr=head_lr, scalar_lr=scalar_lr)
        matrices = [group for group in groups if group["kind"] == "matrix"]
        others = [group for group in groups if group["kind"] != "matrix"]
        wrong = [p for group in matrices for p in group["params"] if p.ndim != 2]
        if wrong:
            raise ConfigError(
                f"optimizer: Muon orthogonalizes matrices, but a parameter has shape {tuple(wrong[0].shape)}; use AdamW"
            )
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices,
                lr=lr,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr,
            )
            self._parts.append(muon)
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=adamw_lr, betas=betas, eps=eps, fused=_can_fuse(others)))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's own groups and state, so that it saves and loads as one."""
        matrices = [group for group in self.param_groups if group["kind"] == "matrix"]
        others = [group for group in self.param_groups if group["kind"] != "matrix"]
        for part, groups in zip(self._parts, [g for g in (matrices, others) if g], strict=True):
            part.param_groups, part.state = groups, self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict ends here, with groups and state replaced
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both parts."""
        loss = closure() if closure is not None else None
        for part in self._parts:
            part.step()
        return loss


class _Schedule(abc.ABC):
    """Linear warmup over the first `warmup` of the run, then the shape of a subclass, down to `final`."""

    def __init__(self, total_steps: int, *, warmup: float = 0.02, final: float = 0.1) -> None:
        require_range("schedule", "from 0 to 1", warmup=warmup, final=final)
        self.total, self.warmup, self.final = total_steps, round(warmup * total_steps), final

    def __call__(self, step: int) -> float:
        """The multiplier of the learning rate at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.final + (1 - self.final) * self.shape(min(1.0, progress))

    @abc.abstractmethod
    def shape(self, progress: float) -> float:
        """From 1 at progress 0 to 0 at progress 1."""


class Cosine(_Schedule):
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts)."""

    slot = "schedule"

    def shape(self, progress: float) -> float:
        """½(1 + cos π·progress)"""
        return 0.5 * (1 + math.cos(math.pi * progress))


class Linear(_Schedule):
    """A straight line from 1 to `final`."""

    slot = "schedule"

    def shape(self, progress: float) -> float:
        """1 − progress"""
        return 1 - progress


class WSD(_Schedule):
    """Warmup, a plateau, and a linear decay over the last `decay` of the run (Hu et al. 2024, arXiv:2404.06395)."""

    slot = "schedule"

    def __init__(self, total_steps: int, *, warmup: float = 0.02, decay: float = 0.2, final: float = 0.0) -> None:
        super().__init__(total_steps, warmup=warmup, final=final)
        require_range("schedule", "from 0 to 1", decay=decay)
        if warmup + decay > 1 + 1e-9:
            raise ConfigError(
                f"schedule.decay: the last {decay:g} of the run and a warmup over its first {warmup:g} overlap; make "
                "them at most 1 together"
            )
        self.decay_steps = max(1, round(decay * total_steps))

    def shape(self, progress: float) -> float:
        """1 until the decay begins, then a straight line to 0."""
        remaining = (1 - progress) * max(1, self.total - self.warmup)
        return min(1.0, remaining / self.decay_steps)


class Constant(_Schedule):
    """Warmup, then no change."""

    slot = "schedule"

    def __init__(self, total_steps: int, *, warmup: float = 0.02) -> None:
        super().__init__(total_steps, warmup=warmup, final=1.0)

    def shape(self, progress: float) -> float:
        """1"""
        return 1.0


class PowerLaw(_Schedule):
    """Warmup, then n^(−`power`) at the n-th step after it, with no end in view (hlb-GPT's; Zhai et al. 2022,
    arXiv:2106.04560, section 3.5, with power ½): a run of any length is the start of a longer one.

    Warmup is a share of the run like everywhere, so it has to be lowered where the run is made longer.
    """

    slot = "schedule"

    def __init__(self, total_steps: int, *, warmup: float = 0.02, power: float = 0.5) -> None:
        super().__init__(total_steps, warmup=warmup, final=0.0)
        require_range("schedule", "at least 0", power=power)
        self.power = power

    def shape(self, progress: float) -> float:
        """n^(−power); the first step after the warmup is n = 1."""
        return float((1 + progress * max(1, self.total - self.warmup)) ** -self.power)
