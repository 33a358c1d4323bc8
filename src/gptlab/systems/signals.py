"""Being told to stop: SIGTERM from a scheduler, SIGHUP from a connection that was lost, Ctrl-C from a person."""

from __future__ import annotations

import contextlib
import signal
import types
from collections.abc import Iterator
from dataclasses import dataclass


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
    """Turn SIGTERM, SIGHUP and SIGINT into a request; a second Ctrl-C ends at once, as always.

    What `nohup` has made to be ignored stays so.
    """
    request = StopRequest()

    def handle(number: int, frame: types.FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    try:
        kinds = [signal.SIGTERM, signal.SIGINT]
        if getattr(signal, "SIGHUP", None) is not None and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            kinds.append(signal.SIGHUP)
        previous = {number: signal.signal(number, handle) for number in kinds}
    except ValueError:  # not the main thread: signals are somebody else's
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
