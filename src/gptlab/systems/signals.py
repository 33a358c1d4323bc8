"""Being told to stop: SIGTERM from a scheduler, SIGUSR1 or SIGUSR2 from one that warns before its time limit, SIGHUP
from a connection that was lost, Ctrl-C from a person."""

from __future__ import annotations

import contextlib
import signal
import types
from collections.abc import Iterator
from dataclasses import dataclass


class Terminated(BaseException):
    """This process was told to end, outside of a training that saves first. `number`: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are raised as `Terminated`, so that locks are let go and children told.

    What is ignored, as `nohup` has it, stays so.
    """

    def handle(number: int, frame: types.FrameType | None) -> None:
        raise Terminated(number)

    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        previous = {n: signal.signal(n, handle) for n in kinds if signal.getsignal(n) == signal.SIG_DFL}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class StopRequest:
    """`signal`: what this process was sent; `reason`: set by the loop once all processes have agreed to stop."""

    signal: str = ""
    reason: str = ""

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(self.signal)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 into a request; a second Ctrl-C ends at once, as always.

    What is ignored of the last three stays so, as `nohup` has it, or who hears a scheduler's warnings for all.
    """
    request = StopRequest()

    def handle(number: int, frame: types.FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    try:
        kinds = [signal.SIGTERM, signal.SIGINT]
        others = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
        kinds += [number for number in others if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, handle) for number in kinds}
    except ValueError:  # not the main thread: signals are somebody else's
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
