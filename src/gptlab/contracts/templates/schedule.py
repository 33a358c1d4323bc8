"""A schedule of your own: warmup, then one over the square root of the step. Edit from here."""

from __future__ import annotations

from gptlab.errors import ConfigError


class MyIdea:
    """Maps a step, from 0 to total_steps − 1, to what multiplies every learning rate (Vaswani et al. 2017, eq. 3)."""

    slot = "schedule"

    def __init__(self, total_steps: int, *, warmup: float = 0.05) -> None:
        if not 0 <= warmup <= 1:
            raise ConfigError(f"schedule.warmup: {warmup} is not a fraction of the run; it must be from 0 to 1")
        self.warmup = max(1, round(warmup * total_steps))

    def __call__(self, step: int) -> float:
        """Of the step alone: a run that resumes starts in the middle."""
        return min((step + 1) / self.warmup, (self.warmup / (step + 1)) ** 0.5)
