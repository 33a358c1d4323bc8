"""The terminal: one place that decides how progress and messages look.

Messages and progress go to standard error, so that standard output carries results only (`gptlab config show X >
resolved.yaml` works). Outside a terminal the progress bars stay silent.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


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
    """A progress display for a counted job. `unit`: "B" shows bytes and MB/s, anything else shows counts of it."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "B" else [MofNCompleteColumn(), TextColumn(unit)]
    )
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        *counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=transient,
        disable=not console().is_terminal,
    )
