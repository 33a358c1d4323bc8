"""Worker processes: a pool that leaves Ctrl-C to its parent and dies with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def spawned_pool(workers: int, start: Callable[..., None], *arguments: Any) -> Iterator[Callable[..., Future[Any]]]:
    """Yield a function that has one of `workers` processes call a function, as `Executor.submit` does.

    `start(*arguments)` is called in each first. Both have to be functions of a module, and what is handed to them
    travels through pipes. On leaving, what has not begun is dropped.
    """
    # "spawn": a forked child would inherit the locks of whatever threads the caller has (Arrow, BLAS, torch).
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (start, *arguments))

    def submit(function: Callable[..., Any], *given: Any) -> Future[Any]:
        with interrupts_later():  # a worker may be started here
            return pool.submit(function, *given)

    try:
        yield submit
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back for a moment. A process that is started meanwhile never gets one: it is the parent's to hear it,
    and one in the middle of its imports could only answer with a traceback."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child inherits it
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))  # another thread's may still hear it
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _start(start: Callable[..., None], *arguments: Any) -> None:
    """In a new worker process: leave Ctrl-C to the parent, die with it, and make ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    start(*arguments)


def _die_with_parent() -> None:
    """A pool's workers wait on a queue that outlives a killed parent: without this they would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
