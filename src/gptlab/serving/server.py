"""The server: HTTP around the engines of runs. It answers every mistake with a JSON error, and holds nobody up."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gptlab.console import say
from gptlab.errors import GptlabError, did_you_mean, option
from gptlab.serving.answers import Piece
from gptlab.serving.asked import ChatAsked, CompletionAsked, DetokenizeAsked, RefusedError, TokenizeAsked, read_asked
from gptlab.serving.connection import connection_class
from gptlab.serving.models import Answer, Limits, Served

_UNREAD = 64 * 2**10  # bytes that the machine holds for a client that does not read
_LOCAL = {"localhost", "127.0.0.1", "::1"}

Handler = Callable[[Request], Awaitable[Response]]


def make_app(served: Sequence[Served], limits: Limits, *, local: bool = True) -> Starlette:
    """The application. `local`: it listens to this machine alone, and refuses what a page in a browser sends here under
    another name (DNS rebinding)."""
    models = {each.name: each for each in served}

    def find(name: str) -> Served:
        if name not in models:
            raise RefusedError(
                f"there is no model {name[:80]!r} here; {did_you_mean(name[:80], models)}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return models[name]

    async def completions(request: Request) -> Response:
        asked = read_asked(CompletionAsked, await _body(request, limits))
        return await _answer(request, asked, find(asked.model).complete, limits)

    async def chat(request: Request) -> Response:
        asked = read_asked(ChatAsked, await _body(request, limits))
        return await _answer(request, asked, find(asked.model).chat, limits)

    def only(name: str | None) -> Served:
        if name is None and len(served) > 1:
            raise RefusedError(f"{len(served)} models are served: say which; {did_you_mean('', models)}", param="model")
        return find(name or served[0].name)

    async def tokenize(request: Request) -> Response:
        asked = read_asked(TokenizeAsked, await _body(request, limits))
        return JSONResponse(await run_in_threadpool(only(asked.model).tokenize, asked))

    async def detokenize(request: Request) -> Response:
        asked = read_asked(DetokenizeAsked, await _body(request, limits))
        return JSONResponse(await run_in_threadpool(only(asked.model).detokenize, asked))

    async def tokenizer(request: Request) -> Response:
        return JSONResponse(only(request.query_params.get("model")).tokenizer_card())

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [each.card() for each in served]})

    async def one(request: Request) -> Response:
        return JSONResponse(find(request.path_params["name"]).card())

    async def health(request: Request) -> Response:
        loads = {each.name: each.engine.load for each in served}
        shown = {
            n: {"running": load.running, "waiting": load.waiting, "tokens": load.tokens} for n, load in loads.items()
        }
        return JSONResponse({"status": "ok", "models": shown})

    routes = [
        ("/v1/completions", completions, "POST"),
        ("/v1/chat/completions", chat, "POST"),
        ("/v1/models", listed, "GET"),
        ("/v1/models/{name}", one, "GET"),
        ("/tokenize", tokenize, "POST"),
        ("/detokenize", detokenize, "POST"),
        ("/tokenizer_info", tokenizer, "GET"),
        ("/health", health, "GET"),
    ]
    return Starlette(
        routes=[Route(path, _careful(handler, local), methods=[method]) for path, handler, method in routes],
        exception_handlers={HTTPException: _no_such_place},
    )


def _careful(handler: Handler, local: bool) -> Handler:
    """`handler`, whose errors are answers."""

    async def answer(request: Request) -> Response:
        try:
            if local:
                _check_sender(request)
            return await handler(request)
        except RefusedError as error:
            return _error(error)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:  # a defect of ours: the client is told, the next is served
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            say(f"a defect: {request.url.path}: {text}")
            return _error(RefusedError(f"the server made a mistake: {text}", status=500))

    return answer


def _error(error: RefusedError) -> JSONResponse:
    return JSONResponse(error.body(), error.status)


async def _no_such_place(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = {404: "is not here", 405: f"does not take {request.method}"}.get(status, "cannot be answered")
    places = "/v1/completions, /v1/chat/completions, /v1/models"
    return _error(RefusedError(f"{request.url.path[:80]} {what}; there are {places}", status=status))


def _check_sender(request: Request) -> None:
    """Raises RefusedError for a request that a page of another site lets a browser send."""
    host = request.url.hostname or ""
    origin = request.headers.get("origin")
    sender = host if origin is None else origin.partition("://")[2]
    if host not in _LOCAL or (origin is not None and _name(sender) not in _LOCAL):
        raise RefusedError(
            f"this server answers to its own machine alone, and not to {_name(sender)[:80]!r}; start it with another "
            f"{option('host')}",
            status=403,
        )


def _name(netloc: str) -> str:
    """A host without its port."""
    return netloc.rpartition(":")[0].strip("[]") if ":" in netloc.rpartition("]")[2] else netloc.strip("[]")


async def _body(request: Request, limits: Limits) -> bytes:
    """The body. Raises RefusedError for one that is too large, or too long in coming."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.patience):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_body:
                    raise RefusedError(f"the body is larger than {limits.max_body:,} bytes; send less", status=413)
                parts.append(part)
    except TimeoutError:
        raise RefusedError(f"the body did not come within {limits.patience:g} seconds", status=408) from None
    return b"".join(parts)


async def _answer(
    request: Request,
    asked: CompletionAsked | ChatAsked,
    begin: Callable[[Any, Callable[[Piece], None]], Answer],
    limits: Limits,
) -> Response:
    """Begin to answer, and answer whole or as a stream."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()

    def publish(piece: Piece) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    answer = await run_in_threadpool(begin, asked, publish)  # encoding takes time
    if asked.stream:
        counts = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        return _Stream(answer, _events(answer, pieces, counts=counts))
    try:
        gone, whole = asyncio.ensure_future(_gone(request.receive)), asyncio.ensure_future(_whole(answer, pieces))
        await asyncio.wait({gone, whole}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not whole.done():
            whole.cancel()
            raise ClientDisconnect
        return JSONResponse(answer.writer.whole(whole.result(), answer.usage()))
    finally:
        answer.cancel()


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole(answer: Answer, pieces: asyncio.Queue[Piece]) -> list[Piece]:
    """The one piece of each choice, in their order. Raises RefusedError where one has failed."""
    found = [await pieces.get() for _ in answer.choices]
    for piece in found:
        _check_reason(piece)
    return sorted(found, key=lambda piece: piece.index)


def _check_reason(piece: Piece) -> None:
    if piece.reason == "cancelled":
        raise RefusedError("the server is ending; ask again later", status=503)
    if piece.reason.startswith("error: "):
        raise RefusedError(f"the model failed: {piece.reason.removeprefix('error: ')}", status=500)


async def _events(answer: Answer, pieces: asyncio.Queue[Piece], *, counts: bool) -> AsyncIterator[str]:
    """The data of a stream, a JSON text each, and [DONE]."""
    writer, left = answer.writer, len(answer.choices)
    if writer.chat:
        for choice in answer.choices:
            yield json.dumps(writer.role(choice.index, usage_follows=counts))
    try:
        while left:
            piece = await pieces.get()
            _check_reason(piece)
            yield json.dumps(writer.chunk(piece, usage_follows=counts))
            left -= piece.reason != ""
        if counts:
            yield json.dumps(writer.usage(answer.usage()))
    except RefusedError as error:
        yield json.dumps(error.body())
    yield "[DONE]"


class _Stream(Response):
    """Server-sent events, until the client goes away or is given up (`gptlab.serving.connection`)."""

    def __init__(self, answer: Answer, events: AsyncIterator[str]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self.answer, self.events = answer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        sent = asyncio.ensure_future(self._send_all(send))
        try:
            await asyncio.wait({gone, sent}, return_when=asyncio.FIRST_COMPLETED)
            if sent.done():
                with contextlib.suppress(OSError):
                    sent.result()
        finally:
            self.answer.cancel()
            for task in (gone, sent):
                task.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self.events:
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises GptlabError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError, ValueError) as error:  # the last: no name of a host
        reason = getattr(error, "strerror", None) or error
        raise GptlabError(
            f"cannot listen at {host}:{port}: {reason}; choose another {option('port')}, 0 for any that is free"
        ) from None
    # The sockets that it accepts inherit both. Without the second an answer's last bytes wait 40 ms for company:
    # asyncio sees to it only where a socket names its protocol.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def is_local(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_server(served: Sequence[Served], limits: Limits, *, local: bool) -> uvicorn.Server:
    """A server whose `run(sockets=[…])` returns when it is told to end, its engines closed."""
    config = uvicorn.Config(
        make_app(served, limits, local=local),
        http=connection_class(limits.patience),
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return _Server(config, served)


class _Server(uvicorn.Server):
    """One that tells its clients before it leaves them."""

    def __init__(self, config: uvicorn.Config, served: Sequence[Served]) -> None:
        super().__init__(config)
        self.served = served

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in self.served:
            await run_in_threadpool(each.engine.close)
        await super().shutdown(sockets)
