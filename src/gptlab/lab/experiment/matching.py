"""Matching and provenance: whether the runs of an arm may be compared with those of the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gptlab.config import format_count
from gptlab.lab.experiment.spec import Quantity
from gptlab.record.facts import Facts


@dataclass(frozen=True)
class Mismatch:
    """A matched quantity outside its tolerance."""

    what: str  # parameters, flops, tokens, time
    arm: float
    baseline: float
    tolerance: float

    def __str__(self) -> str:
        share = 100 * (self.arm / self.baseline - 1) if self.baseline else float("inf")
        return (
            f"{self.what}: {format_count(self.arm)} against {format_count(self.baseline)} ({share:+.1f}%, allowed "
            f"±{100 * self.tolerance:g}%)"
        )


QUANTITIES: dict[str, Callable[[Facts], float]] = {
    "parameters": lambda facts: float(facts.parameters),
    "flops": lambda facts: facts.flops,
    "tokens": lambda facts: float(facts.tokens),
    "time": lambda facts: facts.seconds,
}


def mean_quantity(what: str, runs: Sequence[Facts]) -> float:
    """The mean of a quantity over runs, in parameters, FLOPs, tokens or seconds of training."""
    return sum(QUANTITIES[what](facts) for facts in runs) / len(runs)


def mismatches(arm: Sequence[Facts], baseline: Sequence[Facts], match: Mapping[Quantity, float]) -> list[Mismatch]:
    """The matched quantities outside their tolerance, as means over the runs of an arm and of the baseline.

    `match`: quantity → allowed deviation as a share of the baseline's.
    """
    pairs = {what: (mean_quantity(what, arm), mean_quantity(what, baseline)) for what in match}
    return [Mismatch(what, a, b, match[what]) for what, (a, b) in pairs.items() if exceeds_tolerance(a, b, match[what])]


def exceeds_tolerance(arm: float, baseline: float, tolerance: float) -> bool:
    """Whether the arm's number deviates by more than `tolerance`, a share of the baseline's (and rounding)."""
    return abs(arm - baseline) > (tolerance + 1e-9) * baseline


def provenance_differences(arm: Facts, baseline: Facts) -> list[str]:
    """Differences between two runs that no config shows: code, libraries, hardware. Empty where they may be paired."""
    pairs = {
        "code": (arm.code, baseline.code),
        "hardware": (arm.hardware, baseline.hardware),
        "precision": (arm.dtype, baseline.dtype),
        "processes": (str(arm.world_size), str(baseline.world_size)),
        **{name: (arm.versions.get(name, "?"), baseline.versions.get(name, "?")) for name in ("torch", "python")},
    }
    return [f"{name} {a} against {b}" for name, (a, b) in pairs.items() if a != b]
