"""A judge of the tests' own: a real HTTP server that answers as an OpenAI-compatible endpoint does, by plain rules.

It prefers the better text (`quality`), likes what it reads first and what is longer, and throws its dice by the text of
the question, so that it says the same twice. It keeps what it answered, and can be told to answer anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Hook = Callable[[int, str], "Odd | None"]
"""Given the number of a request and its question: what to answer in place of a verdict."""


@dataclass
class Odd:
    """An answer that is none. `content`: what the model says, in a whole completion; else `body` as it is."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    content: str | None = None


@dataclass
class JudgeServer:
    """What the server does, and what it has done.

    Attributes:
        quality: of a text; the better one wins more often.
        first, longer: how much it prefers what is shown first, and what is longer, in logits.
        ties: the share of verdicts that are ties.
        hook: see `Hook`.
        usage: whether it counts tokens.
        questions: the text of every question that it answered, one for each answer.
        requests: how many came, answered or not.
        authorizations: headers that it saw.
    """

    quality: Callable[[str], float] = lambda text: 0.0
    first: float = 0.0
    longer: float = 0.0
    ties: float = 0.1
    hook: Hook | None = None
    usage: bool = True
    tokens: tuple[int, int] = (200, 40)
    questions: list[str] = field(default_factory=list)
    requests: int = 0
    authorizations: set[str | None] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def verdict(self, question: str) -> str:
        """What the model says."""
        form = re.findall(r"^\{.*\}$", question, re.M)[-1]
        dice = random.Random(hashlib.sha256(question.encode()).digest())
        names = list(json.loads(form))
        if "overall" not in names:
            shown = re.search(r"<continuation>\n(.*?)\n</continuation>", question, re.S)[1]  # type: ignore[index]
            liked = round(self.quality(shown))
            return json.dumps({name: max(1, min(10, dice.randint(3, 7) + liked)) for name in names})
        a, b = (re.search(rf"<{name}>\n(.*?)\n</{name}>", question, re.S)[1] for name in "AB")  # type: ignore[index]
        logit = self.quality(a) - self.quality(b) + self.first
        logit += self.longer * math.tanh((len(a) - len(b)) / 50)

        def one() -> str:
            if dice.random() < self.ties:
                return "tie"
            return "A" if dice.random() < 1 / (1 + math.exp(-logit)) else "B"

        return f"```json\n{json.dumps({name: one() for name in names})}\n```"

    def completion(self, content: str | None) -> bytes:
        """A whole response around what the model says."""
        message = {"role": "assistant", "content": content}
        value: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        if self.usage:
            value["usage"] = {"prompt_tokens": self.tokens[0], "completion_tokens": self.tokens[1]}
        return json.dumps(value).encode()


@contextlib.contextmanager
def serving(judge: JudgeServer) -> Iterator[JudgeServer]:
    """`judge`, reachable under its `url`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with lock:
                judge.requests += 1
                number = judge.requests
                judge.authorizations.add(self.headers["Authorization"])
                judge.bodies.append(body)
            odd = judge.hook(number, question) if judge.hook is not None else None
            if odd is None:
                odd = Odd(content=judge.verdict(question))
            content = odd.body if odd.content is None else judge.completion(odd.content)
            with contextlib.suppress(OSError):  # whoever asked may have been killed
                self.send_response(odd.status)
                self.send_header("Content-Type", odd.kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()
                with lock:
                    if odd.status == 200:
                        judge.questions.append(question)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
