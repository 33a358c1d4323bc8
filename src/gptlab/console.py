"""The terminal: one place that decides how progress and messages look.

Messages and progress go to standard error, so that standard output carries results only (`gptlab config show X >
resolved.yaml` works). Nobody waits without a sign: what takes more than `SIGN_SECONDS` stands under `progress`, or
under `waiting` where nothing can be counted. In a terminal that is a line that moves; elsewhere what takes more than
`LINE_SECONDS` says a line every so often, one for the whole process, so that logs stay short.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task


SIGN_SECONDS = 2.0  # a job that is over by then shows nothing in a terminal
LINE_SECONDS = 10.0  # where there is no terminal: before a job's first line, and between any two

Item = TypeVar("Item")

_said_at = float("-inf")  # when this process last printed a line of progress
_open: list[Progress] = []  # displays; the innermost is what is being waited for
_start: threading.Timer | None = None  # a command that has not said anything yet


@functools.cache
def console() -> Console:
    """Where people are spoken to: standard error."""
    from rich.console import Console

    _has_started()
    return Console(stderr=True, highlight=False, soft_wrap=True)


@functools.cache
def output() -> Console:
    """Where results go: standard output."""
    from rich.console import Console

    _has_started()
    return Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the person watching, printed as it is (no markup is read from it)."""
    console().print(message, markup=False)


@contextlib.contextmanager
def starting(name: str) -> Iterator[None]:
    """In a terminal, a line where the command `name` has said nothing for `SIGN_SECONDS`: imports may take as long as
    that, and much longer beside other work."""
    global _start
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    _start = threading.Timer(SIGN_SECONDS, lambda: print(f"{name}: starting", file=sys.stderr, flush=True))
    _start.daemon = True
    _start.start()
    try:
        yield
    finally:
        _has_started()


def _has_started() -> None:
    if _start is not None:
        _start.cancel()


@contextlib.contextmanager
def waiting(what: str, *, shown: bool = True) -> Iterator[None]:
    """A sign that `what` is being done, where nothing can be counted. `shown`: False where another process says it."""
    if not shown:
        yield
        return
    with progress(unit="", transient=True) as bar:
        bar.add_task(what, total=None)
        yield


def track(
    items: Iterable[Item],
    what: str,
    *,
    total: int | None,
    unit: str,
    size: Callable[[Item], int] = lambda item: 1,
    shown: bool = True,
) -> Iterator[Item]:
    """`items`, under a progress display for as long as they are taken. `size`: how many of `unit` one of them is.
    `shown`: False where another process says it."""
    if not shown:
        yield from items
        return
    with progress(unit=unit, transient=True) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task, size(item))


def progress(
    *,
    unit: str = "B",
    transient: bool = False,
    columns: Iterable[ProgressColumn] | None = None,
    line: Callable[[Task], str] | None = None,
) -> Progress:
    """A progress display for a job. `unit`: "B" shows bytes and MB/s, "" that time goes by, anything else counts of it.

    `columns` and `line` are a display's own: what it draws in a terminal (from its beginning on), and what it says of a
    task elsewhere.
    """
    drawn = list(columns) if columns is not None else _columns(unit)
    display: Progress = _display_class()(
        *drawn,
        line=line or functools.partial(_line, unit),
        at_once=columns is not None,
        console=console(),
        transient=transient,
        disable=not console().is_terminal,
        redirect_stdout=output().is_terminal,  # a pipe gets results, and none of what is shown around them
    )
    return display


def _columns(unit: str) -> list[ProgressColumn]:
    from rich import progress as rich

    text = rich.TextColumn("{task.description}", markup=False)
    if not unit:
        return [rich.SpinnerColumn(), text, rich.TimeElapsedColumn()]
    counts: list[ProgressColumn] = (
        [rich.DownloadColumn(), rich.TransferSpeedColumn()]
        if unit == "B"
        else [rich.MofNCompleteColumn(), rich.TextColumn(unit)]
    )
    return [text, rich.BarColumn(bar_width=28), *counts, rich.TimeElapsedColumn(), rich.TimeRemainingColumn()]


def _line(unit: str, task: Task) -> str:
    """How far a task is, where nothing is drawn: `verifying: 1.2 GB of 4.8 GB (25%), 12 s`, `reading: 4 s`."""
    from rich.filesize import decimal

    show = (lambda count: decimal(int(count))) if unit == "B" else "{:,.0f}".format
    done = show(task.completed) if task.total is None else f"{show(task.completed)} of {show(task.total)}"
    share = "" if not task.total else f" ({task.percentage:.0f}%)"
    how_far = f"{done}{'' if unit == 'B' else f' {unit}'}{share}, " if unit else ""
    return f"{task.description}: {how_far}{task.elapsed or 0:.0f} s"


@functools.cache
def _display_class() -> Any:
    from rich.progress import Progress, TaskID

    class Display(Progress):
        """Draws nothing for a job that is soon over; says how far its tasks are where nothing can be drawn."""

        def __init__(self, *columns: Any, line: Callable[[Task], str], at_once: bool, **options: Any) -> None:
            self.line, self.at_once = line, at_once
            self.begun = time.monotonic()
            self.ended = threading.Event()
            self.watch: threading.Thread | None = None
            super().__init__(*columns, get_time=lambda: time.monotonic(), **options)

        def start(self) -> None:
            super().start()
            self.begun = time.monotonic()
            _open.append(self)
            if self.disable:
                self.watch = threading.Thread(target=self._watch, daemon=True)
                self.watch.start()
            self._tell()

        def stop(self) -> None:
            super().stop()
            self.ended.set()
            if self in _open:
                _open.remove(self)
            if self.watch is not None:
                self.watch.join()

        def get_renderables(self) -> Any:
            if self.at_once or time.monotonic() - self.begun >= SIGN_SECONDS:
                yield from super().get_renderables()

        def add_task(self, *arguments: Any, **fields: Any) -> TaskID:
            task = super().add_task(*arguments, **fields)
            self._tell()
            return task

        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self._tell()

        def update(self, task_id: TaskID, **fields: Any) -> None:
            super().update(task_id, **fields)
            self._tell()

        def _watch(self) -> None:
            """A job whose next count is long in coming says so all the same."""
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: the job itself will say so
                while not self.ended.wait(1.0):
                    self._tell()

        def _tell(self) -> None:
            global _said_at
            now = time.monotonic()
            if not self.disable or now - max(self.begun, _said_at) < LINE_SECONDS or _open[-1:] != [self]:
                return
            if tasks := [task for task in self.tasks if not task.finished] or self.tasks:
                _said_at = now
                say("; ".join(map(self.line, tasks)))

    return Display
