"""A run that is served: what was asked becomes requests to its engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptlab.errors import BusyError, GptlabError
from gptlab.inference.chat import render_chat
from gptlab.inference.engine import Engine, Request
from gptlab.inference.generate import Sampling
from gptlab.run import Run
from gptlab.serving.answers import Choice, Piece, Writer
from gptlab.serving.asked import ChatAsked, CompletionAsked, DetokenizeAsked, RefusedError, TokenizeAsked

_COMPLETION_TOKENS = 16  # where max_tokens is left out, as OpenAI has it


@dataclass(frozen=True)
class Limits:
    """What the server takes at once.

    Attributes:
        max_batch: texts that are continued together.
        max_waiting: texts that may wait beside them.
        max_new_tokens: the longest answer.
        max_body: bytes of a request.
        patience: seconds that a client may take to send its request, or not read what was sent to it; then its
            connection is closed.
    """

    max_batch: int = 32
    max_waiting: int = 256
    max_new_tokens: int = 4096
    max_body: int = 4 * 2**20
    patience: float = 30.0


@dataclass
class Answer:
    """Choices that are being made. `prompt_tokens` are those of all prompts."""

    writer: Writer
    choices: list[Choice]
    requests: list[Request]
    prompt_tokens: int

    def usage(self) -> dict[str, int]:
        """Tokens that were read and written so far."""
        made = sum(choice.count for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    def cancel(self) -> None:
        """Nobody wants it any more."""
        for request in self.requests:
            request.cancelled = True


@dataclass(frozen=True)
class _Prompt:
    """Ids, and how their answer begins: see `Choice`."""

    ids: list[int]
    begins: bool
    echo: str = ""
    skip: int = 0


class Served:
    """A run with an engine of its own, under the name of its folder."""

    def __init__(self, run: Run, name: str, limits: Limits) -> None:
        self.run, self.name, self.limits, self.created = run, name, limits, int(time.time())
        self.pieces = run.tokenizer.token_bytes()
        self.engine = Engine(
            run.generator,
            device=run.device,
            stop_ids=run.tokenizer.stop_ids,
            max_batch=limits.max_batch,
            max_waiting=limits.max_waiting,
        ).start()

    def card(self) -> dict[str, object]:
        """As /v1/models has it."""
        context = self.run.model.context_length
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "gptlab",
            "max_model_len": context,
        }

    def tokenize(self, asked: TokenizeAsked) -> dict[str, object]:
        """The ids of a text, as vLLM's servers answer it. Raises RefusedError."""
        tokenizer = self.run.tokenizer
        try:
            ids = tokenizer.encode(asked.prompt, allow_special=True)
        except GptlabError as error:
            raise RefusedError(f"prompt: {error}", param="prompt") from None
        ids = [tokenizer.end_of_text, *ids] if asked.add_special_tokens else ids
        return {"count": len(ids), "max_model_len": self.run.model.context_length, "tokens": ids}

    def detokenize(self, asked: DetokenizeAsked) -> dict[str, object]:
        """The text of ids. Raises RefusedError."""
        try:
            return {"prompt": self.run.tokenizer.decode(asked.tokens)}
        except GptlabError as error:
            raise RefusedError(f"tokens: {error}", param="tokens") from None

    def tokenizer_card(self) -> dict[str, object]:
        """What others need to know of the tokenizer."""
        tokenizer = self.run.tokenizer
        roles = {role: tokenizer.named_token(role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return {"tokenizer_class": "gptlab", **roles, "chat_template": tokenizer.chat_template}

    def complete(self, asked: CompletionAsked, publish: Callable[[Piece], None]) -> Answer:
        """Begin to answer. Raises RefusedError."""
        prompts = [self._prompt(prompt, bool(asked.echo)) for prompt in asked.prompt]
        length = _COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
        writer = Writer(self.name, self.run.tokenizer, self.pieces, chat=False, logprobs=asked.logprobs is not None)
        return self._begin(asked, prompts, length, asked.logprobs, writer, publish, score=bool(asked.echo))

    def chat(self, asked: ChatAsked, publish: Callable[[Piece], None]) -> Answer:
        """Begin to answer. Raises RefusedError, also where the tokenizer has no chat template."""
        if self.run.tokenizer.chat_template is None:
            raise RefusedError(
                f"{self.name} has no chat template: it was not trained on conversations; use /v1/completions",
                param="model",
                code="no_chat_template",
            )
        turns = [message.model_dump(exclude_none=True) for message in asked.messages]
        try:
            ids = self.run.tokenizer.encode(render_chat(self.run.tokenizer, turns), allow_special=True)
        except GptlabError as error:
            raise RefusedError(str(error), param="messages") from None
        room = max(1, min(self.run.model.context_length - len(ids), self.limits.max_new_tokens))
        length = asked.max_completion_tokens or asked.max_tokens or room
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        writer = Writer(self.name, self.run.tokenizer, self.pieces, chat=True, logprobs=bool(asked.logprobs))
        return self._begin(asked, [_Prompt(ids, begins=True)], length, logprobs, writer, publish)

    def _prompt(self, prompt: str | list[int], echo: bool) -> _Prompt:
        """A text stands after the separator, as in training; ids are taken as they are."""
        tokenizer = self.run.tokenizer
        try:
            if isinstance(prompt, str):
                return _Prompt(self.run.encode_prompt(prompt), False, prompt if echo else "", 1)
            if wrong := [token for token in prompt if not 0 <= token < tokenizer.vocab_size]:
                raise GptlabError(f"id {wrong[0]} is not in the vocabulary; ids are 0..{tokenizer.vocab_size - 1}")
            begins = prompt == [tokenizer.end_of_text]
            return _Prompt(prompt, begins, tokenizer.decode_continuation(prompt, begins=True) if echo else "")
        except GptlabError as error:
            raise RefusedError(f"prompt: {error}", param="prompt") from None

    def _begin(
        self,
        asked: CompletionAsked | ChatAsked,
        prompts: Sequence[_Prompt],
        length: int,
        logprobs: int | None,
        writer: Writer,
        publish: Callable[[Piece], None],
        *,
        score: bool = False,
    ) -> Answer:
        self._check(asked, prompts, length)
        choices: list[Choice] = []
        requests: list[Request] = []
        for prompt in prompts:
            for number in range(asked.n or 1):
                choice = Choice(
                    len(choices),
                    self.run.tokenizer,
                    asked.stop or (),
                    publish,
                    begins=prompt.begins,
                    echo=prompt.echo,
                    skip=prompt.skip,
                    whole=not asked.stream,
                )
                request = Request(
                    prompt.ids,
                    _sampling(asked, number),
                    choice,
                    length,
                    logprobs,
                    score_prompt=score and logprobs is not None,
                )
                choices.append(choice)
                requests.append(request)
        try:
            self.engine.submit(requests)
        except BusyError as error:
            raise RefusedError(f"{self.name} is busy: {error}", status=429, code="rate_limit_exceeded") from None
        return Answer(writer, choices, requests, sum(len(prompt.ids) for prompt in prompts))

    def _check(self, asked: CompletionAsked | ChatAsked, prompts: Sequence[_Prompt], length: int) -> None:
        context, vocab = self.run.model.context_length, self.run.model.vocab_size
        for prompt in prompts:
            if len(prompt.ids) > context:
                raise RefusedError(
                    f"the prompt has {len(prompt.ids):,} tokens, and {self.name} sees {context:,}; shorten it",
                    param="messages" if isinstance(asked, ChatAsked) else "prompt",
                    code="context_length_exceeded",
                )
        if length > self.limits.max_new_tokens:
            raise RefusedError(
                f"max_tokens: {length:,} is more than the {self.limits.max_new_tokens:,} that this server writes; "
                "lower it",
                param="max_tokens",
            )
        if asked.top_k is not None and asked.top_k > vocab:
            raise RefusedError(
                f"top_k: {asked.top_k:,}, and the vocabulary has {vocab:,} tokens; leave it out to keep all",
                param="top_k",
            )
        texts, most = len(prompts) * (asked.n or 1), self.limits.max_batch + self.limits.max_waiting
        if texts > most:
            raise RefusedError(
                f"{texts:,} texts in one request, and this server takes {most:,} at once; ask for fewer at a time",
                param="n" if len(prompts) == 1 else "prompt",
            )


def _sampling(asked: CompletionAsked | ChatAsked, number: int) -> Sampling:
    """Of the choice `number` of a prompt: their seeds follow one another."""
    seed = None if asked.seed is None else (asked.seed + number + 2**63) % 2**64 - 2**63
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        seed=seed,
        stop_at_end=not asked.ignore_eos,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
    )
