"""What may be asked of the server: OpenAI's parameters, each checked, and one line for what is wrong.

A parameter that the server would not act on is refused, not ignored: who sets a penalty expects other texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gptlab.errors import GptlabError, did_you_mean

_COLDEST = 1e-6  # of `Sampling`
_STOPS = 16


class RefusedError(GptlabError):
    """A request that cannot be answered.

    Attributes:
        status: of HTTP.
        param, code: as in OpenAI's errors: the parameter to blame, and a word for programs.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's servers write an error."""
        kinds = {429: "rate_limit_error", 500: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None


class _Asked(BaseModel):
    """What both endpoints take. `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are no parameters of OpenAI's:
    the first three as of `Sampling`; the last goes on after the end of a text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    metadata: Any = None
    store: Literal[False] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @field_validator("temperature")
    @classmethod
    def _warm_enough(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < _COLDEST:
            raise ValueError(f"must be 0, or from {_COLDEST} on")
        return value

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: Any) -> list[str]:
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise ValueError("must be a text, or a list of texts")
        if len(stops) > _STOPS:
            raise ValueError(f"has {len(stops)} texts, and {_STOPS} may be given")
        return [stop for stop in stops if stop]

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> _Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for a stream; set stream to true as well")
        return self


class CompletionAsked(_Asked):
    """The body of /v1/completions."""

    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: Literal[""] | None = None
    best_of: int | None = None

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: Any) -> list[str] | list[list[int]]:
        """One text or several, or ids; in the end a list of either."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list) and value and all(type(item) is int for item in value):
            value = [value]
        if not isinstance(value, list) or not (_all(value, _is_text) or _all(value, _is_ids)):
            raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")
        if not value or not all(value):
            raise ValueError("is empty; give at least one token (or text)")
        return value

    @model_validator(mode="after")
    def _best_of_all(self) -> CompletionAsked:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of other than n is not supported; leave it out")
        return self


def _all(value: list[Any], kind: Callable[[Any], bool]) -> bool:
    return all(map(kind, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _text_of(part: Any) -> str | None:
    known = isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text"
    return part["text"] if known and isinstance(part["text"], str) else None


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Any
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _text(cls, value: Any) -> str:
        if isinstance(value, str):
            return value
        texts = [_text_of(part) for part in value] if isinstance(value, list) else [None]
        if None in texts:
            raise ValueError("must be a text, or a list of {type: text, text: …}")
        return "".join(text for text in texts if text is not None)


class ResponseFormat(BaseModel):
    """`response_format`: a model here writes text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]


class ChatAsked(_Asked):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _one_length(self) -> ChatAsked:
        if self.max_tokens == 0:
            raise ValueError("max_tokens must be at least 1 here")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are two names of one thing; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs; set it to true as well")
        return self


class TokenizeAsked(BaseModel):
    """The body of /tokenize. Special tokens in the text are read as such; `add_special_tokens`: whether the separator
    stands before it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class DetokenizeAsked(BaseModel):
    """The body of /detokenize."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    tokens: list[int]


_Body = TypeVar("_Body", bound=BaseModel)


def read_asked(kind: type[_Body], body: bytes) -> _Body:
    """The request in `body`. Raises RefusedError for the first thing that is wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def _refusal(kind: type[BaseModel], error: ValidationError) -> RefusedError:
    first = error.errors(include_url=False, include_context=False)[0]
    words = [str(part) for part in first["loc"]]
    param = words[0] if words else None
    text = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    match first["type"]:
        case "json_invalid":
            return RefusedError(f"the body is not JSON: {text.partition(': ')[2] or text}", code="not_json")
        case "extra_forbidden" if len(words) == 1:
            return RefusedError(
                f"there is no parameter {_clip(words[0])} here, or it is not supported; "
                f"{did_you_mean(words[0], kind.model_fields)}",
                param=_clip(words[0], ""),
                code="unknown_parameter",
            )
        case "missing":
            return RefusedError(f"{'.'.join(words)} is missing; give it", param=param, code="missing_parameter")
    if param is None:
        return RefusedError(text if first["type"] == "value_error" else f"the body is no JSON object: {text}")
    where = ".".join(_clip(word, "") for word in words)
    given = "" if isinstance(first["input"], dict | list) else f" (given: {_clip(first['input'])})"
    return RefusedError(f"{where}: {text[:1].lower()}{text[1:]}{given}", param=param, code="invalid_value")


def _clip(value: object, quote: str = "'") -> str:
    """What was given, short enough for a line."""
    text = repr(value) if not isinstance(value, str) else f"{quote}{value}{quote}"
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 80 else f"{text[:77]}…"
