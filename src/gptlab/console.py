"""The terminal: one place that decides how progress and messages look.

Messages and progress go to standard error, so that standard output carries results only (`gptlab config show X >
resolved.yaml` works). Nobody waits without a sign: what takes more than `SIGN_SECONDS` stands under `progress`, or
under `waiting` where nothing can be counted. In a terminal that is a line that moves, in a notebook a bar or a line
that is written anew (`Place`); elsewhere what takes more than `LINE_SECONDS` says a line every so often, one for the
whole process, so that logs stay short.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import html
import os
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
_open: list[Any] = []  # displays; the innermost is what is being waited for
_start: threading.Timer | None = None  # a command that has not said anything yet


class Place(enum.Enum):
    """Where messages and progress appear, which says how they are drawn."""

    TERMINAL = "a terminal: lines that move"
    KERNEL = "a notebook whose kernel this is: one bar a job, drawn anew in its place"
    CELL = "a command that a notebook's cell began with `!`: one line, written anew after a carriage return"
    PLAIN = "a file or a pipe: a line now and then"


# Kernels set these for what they start. Read at once, because the command line sets MPLBACKEND itself.
_BEGUN_BY_KERNEL = "JPY_PARENT_PID" in os.environ or "inline" in os.environ.get("MPLBACKEND", "")


def place() -> Place:
    """Where this process speaks. Not what rich takes it for: kernels set FORCE_COLOR, and `!` has a terminal of its own
    that knows colours and carriage returns, but no way back to an earlier line."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is not None:
        return Place.KERNEL
    if sys.stderr is None or not sys.stderr.isatty():
        return Place.PLAIN
    return Place.CELL if _BEGUN_BY_KERNEL else Place.TERMINAL


@functools.cache
def console() -> Console:
    """Where people are spoken to: standard error, or standard output in a notebook, which shows the other in red."""
    from rich.console import Console

    _has_started()
    if (here := place()) is Place.KERNEL:
        return Console(force_jupyter=False, force_terminal=False, highlight=False, soft_wrap=True)
    return Console(stderr=True, force_terminal=False if here is Place.CELL else None, highlight=False, soft_wrap=True)


@functools.cache
def output() -> Console:
    """Where results go: standard output."""
    from rich.console import Console

    _has_started()
    return Console(force_jupyter=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the person watching, printed as it is (no markup is read from it)."""
    with _canvas.lock:
        _canvas.clear_line()
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
        disable=place() is not Place.TERMINAL,
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

        @property
        def is_due(self) -> bool:
            """Whether it has gone on for long enough to be shown."""
            return self.at_once or time.monotonic() - self.begun >= SIGN_SECONDS

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
                _canvas.draw(at_once=True)

        def get_renderables(self) -> Any:
            if self.is_due:
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
                while not self.ended.wait(0.5):
                    self._tell()

        def _tell(self) -> None:
            global _said_at
            if self.disable and place() is not Place.PLAIN:
                _canvas.draw()
                return
            now = time.monotonic()
            if not self.disable or now - max(self.begun, _said_at) < LINE_SECONDS or _open[-1:] != [self]:
                return
            if tasks := self.unfinished():
                _said_at = now
                say("; ".join(map(self.line, tasks)))

        def unfinished(self) -> list[Task]:
            """What is being done; all tasks where all are done."""
            return [task for task in self.tasks if not task.finished] or list(self.tasks)

    return Display


class _Canvas:
    """Progress that is drawn anew in its place where rich cannot: below a notebook's cell (see `Place`)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # jobs are drawn by the thread that watches them, too
        self.drawn_at = float("-inf")
        self.content = ""  # what stands there
        self.cell, self.handle = -1, None  # of a kernel: which cell, and its display

    def draw(self, *, at_once: bool = False) -> None:
        """Show what is open by now, no more than twice a second unless `at_once`."""
        with self.lock:
            now, where = time.monotonic(), place()
            if not at_once and now - self.drawn_at < 0.5:
                return
            self.drawn_at = now
            due = [display for display in _open if display.is_due]
            if where is Place.KERNEL:
                self._draw_bars([(display.line(task), task) for display in due for task in display.unfinished()])
            elif where is Place.CELL:
                tasks = due[-1].unfinished() if due else []
                self._write_line("; ".join(_with_time_left(due[-1].line(task), task) for task in tasks))

    def clear_line(self) -> None:
        """Make room for a message."""
        if self.content and place() is Place.CELL:
            self._write_line("")

    def _write_line(self, text: str) -> None:
        if text != self.content:  # a cell keeps every byte
            end = "" if text else "\r"
            sys.stderr.write(f"\r{text.ljust(len(self.content))}{end}")
            sys.stderr.flush()
            self.content = text

    def _draw_bars(self, lines: list[tuple[str, Task]]) -> None:
        """A row each, in the one place that a cell has for them: the first time below what it has printed so far."""
        from IPython import display

        content = "".join(_bar(_with_time_left(line, task), task) for line, task in lines)
        number = sys.modules["IPython"].get_ipython().execution_count
        if self.cell != number:
            self.cell, self.handle, self.content = number, None, ""
        if content == self.content:
            return
        self.content = content
        shown = {"text/html": content, "text/plain": "\n".join(line for line, _ in lines)}
        if self.handle is None:
            self.handle = display.display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self.handle.update(shown, raw=True)


_canvas = _Canvas()


def _with_time_left(line: str, task: Task) -> str:
    left = None if task.finished else task.time_remaining
    return line if left is None else f"{line}, {left:.0f} s left"


def _bar(line: str, task: Task) -> str:
    """A row of HTML in the colours of the page, light or dark: how far a task is."""
    value = "" if not task.total else f' value="{task.completed:g}" max="{task.total:g}"'
    bar = f'<progress{value} style="width: 16em; vertical-align: middle"></progress>'
    return f'<div style="font-family: monospace; white-space: pre-wrap">{bar} {html.escape(line)}</div>'
