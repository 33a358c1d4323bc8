"""An endpoint that answers as OpenAI's chat completions do: OpenAI's own, a provider's, llama.cpp's, vLLM's, Ollama's.

The `openai` client speaks to it, and tries again where it is busy. The key comes from the environment and is written
nowhere: not into files, and not into errors that quote what a server said.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gptlab.config.jsonfile import parse_json
from gptlab.errors import GptlabError, option

if TYPE_CHECKING:
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
_TIMEOUT = 120.0  # seconds for one answer
_RETRIES = 4
_LARGEST = 4 << 20  # bytes of a response: a verdict has some hundred
_QUOTED = 160  # characters of what a server said in an error


class EndpointError(GptlabError):
    """An endpoint that cannot be reached, refuses, or answers with something else than a completion."""


@dataclass(frozen=True)
class Reply:
    """What a judge said. Tokens are None where the endpoint does not count them."""

    text: str
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class Address:
    """Where a judge is.

    Attributes:
        url: its base, such as https://api.openai.com/v1.
        own: whether the machine is one's own, here or in a private network.
    """

    url: str
    own: bool


def read_address(url: str) -> Address:
    """A URL that was given. Raises GptlabError for one that is none, holds a password or a query (it is kept beside the
    results), or would send a key unencrypted through the internet."""
    given = option("judge", url)
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise GptlabError(f"{given}: no URL; give one such as http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise GptlabError(f"{given}: no URL; give one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise GptlabError(
            f"{option('judge')}: a URL with a user, a query or a fragment, and it is kept beside the results; give the "
            f"bare one, and the key in the environment ({option('key_variable')})"
        )
    own = _is_own(host)
    if parts.scheme == "http" and not own:
        raise GptlabError(f"{given}: sends the key unencrypted through the internet; use https://")
    return Address(url.rstrip("/"), own)


def _is_own(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
        return address.is_private or address.is_loopback
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost", ".internal"))


def read_key(address: Address, variable: str | None) -> str:
    """The key: of the environment's `variable`, else of OPENAI_API_KEY; a machine of one's own gets none unless
    `variable` is named. Raises GptlabError where it is not set."""
    if variable is None and address.own:
        return "none"
    name = variable or KEY_VARIABLE
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        why = "holds no key" if not key else "holds characters that no key has"
        raise GptlabError(f"the environment's {name} {why}; set it, or name another with {option('key_variable')}")
    return key


class Endpoint:
    """An endpoint and one model of it, ready to be asked.

    Args:
        address: where it is.
        model: its name there.
        key: see `read_key`.
        limit: tokens that an answer may have.
        temperature: of the judge; None: not sent.

    Raises GptlabError where the `openai` client is not installed.
    """

    def __init__(self, address: Address, model: str, key: str, *, limit: int, temperature: float | None = None) -> None:
        try:
            import openai
        except ImportError:
            raise GptlabError("a judge is asked through the openai client; pip install 'gptlab[judge]'") from None
        self.address, self.model, self._key = address, model, key
        self._limit, self._limit_name = limit, "max_completion_tokens"
        self._more = {} if temperature is None else {"temperature": temperature}
        self._openai = openai
        self._client = openai.OpenAI(base_url=address.url, api_key=key, timeout=_TIMEOUT, max_retries=_RETRIES)

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply:
        """One answer. Raises EndpointError where there is none."""
        openai, url = self._openai, self.address.url
        again = "go on with the same command"
        try:
            return self._reply(self._send(messages))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if self._limit_name not in str(error) or self._limit_name == "max_tokens":
                raise self._refusal(error) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APITimeoutError:
            raise EndpointError(
                f"{url}: no answer within {_TIMEOUT:.0f} s; see whether it is busy, and {again}"
            ) from None
        except openai.APIConnectionError as error:
            cause = self._quoted(str(error.__cause__ or error))
            raise EndpointError(f"{url} cannot be reached ({cause}); check the URL, and {again}") from None
        except (openai.OpenAIError, ValueError) as error:
            raise EndpointError(f"{url}: {self._quoted(str(error))}; check the URL, and {again}") from None
        self._limit_name = "max_tokens"  # its older name, for servers that say they know no other
        return self.ask(messages)

    def _send(self, messages: Sequence[dict[str, str]]) -> bytes:
        """The body of a response, read by nobody yet. Raises errors of the client."""
        create: Any = self._client.chat.completions.with_raw_response.create
        raw = create(model=self.model, messages=list(messages), **{self._limit_name: self._limit}, **self._more)
        return bytes(raw.http_response.content)

    def _refusal(self, error: openai.APIStatusError) -> EndpointError:
        mend = {
            401: f"check the key, and the variable that holds it ({option('key_variable')})",
            403: "the key may not be used for this",
            404: f"check the URL, which mostly ends in /v1, and the name of the model ({option('model')})",
            429: "wait, or raise the limits of the account, and go on with the same command",
        }.get(error.status_code, "see what it says, and go on with the same command")
        return EndpointError(f"{self.address.url} answered {error.status_code} ({self._quoted(error.message)}); {mend}")

    def _reply(self, content: bytes) -> Reply:
        """The text of a completion. Raises EndpointError for anything else."""
        if len(content) > _LARGEST:
            raise self._odd(f"{len(content):,} bytes")
        try:
            values = parse_json(content, dict[str, Any])
            choice = values["choices"][0]
            text = choice["message"].get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            said = self._quoted(content[:2000].decode("utf-8", "replace"))
            raise self._odd(repr(said) if said else "nothing") from None
        usage = values.get("usage")
        return Reply(
            self.without_key(text) if isinstance(text, str) else "",
            _count(usage, "prompt_tokens"),
            _count(usage, "completion_tokens"),
        )

    def _odd(self, what: str) -> EndpointError:
        return EndpointError(
            f"{self.address.url} answered with {what}, which is no completion; is this the base URL of an "
            "OpenAI-compatible server?"
        )

    def _quoted(self, text: str) -> str:
        """What a server said, in a line, without the key."""
        line = " ".join(self.without_key(text).split())
        return line if len(line) <= _QUOTED else f"{line[:_QUOTED]}…"

    def without_key(self, text: str) -> str:
        """`text` with the key taken out: servers quote it."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None
