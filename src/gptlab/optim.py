"""Optimizers.

An optimizer is built from `(named_parameters)` and sorts them by what they do: the *embedding* tables, the *head*,
*matrices* inside blocks, and *scalars* (every bias, gain and other parameter with fewer than two dimensions). Weight
decay applies to what has two dimensions. Each kind may have a learning rate of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gptlab.config import require_range
from gptlab.errors import ConfigError
from gptlab.hardware.precision import has_fast_bfloat16
from gptlab.model.component import declared
from gptlab.model.mup import width_scaling

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
    mup_lr_rule: Callable[[str, float], float] = lambda kind, rate: rate,
) -> list[dict[str, Any]]:
    """One group a kind, width and set of processes that it is cut over, in the order of KINDS: `rates` by kind, decay
    for what has two dimensions.

    Under muP a parameter says how its rate falls with width (`gptlab.model.mup`; 1 elsewhere), by a rule for Adam;
    `mup_lr_rule(kind, rate)` is what another optimizer makes of that. The decay of a step, rate · decay, does not
    change.
    """
    members: dict[tuple[int, float, int], list[Tensor]] = {}
    meshes: dict[Any, int] = {}  # the processes that parameters are cut over, which torch takes apart in a step
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            kind = parameter_kind(name, parameter)
            width = mup_lr_rule(kind, width_scaling(parameter).rate)
            over = meshes.setdefault(getattr(parameter, "device_mesh", None), len(meshes))
            members.setdefault((KINDS.index(kind), width, over), []).append(parameter)
    groups = []
    for (index, width, _), parameters in sorted(members.items(), key=lambda item: (item[0][0], -item[0][1])):
        kind = KINDS[index]
        lr, decay = rates[kind] * width, 0.0 if kind == "scalar" else weight_decay / width
        groups.append({"kind": kind, "params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Give every group `multiplier` times its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * multiplier


def show_loss(
    optimizer: torch.optim.Optimizer, part: Tensor, all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> None:
    """Before a step, give `optimizer` the mean loss of its tokens where it asks for that. `part`: this process's part
    of it, a scalar; `all_reduce` sums over processes, in place."""
    if (see_loss := declared(optimizer, "see_loss")) is not None:
        see_loss(all_reduce(part.detach().clone()))


class _DecayByPerplexity:
    """Weight decay in the place of an optimizer's own: `weight_decay` / perplexity^`power`, of the step's own loss. All
    of it stays on the device. Without a loss there is none."""

    def __init__(self, optimizer: torch.optim.Optimizer, power: float) -> None:
        self.optimizer, self.power = optimizer, power
        self.loss: Tensor | None = None
        for group in optimizer.param_groups:
            group["base_decay"], group["weight_decay"] = group["weight_decay"], 0.0

    def see_loss(self, loss: Tensor) -> None:
        """The loss of the next step."""
        self.loss = loss

    @torch.no_grad()
    def apply(self) -> None:
        """What a step does before all else: every weight that has a gradient, times 1 − rate · decay."""
        if self.loss is None:
            return
        shrinking = torch.exp(-self.power * self.loss.float())
        if (found_inf := getattr(self.optimizer, "found_inf", None)) is not None:  # float16: the step will be none
            shrinking = torch.where(found_inf > 0, 0.0, shrinking)
        for group in self.optimizer.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if group["base_decay"] and weights:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["base_decay"] * shrinking)


def _decay_by_perplexity(optimizer: torch.optim.Optimizer, power: float) -> _DecayByPerplexity | None:
    """None where the power is 0, and decay the optimizer's own. Raises ConfigError where there is nothing to divide."""
    require_range("optimizer", "at least 0", perplexity_power=power)
    if power and not any(group["weight_decay"] for group in optimizer.param_groups):
        raise ConfigError(
            f"optimizer.perplexity_power: {power:g} is how weight decay falls with perplexity, and there is none; set "
            "weight_decay as well, or leave it out",
            key="optimizer.perplexity_power",
        )
    return _DecayByPerplexity(optimizer, power) if power else None


def _rates(lr: float, embedding_lr: float | None, head_lr: float | None, scalar_lr: float | None) -> dict[str, float]:
    given = {"embedding": embedding_lr, "head": head_lr, "matrix": None, "scalar": scalar_lr}
    require_range("optimizer", "above 0", lr=lr)
    require_range("optimizer", "at least 0", **{f"{kind}_lr": rate for kind, rate in given.items()})
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
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), fused.

    With a `perplexity_power` p above 0 the decay of a step is `weight_decay` / perplexity^p, perplexity being e to the
    step's own training loss: it grows as the model learns, against overfitting (Balsam 2023, hlb-GPT,
    https://github.com/tysam-code/hlb-gpt: 16 and 1.98 at 46 million parameters)."""

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
        perplexity_power: float = 0.0,
    ) -> None:
        _check_adam(betas, eps, weight_decay)
        rates = _rates(lr, embedding_lr, head_lr, scalar_lr)
        groups = parameter_groups(named_parameters, rates=rates, weight_decay=weight_decay)
        _check_used(groups, embedding_lr=embedding_lr, head_lr=head_lr, scalar_lr=scalar_lr)
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=_can_fuse(groups))
        self._decay = _decay_by_perplexity(self, perplexity_power)
        self.see_loss = None if self._decay is None else self._decay.see_loss

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step."""
        if self._decay is not None:
            self._decay.apply()
        return super().step(closure)


class World(Protocol):
    """The processes that share an optimizer's work (the real one is in `gptlab.parallel.world`)."""

    @property
    def rank(self) -> int:
        """Which of them this is."""

    @property
    def size(self) -> int:
        """How many there are."""

    def all_gather(self, part: Tensor, count: int) -> Tensor:
        """The first `count` rows of the parts of all, one after the other."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def all_gather(self, part: Tensor, count: int) -> Tensor:
        """`part`"""
        return part


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside blocks, AdamW for embeddings, head and scalars (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/): momentum, orthogonalized by a Newton–Schulz iteration.

    `lr` is the matrices' rate, `adamw_lr` that of everything else unless a kind has its own. `adjust_lr`:
    *original* scales the rate by √max(1, rows/columns), *match_rms_adamw* by 0.2·√max(rows, columns), so that a rate
    tuned for AdamW fits (Liu et al. 2025, arXiv:2502.16982, section 2.2).
    Under muP the rate of an orthogonal update needs no change with width as *original* (its spectral norm is what muP
    asks for: Yang et al. 2023, arXiv:2310.17813), and falls by √n where it matches AdamW's.

    `unstack`: matrices that a module keeps stacked in the rows of one parameter (q, k and v), which it says by an
    attribute `stacked` of the parameter, are orthogonalized each by itself, as Jordan et al. found better: they are
    three maps, and one that has most of the gradient would leave the others little of the update.

    `momentum_warmup`: over so many first steps momentum rises in a straight line from `momentum_start` to `momentum`,
    as in the speed runs that Muon comes from: early gradients say little of later ones.

    `perplexity_power`: as of `AdamW`, for all parameters that decay.
    """

    slot = "optimizer"

    def __init__(
        self,
        named_parameters: NamedParameters,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        momentum_warmup: int = 0,
        momentum_start: float = 0.85,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr: Literal["original", "match_rms_adamw"] = "original",
        unstack: bool = True,
        weight_decay: float = 0.0,
        adamw_lr: float = 1e-3,
        embedding_lr: float | None = None,
        head_lr: float | None = None,
        scalar_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        perplexity_power: float = 0.0,
    ) -> None:
        _check_adam(betas, eps, weight_decay)
        require_range("optimizer", "above 0", lr=lr, adamw_lr=adamw_lr)
        require_range("optimizer", "at least 0 and below 1", momentum=momentum, momentum_start=momentum_start)
        require_range("optimizer", "at least 0", momentum_warmup=momentum_warmup)
        require_range("optimizer", "from 1 to 99", ns_steps=ns_steps)
        rates = {**_rates(adamw_lr, embedding_lr, head_lr, scalar_lr), "matrix": lr}

        def mup_lr_rule(kind: str, rate: float) -> float:
            return rate if kind != "matrix" else 1.0 if adjust_lr == "original" else math.sqrt(rate)

        groups = parameter_groups(named_parameters, rates=rates, weight_decay=weight_decay, mup_lr_rule=mup_lr_rule)
        _check_used(groups, embedding_lr=embedding_lr, head_lr=head_lr, scalar_lr=scalar_lr)
        matrices = [group for group in groups if group["kind"] == "matrix"]
        others = [group for group in groups if group["kind"] != "matrix"]
        wrong = [p for group in matrices for p in group["params"] if p.ndim != 2]
        if wrong:
            raise ConfigError(
                "optimizer: Muon orthogonalizes matrices, but a parameter has shape "
                f"{tuple(wrong[0].shape)}; use AdamW",
                key="optimizer",
            )
        self.momentum, self.nesterov, self.ns_steps = momentum, nesterov, ns_steps
        self.momentum_warmup, self.momentum_start = momentum_warmup, momentum_start
        self.adjust_lr, self.unstack = adjust_lr, unstack
        self._world: World = Alone()
        self._adamw = torch.optim.AdamW(others, adamw_lr, betas, eps, fused=_can_fuse(others)) if others else None
        super().__init__([*matrices, *(self._adamw.param_groups if self._adamw is not None else [])], {})
        self._share()
        self._decay = _decay_by_perplexity(self, perplexity_power)
        self.see_loss = None if self._decay is None else self._decay.see_loss

    def _share(self) -> None:
        """Let AdamW work on this optimizer's own groups and state, so that both are saved and loaded as one."""
        if self._adamw is not None:
            self._adamw.param_groups = [group for group in self.param_groups if group["kind"] != "matrix"]
            self._adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict ends here, with groups and state replaced
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both parts."""
        loss = closure() if closure is not None else None
        if self._decay is not None:
            self._decay.apply()
        for group in self.param_groups:
            if group["kind"] == "matrix":
                self._step_matrices(group)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Momentum and decay matrix by matrix, Newton–Schulz once for all matrices of a shape."""
        weights = [p for p in group["params"] if p.grad is not None]
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # shape: (matrix, its direction)
        pieces: list[tuple[Any, Tensor]] = []  # (a matrix that is cut over processes, what to add to the whole)
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
                if self.momentum_warmup:  # a tensor, so that a checkpoint keeps it; on the CPU, so that nothing waits
                    state["step"] = torch.zeros((), device="cpu")
            momentum = self._momentum(state)
            buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
            direction = weight.grad.lerp(buffer, momentum) if self.nesterov else buffer
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            rows = declared(weight, "stacked") if self.unstack else None
            target = weight
            if hasattr(direction, "full_tensor"):  # every process orthogonalizes the whole, and adds its piece of that
                from gptlab.model.pieces import in_order

                direction = in_order(direction, weight)
                target = torch.zeros_like(direction)
                pieces.append((weight, target))
            for pair in zip(*(x.split(rows or len(weight)) for x in (target, direction)), strict=True):
                alike.setdefault(pair[0].shape, []).append(pair)
        for shape, pairs in alike.items():
            rate = group["lr"] * self._spectral_rate(*shape)
            at_once = max(1, _ELEMENTS // shape.numel())
            for start in range(0, len(pairs), at_once * self._world.size):
                some = pairs[start : start + at_once * self._world.size]
                steps = self._orthogonalize(torch.stack([direction for _, direction in some]))
                torch._foreach_add_([matrix for matrix, _ in some], list(steps.unbind()), alpha=-rate)
        if pieces:
            from gptlab.model.pieces import lay_out

            for weight, change in pieces:
                weight.to_local().add_(lay_out(change, weight))

    def _orthogonalize(self, matrices_NRC: Tensor) -> Tensor:
        """All of them, each by one process, which gives it to the others."""
        world = self._world
        count = -(-len(matrices_NRC) // world.size)
        own = orthogonalize(matrices_NRC[world.rank * count : (world.rank + 1) * count], self.ns_steps)
        return world.all_gather(own, len(matrices_NRC))

    def share_work(self, world: World) -> None:
        """Let each process of `world` orthogonalize its part of the matrices. All of them step together, with the same
        gradients."""
        self._world = world

    def _momentum(self, state: dict[str, Any]) -> float:
        """Of this step, which is counted where momentum is warmed up."""
        if not self.momentum_warmup:
            return self.momentum
        share = min(1.0, float(state["step"]) / self.momentum_warmup)
        state["step"] += 1
        return self.momentum_start + share * (self.momentum - self.momentum_start)

    def _spectral_rate(self, rows: int, columns: int) -> float:
        """What the rate of a matrix of this shape is multiplied by."""
        if self.adjust_lr == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))


_ELEMENTS = 2**26
"""Of the matrices that are orthogonalized at once: what bounds the memory of a step of a large model."""


def orthogonalize(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly: (N, rows, columns) → the same shape, singular values 0.7 to 1.2.

    A Newton–Schulz iteration, X ← aX + (bXXᵀ + c(XXᵀ)²)X, with the coefficients that Jordan et al. chose for its slope
    at 0 (see `Muon`). In bfloat16 where the hardware multiplies that, else in float32: emulated, it takes ten times
    as long (benchmarks/muon.py).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices_NRC.to(torch.bfloat16 if has_fast_bfloat16(matrices_NRC.device) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the products are of the smaller side
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x.mT if tall else x).to(matrices_NRC.dtype)
