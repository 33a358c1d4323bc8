"""The schedule of a learning-rate range test, for `schedule: {use: "gptlab.lab.studies.lr_range:Exponential"}`."""

from __future__ import annotations

from gptlab.errors import ConfigError


class Exponential:
    """From `low` to `high` times the learning rate, by the same factor each step (Smith 2017, arXiv:1506.01186, section
    3.3, with steps that are equal in the logarithm, because learning rates matter by their ratios)."""

    slot = "schedule"

    def __init__(self, total_steps: int, *, low: float = 1e-3, high: float = 100.0) -> None:
        if not 0 < low < high:
            raise ConfigError(
                f"schedule: from {low} to {high} is no range; low must be above 0 and below high", key="schedule"
            )
        self.low, self.high, self.last = low, high, max(1, total_steps - 1)

    def __call__(self, step: int) -> float:
        """The multiplier of the learning rate at `step`, counted from 0."""
        return float(self.low * (self.high / self.low) ** (step / self.last))
