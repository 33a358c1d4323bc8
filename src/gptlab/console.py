"""The terminal: one place that decides how progress and messages look.

Messages and progress go to standard error, so that standard output carries results only (`gptlab config show X >
resolved.yaml` works). Outside a terminal there is no bar; a line now and then says how far a job is.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


@functools.cache
def console() -> Console:
    """Where people are spoken to: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@functools.cache
def output() -> Console:
    """Where results go: standard output."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the person watching, printed as it is (no markup is read from it)."""
    console().print(message, markup=False)


def progress(*, unit: str = "B", transient: bool = False) -> Progress:
    """A progress display for a counted job. `unit`: "B" shows bytes and MB/s, anything else shows counts of it.

    Outside a terminal a job of more than `LINE_SECONDS` says a line every so often, and a shorter one nothing.
    """
    from rich.filesize import decimal
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "B" else [MofNCompleteColumn(), TextColumn(unit)]
    )

    class Lines(Progress):
        """A progress display that says how far its jobs are where it draws nothing."""

        told = time.monotonic()

        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self._tell(task_id)

        def update(self, task_id: TaskID, **fields: Any) -> None:
            super().update(task_id, **fields)
            self._tell(task_id)

        def _tell(self, task_id: TaskID) -> None:
            if not self.disable or time.monotonic() - self.told < LINE_SECONDS:
                return
            self.told = time.monotonic()
            task = next(task for task in self.tasks if task.id == task_id)
            done, total = (
                (decimal(int(count)) if unit == "B" else f"{count:,.0f} {unit}") if count is not None else ""
                for count in (task.completed, task.total)
            )
            share = f" of {total} ({task.percentage:.0f}%)" if total else ""
            say(f"{task.description}: {done}{share}, {task.elapsed or 0:.0f} s")

    return Lines(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        *counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=transient,
        disable=not console().is_terminal,
    )
