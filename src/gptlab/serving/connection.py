"""A client's connection, which is closed where the client neither sends a request nor takes its answer."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def connection_class(patience: float) -> type[asyncio.Protocol]:
    """uvicorn's connections, that are given up after `patience` seconds without anybody at the other end: from the
    beginning until the head of the first request is there, and whenever bytes wait that the client does not take.

    A socket that is only closed would be kept for as long as the client likes, with what waits in it; so it is dropped.
    One that takes its bytes slowly, but takes some of them in that time, is waited for.
    """

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # bytes that wait are heard of from the first one on
            self._timer = self.loop.call_later(patience, self._expect_request)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_reading(None)

        def resume_writing(self) -> None:
            self._cancel()
            super().resume_writing()

        def _expect_request(self) -> None:
            if self.cycle is None:
                self.transport.abort()

        def _expect_reading(self, before: int | None) -> None:
            """Give up a client that has left as many bytes waiting as there were `before`."""
            self._cancel()
            waiting = self.transport.get_write_buffer_size()
            if before is not None and waiting >= before:
                self.transport.abort()
            else:
                self._timer = self.loop.call_later(patience, self._expect_reading, waiting)

        def _cancel(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection
