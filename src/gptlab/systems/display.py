"""What a person sees while a run trains: a live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gptlab.config import format_count
from gptlab.console import LINE_SECONDS, Place, place, progress, say


class TrainingDisplay:
    """Progress of training: loss, tokens/s, MFU (or FLOP/s where the peak is not known), time left."""

    def __init__(self, total_steps: int, start_step: int, flops_per_token: float, peak_flops: float | None) -> None:
        self.total, self.flops, self.peak = total_steps, flops_per_token, peak_flops
        columns = [
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        self._now = f"step {start_step}/{total_steps}: the first step"
        self._progress = progress(columns=columns, line=lambda task: self._now)
        self._task: TaskID = self._progress.add_task("train", total=total_steps, completed=start_step, numbers="")
        self._last_logged = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show the state after `step`."""
        numbers = f"loss {loss:.4f}  {format_count(round(tokens_per_second))} tok/s  {self.speed(tokens_per_second)}"
        self._now = f"step {step}/{self.total}  {numbers}"
        if step == self.total and place() is not Place.TERMINAL:
            say(self._now)
        self._progress.update(self._task, completed=step, numbers=numbers)

    def log_line(self) -> str | None:
        """The state for a log that somebody follows; None where the last line is not old yet."""
        if time.monotonic() - self._last_logged <= LINE_SECONDS:
            return None
        self._last_logged = time.monotonic()
        return self._now

    def speed(self, tokens_per_second: float) -> str:
        """Model FLOPs utilization where the device's peak is known, achieved FLOP/s where not."""
        achieved = tokens_per_second * self.flops
        if self.peak:
            return f"MFU {achieved / self.peak:.1%}"
        return f"{format_count(achieved).replace('B', 'G')}FLOP/s"  # billions of FLOP/s are giga

    def message(self, text: str) -> None:
        """A line above the progress bar."""
        say(text)
