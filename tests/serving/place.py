"""A server in a thread of the tests, on a port of its own, with small wild models."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from gptlab.config import config_from, dump_yaml
from gptlab.model import build_model
from gptlab.run import Run, save_weights
from gptlab.serving.models import Limits, Served
from gptlab.serving.server import listen, make_server
from gptlab.tokenizer import Tokenizer

TEMPLATE = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant:"
CONTEXT = 96


def make_run(folder: Path, tokenizer: Tokenizer, *, context: int = CONTEXT, seed: int = 5) -> Run:
    """An untrained run on disk, wild enough that rounding cannot change which token is the likeliest."""
    config = config_from(
        {
            "name": folder.name,
            "model": {"dim": 32, "layers": 2, "heads": 4, "tied": False},
            "train": {"sequence_length": context, "batch_tokens": context, "tokens": 10 * context},
            "system": {"device": "cpu"},
        },
        ["model.initialization.std=0.4"],
    )
    torch.manual_seed(seed)
    model = build_model(config, tokenizer.vocab_size).eval()
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(config.plain()))
    tokenizer.save(folder / "tokenizer")
    save_weights(model, folder / "model.safetensors")
    (folder / "metrics.jsonl").touch()
    return Run(folder, config, model, tokenizer, torch.device("cpu"), torch.float32, config.total_steps)


@dataclass
class Place:
    """A server that runs."""

    url: str
    port: int
    served: list[Served]

    @functools.cached_property
    def http(self) -> httpx.Client:
        """A client that checks nothing."""
        return httpx.Client(base_url=self.url, timeout=60)

    @functools.cached_property
    def openai(self) -> Any:
        """OpenAI's own client."""
        import openai

        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=60)

    def settled(self) -> bool:
        """Whether no engine has anything to do, soon."""
        for _ in range(3000):
            if not any(each.engine.load.running + each.engine.load.waiting for each in self.served):
                return True
            time.sleep(0.005)
        return False


@contextlib.contextmanager
def running(runs: list[Run], limits: Limits | None = None) -> Iterator[Place]:
    """A server of these runs, until the context is left."""
    limits = limits or Limits()
    served = [Served(run, run.folder.name, limits) for run in runs]
    listening = listen("127.0.0.1", 0)
    server = make_server(served, limits, local=True)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    port = listening.getsockname()[1]
    try:
        yield Place(f"http://127.0.0.1:{port}/v1", port, served)
    finally:
        server.should_exit = True
        thread.join(30)
        for each in served:
            each.engine.close()
        listening.close()
        assert not thread.is_alive()


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    """What comes, as far as `wanted` at least."""
    found = b""
    while wanted not in found:
        part = connection.recv(4096)
        assert part, found
        found += part
    return found


def ask_raw(port: int, *, receives: int | None = None, **body: Any) -> socket.socket:
    """A connection that has asked for a greedy completion. `receives`: bytes that the machine takes in for it."""
    connection = socket.socket()
    if receives is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    content = json.dumps({"model": "base", "prompt": "a", "temperature": 0, "ignore_eos": True, **body}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection
