"""What is answered: texts from tokens, cut at what stops them, in the form of OpenAI's two endpoints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptlab.inference.engine import Scored
from gptlab.tokenizer import Tokenizer


@dataclass
class Piece:
    """What is new of a choice. `reason` is "" until it ends; `start` is where in the text the tokens begin."""

    index: int
    text: str = ""
    tokens: list[Scored] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    reason: str = ""


class Choice:
    """The text of one request, as the engine makes it token by token.

    What may be the beginning of a stop is held back until it is known. `publish` gets each piece, or with `whole` the
    one at the end; it is called in the engine's thread. `begins`: the text does not go on with the prompt's. `echo`:
    the prompt's text, where it is wanted again; the first `skip` of its tokens are none of the client's.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        publish: Callable[[Piece], None],
        *,
        begins: bool,
        echo: str = "",
        skip: int = 0,
        whole: bool = True,
    ) -> None:
        self.index, self.stops, self.publish, self.whole = index, stops, publish, whole
        self.count = 0
        self._skip, self._stream = skip, tokenizer.text_stream(begins=begins)
        self._tokenizer = tokenizer
        self._piece = Piece(index, echo)
        self._held = ""  # the end of the text, where it may be the beginning of a stop
        self._length = len(echo)  # of the text, what is held included
        self._stopped = False

    def prompt(self, scores: Sequence[Scored]) -> None:
        """The prompt's tokens stand before those of the answer."""
        stream, length = self._tokenizer.text_stream(begins=True), 0
        for scored in scores[self._skip :]:
            self._piece.tokens.append(scored)
            self._piece.starts.append(length)
            length += len(stream.feed(scored.id))

    def token(self, scored: Scored) -> bool:
        """Take a token; True where its text completes a stop."""
        self.count += 1
        self._piece.tokens.append(scored)
        self._piece.starts.append(self._length)
        self._add(self._stream.feed(scored.id))
        if not self.whole and not self._stopped:
            self._send()
        return self._stopped

    def end(self, reason: str, last: Scored | None = None) -> None:
        """Say what is left."""
        if last is not None:
            self.count += 1
            self._piece.tokens.append(last)
            self._piece.starts.append(self._length)
        if not self._stopped:
            self._add(self._stream.end())
            if not self._stopped:
                self._piece.text += self._held
        self._piece.reason = "stop" if self._stopped else reason
        self._send()

    def _send(self) -> None:
        if self._piece.text or self._piece.tokens or self._piece.reason:
            self.publish(self._piece)
            self._piece = Piece(self.index)

    def _add(self, text: str) -> None:
        self._length += len(text)
        text = self._held + text
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self._piece.text += text[: min(found)]
            self._held, self._stopped = "", True
            return
        kept = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._piece.text += text[: len(text) - kept]
        self._held = text[len(text) - kept :]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Writer:
    """The bodies of an answer: whole, or in the chunks of a stream. `logprobs`: whether they were asked for."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, pieces: Sequence[bytes], *, chat: bool, logprobs: bool
    ) -> None:
        self.chat, self.logprobs, self.pieces = chat, logprobs, pieces
        self.specials = {i: text for text, i in tokenizer.special_tokens.items()}
        self.kind = "chat.completion" if chat else "text_completion"
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """The answer, of one piece a choice."""
        choices = []
        for piece in pieces:
            body = {"message": {"role": "assistant", "content": piece.text}} if self.chat else {"text": piece.text}
            choices.append(self._choice(piece, body))
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage}

    def chunk(self, piece: Piece, *, usage_follows: bool = False) -> dict[str, Any]:
        """A piece of a stream."""
        body: dict[str, Any] = {"text": piece.text}
        if self.chat:
            body = {"delta": {"content": piece.text} if piece.text or not piece.reason else {}}
        return self._chunk([self._choice(piece, body)], {"usage": None} if usage_follows else {})

    def role(self, index: int, *, usage_follows: bool = False) -> dict[str, Any]:
        """How a stream of a chat begins."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._chunk([choice], {"usage": None} if usage_follows else {})

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk of a stream that was asked to count."""
        return self._chunk([], {"usage": usage})

    def _chunk(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else self.kind
        return {**self.head, "object": kind, "choices": choices, **more}

    def _choice(self, piece: Piece, body: dict[str, Any]) -> dict[str, Any]:
        logprobs = self._logprobs(piece) if self.logprobs else None
        return {"index": piece.index, **body, "logprobs": logprobs, "finish_reason": piece.reason or None}

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        if self.chat:
            return {"content": [self._of_chat(scored) for scored in piece.tokens], "refusal": None}
        return {
            "tokens": [self._text(scored.id) for scored in piece.tokens],
            "token_logprobs": [scored.logprob for scored in piece.tokens],
            # Of two tokens of one spelling the likelier stands: they come in that order.
            "top_logprobs": [
                None if scored.logprob is None else {self._text(i): value for i, value in reversed(scored.top)}
                for scored in piece.tokens
            ],
            "text_offset": piece.starts,
        }

    def _of_chat(self, scored: Scored) -> dict[str, Any]:
        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            data = self.specials[token].encode() if token in self.specials else self.pieces[token]
            return {"token": self._text(token), "logprob": logprob, "bytes": list(data)}

        return {**entry(scored.id, scored.logprob), "top_logprobs": [entry(*each) for each in scored.top]}

    def _text(self, token: int) -> str:
        """A token's text; bytes that are no characters by their numbers, as OpenAI writes them."""
        if token in self.specials:
            return self.specials[token]
        try:
            return self.pieces[token].decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.pieces[token])
