"""Continuous batching: requests that come at any time share one model, a token a row at a time.

One thread owns the model. A request joins the running batch at its next token: its prompt is read by itself, and what
was read of it becomes a row of the batch's cache. A row leaves when it ends or nobody wants it any more, and what a
request gets does not depend on who else is there: its logits are those of the text alone up to rounding, its draws come
from a generator of its own. Nobody who reads slowly holds the others: a row hands over its tokens and goes on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from gptlab.console import say
from gptlab.errors import BusyError, GptlabError
from gptlab.inference.cache import RowCache
from gptlab.inference.decoder import read_texts, seen_tokens, window_start
from gptlab.inference.generate import Sampling, sample_token

_PROMPT_TOKENS = {"cpu": 2**10, "mps": 2**12, "cuda": 2**14}
"""Places of prompts, padding included, that are read between two tokens of the others; a prompt alone may have more."""

_CHUNK_LOGITS = 2**25


@dataclass(frozen=True)
class Scored:
    """A token of a text. `logprob`: log p given those before it, nats, of the model's own distribution, whatever the
    sampling makes of it; None where it was not asked, or nothing stands before. `top`: the likeliest there, the
    likeliest first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Listener(Protocol):
    """Who gets what becomes of a request; called in the engine's thread, so it must not wait for anything."""

    def prompt(self, scores: Sequence[Scored]) -> None:
        """The prompt's tokens, where they were to be scored."""

    def token(self, scored: Scored) -> bool:
        """A new token. True: that was enough."""

    def end(self, reason: str, last: Scored | None = None) -> None:
        """No more will come: "stop" (end of text, or enough), "length", "cancelled"; "error: …" for a defect. `last`:
        the token that ended the text, which is none of it."""


@dataclass(eq=False)
class Request:
    """A text to go on with.

    Attributes:
        prompt: its ids, 1 to the model's context of them.
        sampling: how tokens are chosen. Its seed makes a generator of the request's own.
        new_tokens: at most so many; 0 where the prompt is only to be scored.
        logprobs: how many of the likeliest tokens are wanted at each place; None: not even log p of the token.
        score_prompt: whether the prompt's own tokens are scored too.
        cancelled: set from any thread: nobody wants it any more.
    """

    prompt: Sequence[int]
    sampling: Sampling
    listener: Listener
    new_tokens: int
    logprobs: int | None = None
    score_prompt: bool = False
    cancelled: bool = False


@dataclass(eq=False)
class _Row:
    """A request that is being answered. `seen`: True for the tokens that it has, (1, V), where that is asked.
    `start`: where the window begins that the cache holds."""

    request: Request
    ids: list[int]
    generator: torch.Generator | None
    seen: Tensor | None = None
    start: int = 0
    made: int = 0
    scored: bool = False


@dataclass
class Load:
    """What an engine is doing: rows in the batch, requests that wait, and what it did so far."""

    running: int = 0
    waiting: int = 0
    tokens: int = 0
    steps: int = 0
    most_at_once: int = field(default=0)


class Engine:
    """Answers requests with `model`, at most `max_batch` at once; `max_waiting` more may wait."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        stop_ids: Collection[int] = (),
        max_batch: int = 32,
        max_waiting: int = 256,
    ) -> None:
        self.model, self.device, self.stop_ids = model.eval(), device, frozenset(stop_ids)
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.context: int = model.context_length
        self.load = Load()
        self._cache = RowCache(len(model.blocks), device=device)
        self._rows: list[_Row] = []  # as the cache has them
        self._unread: deque[_Row] = deque()  # their window has moved: it is to be read anew
        self._joining: list[_Row] = []  # their text is being read
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> Engine:
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, requests: Sequence[Request]) -> None:
        """Take all of them, or none. Raises BusyError where so many find no place, GptlabError for a prompt that is
        empty or longer than the model's context, or for beams."""
        for request in requests:
            if request.sampling.beams > 1:
                raise GptlabError("texts that come token by token have no beams; use gptlab sample")
            if not 1 <= len(request.prompt) <= self.context:
                raise GptlabError(
                    f"a prompt has {len(request.prompt):,} tokens, and the model sees from 1 to {self.context:,}; "
                    "change its length"
                )
        with self._changed:
            free = self.max_waiting + max(0, self.max_batch - self.load.running) - len(self._waiting)
            if self._closed or len(requests) > free:
                raise BusyError(
                    f"{len(requests):,} more would wait beside {len(self._waiting):,}, and {self.max_waiting:,} may; "
                    "ask again later"
                )
            self._waiting.extend(requests)
            self.load.waiting = len(self._waiting)
            self._changed.notify()

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        with torch.inference_mode():
            self._answer_all()
        self._end_all("cancelled")

    def _answer_all(self) -> None:
        """Until it is closed."""
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._rows or self._unread):
                    self._changed.wait()
                if self._closed:
                    return
            try:
                self._step()
            except Exception as error:  # a defect, or no memory: those who are here are told, and the next are served
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                say(f"the engine gave up what it was answering: {reason}")
                self._end_all(f"error: {reason}")

    def _end_all(self, reason: str) -> None:
        with self._changed:
            waiting = list(self._waiting) if self._closed else []
            self._waiting = deque() if self._closed else self._waiting
        here = dict.fromkeys((*self._rows, *self._joining, *self._unread))
        for request in [*(row.request for row in here), *waiting]:
            request.listener.end(reason)
        self._rows, self._joining, self._unread = [], [], deque()
        self._cache = RowCache(len(self.model.blocks), device=self.device)
        self._count()

    def _step(self) -> None:
        """One token for every row, and the first for those who join."""
        self._sort_out()
        found: list[Tensor] = []
        if self._rows:
            ids = torch.tensor([row.ids[-1:] for row in self._rows], device=self.device)
            hidden = self.model(ids, cache=self._cache)
            self._cache.advance(1)
            found.append(self.model.logits(hidden[:, -1]))
        self._joining = self._next_to_read()
        if self._joining:
            found.append(self._read(self._joining))
            self._joining = []
        self._count()
        if found:
            self._hand_over(torch.cat(found).float())
        self._count()

    def _sort_out(self) -> None:
        """Let those go whom nobody wants, and take out those whose window moves."""
        for row in [row for row in self._rows if row.request.cancelled]:
            self._end(row, "cancelled")
        for row in [row for row in self._rows if window_start(len(row.ids), self.context) != row.start]:
            self._take_out(row)
            self._unread.append(row)
        for row in [row for row in self._unread if row.request.cancelled]:
            self._unread.remove(row)
            row.request.listener.end("cancelled")
        with self._changed:
            dropped = [request for request in self._waiting if request.cancelled]
            for request in dropped:
                self._waiting.remove(request)
        for request in dropped:
            request.listener.end("cancelled")

    def _next_to_read(self) -> list[_Row]:
        """Rows whose text is to be read now: as many as fit beside each other without the others waiting for long."""
        places, width = _PROMPT_TOKENS[self.device.type], 0
        chosen: list[_Row] = []
        windows: set[tuple[int, ...]] = set()  # that are to be read: rows may share one
        with self._changed:
            while self._unread or (self._waiting and len(self._rows) + len(chosen) < self.max_batch):
                text = self._unread[0].ids if self._unread else self._waiting[0].prompt
                window = tuple(text[window_start(len(text), self.context) :])
                widest = max(width, len(window))
                if chosen and window not in windows and widest * (len(windows) + 1) > places:
                    break
                width = widest
                windows.add(window)
                chosen.append(self._unread.popleft() if self._unread else self._begin(self._waiting.popleft()))
            self.load.waiting = len(self._waiting)
        return chosen

    def _begin(self, request: Request) -> _Row:
        generator = None
        if request.sampling.temperature > 0:
            generator, seed = torch.Generator(self.device), request.sampling.seed
            _ = generator.seed() if seed is None else generator.manual_seed(seed)
        seen = None
        if request.sampling.penalizes:
            seen = seen_tokens([request.prompt], self.model.vocab_size, self.device)
        return _Row(request, list(request.prompt), generator, seen)

    def _read(self, rows: list[_Row]) -> Tensor:
        """Read the windows of these rows and add them to the batch; the logits that follow. Those that are alike, as
        the choices of one prompt are, are read once."""
        for row in rows:
            row.start = window_start(len(row.ids), self.context)
        read = read_texts(self.model, [row.ids[row.start :] for row in rows], self.device)
        scores: dict[tuple[int, int], list[Scored]] = {}
        for row, number in zip(rows, read.row, strict=True):
            if row.request.score_prompt and not row.scored:
                row.scored = True
                key = (number, row.request.logprobs or 0)
                if key not in scores:
                    scores[key] = self._score(read.hidden[number, read.padding[number] :], row.ids, key[1])
                row.request.listener.prompt(scores[key])
        self._cache.join(read.cache)
        self._rows += rows
        return self.model.logits(read.last())

    def _score(self, hidden_TD: Tensor, ids: list[int], top: int) -> list[Scored]:
        """What each token of a text costs given those before it; the first has none before."""
        scores, targets = [Scored(ids[0])], torch.tensor(ids[1:], device=self.device)
        size = max(64, _CHUNK_LOGITS // self.model.vocab_size)
        for states, wanted in zip(hidden_TD[:-1].split(size), targets.split(size), strict=True):
            scores += score_tokens(self.model.logits(states).float(), wanted.tolist(), top)
        return scores

    def _hand_over(self, logits_BV: Tensor) -> None:
        """Choose each row's token, tell its listener, and let those go that have ended."""
        broken = logits_BV.isnan().any(-1).tolist()
        greedy = logits_BV.argmax(-1).tolist()
        ended: list[tuple[_Row, str, Scored | None]] = []
        for index, row in enumerate(self._rows):
            request, logits = row.request, logits_BV[index : index + 1]
            if request.new_tokens == 0:
                ended.append((row, "length", None))
                continue
            if broken[index]:
                ended.append((row, "error: the model's logits are not numbers; look at its weights", None))
                continue
            token = greedy[index]
            if row.generator is not None or row.seen is not None:
                token = int(sample_token(logits, request.sampling, row.generator, row.seen))
            if row.seen is not None:
                row.seen[0, token] = True
            scored = Scored(token)
            if request.logprobs is not None:
                (scored,) = score_tokens(logits, [token], request.logprobs)
            self.load.tokens += 1
            if request.sampling.stop_at_end and token in self.stop_ids:
                ended.append((row, "stop", scored))
                continue
            row.ids.append(token)
            row.made += 1
            if request.listener.token(scored):
                ended.append((row, "stop", None))
            elif row.made >= request.new_tokens:
                ended.append((row, "length", None))
        for row, reason, last in ended:
            self._end(row, reason, last)
        self.load.steps += 1

    def _end(self, row: _Row, reason: str, last: Scored | None = None) -> None:
        self._take_out(row)
        row.request.listener.end(reason, last)

    def _take_out(self, row: _Row) -> None:
        place = self._rows.index(row)
        self._cache.leave(place)
        self._rows[place] = self._rows[-1]
        self._rows.pop()

    def _count(self) -> None:
        with self._changed:
            self.load.running = len(self._rows) + len(self._unread)
            self.load.waiting = len(self._waiting)
            self.load.most_at_once = max(self.load.most_at_once, self.load.running)


def score_tokens(logits_NV: Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """log p of each of `tokens` under its row of logits, with the `top` likeliest there."""
    logprobs = logits_NV.log_softmax(-1)
    wanted = torch.tensor(tokens, device=logits_NV.device)[:, None]
    own = logprobs.gather(-1, wanted)[:, 0].tolist()
    if top == 0:
        return [Scored(token, value) for token, value in zip(tokens, own, strict=True)]
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    likeliest = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [Scored(*each) for each in zip(tokens, own, likeliest, strict=True)]
