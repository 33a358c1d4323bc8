"""Schedules: a step → a multiplier of every group's learning rate. A schedule is built from `(total_steps)`."""

from __future__ import annotations

import abc
import bisect
import math
from typing import Literal

from gptlab.config import require_range
from gptlab.errors import ConfigError


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


class _Cyclic(_Schedule):
    """After the warmup `cycles` times from 1 down to `final`, each cycle `growth` times as long as the one before."""

    def __init__(
        self, total_steps: int, *, warmup: float = 0.02, final: float = 0.1, cycles: int = 1, growth: float = 1.0
    ) -> None:
        super().__init__(total_steps, warmup=warmup, final=final)
        require_range("schedule", "from 1 to 99", cycles=cycles)
        require_range("schedule", "from 0.1 to 10", growth=growth)
        lengths = [growth**index for index in range(cycles)]
        self.ends = [sum(lengths[: index + 1]) / sum(lengths) for index in range(cycles)]  # as shares of the run

    def shape(self, progress: float) -> float:
        """The shape of one cycle, over how much of it has gone by."""
        index = min(bisect.bisect_right(self.ends, progress), len(self.ends) - 1)
        start = self.ends[index - 1] if index else 0.0
        return self.cycle(min(1.0, (progress - start) / (self.ends[index] - start)))

    @abc.abstractmethod
    def cycle(self, progress: float) -> float:
        """From 1 at progress 0 to 0 at progress 1."""


class Cosine(_Cyclic):
    """Half a cosine from 1 to `final`, once or with warm restarts (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5;
    `growth` is their T_mult)."""

    slot = "schedule"

    def cycle(self, progress: float) -> float:
        """½(1 + cos π·progress)"""
        return 0.5 * (1 + math.cos(math.pi * progress))


class Linear(_Cyclic):
    """A straight line from 1 to `final`, once or with restarts."""

    slot = "schedule"

    def cycle(self, progress: float) -> float:
        """1 − progress"""
        return 1 - progress


class OneCycle(_Schedule):
    """Up from `initial` to 1 over the first `warmup` of the run, then down to `final`, by cosines or straight lines
    (Smith and Topin 2018, arXiv:1708.07120, section 3). The multipliers are shares of the largest rate; the momentum
    stays as it is."""

    slot = "schedule"

    def __init__(
        self,
        total_steps: int,
        *,
        warmup: float = 0.3,
        initial: float = 0.04,
        final: float = 4e-6,
        anneal: Literal["cosine", "linear"] = "cosine",
    ) -> None:
        super().__init__(total_steps, warmup=warmup, final=final)
        require_range("schedule", "from 0 to 1", initial=initial)
        self.initial, self.anneal = initial, anneal

    def __call__(self, step: int) -> float:
        """The multiplier of the learning rate at `step`, counted from 0."""
        if step >= self.warmup:
            return super().__call__(step)
        return self.initial + (1 - self.initial) * (1 - self.shape(step / self.warmup))

    def shape(self, progress: float) -> float:
        """½(1 + cos π·progress), or 1 − progress"""
        return 1 - progress if self.anneal == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


class WSD(_Schedule):
    """Warmup, a plateau, and a linear decay over the last `decay` of the run (Hu et al. 2024, arXiv:2404.06395)."""

    slot = "schedule"

    def __init__(self, total_steps: int, *, warmup: float = 0.02, decay: float = 0.2, final: float = 0.0) -> None:
        super().__init__(total_steps, warmup=warmup, final=final)
        require_range("schedule", "from 0 to 1", decay=decay)
        if warmup + decay > 1 + 1e-9:
            raise ConfigError(
                f"schedule.decay: the last {decay:g} of the run and a warmup over its first {warmup:g} overlap; make "
                "them at most 1 together",
                key="schedule.decay",
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
