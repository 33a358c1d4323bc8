"""A conversation as the text that an instruct model was trained on, by the template that came with its tokenizer."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from gptlab.errors import DataError, option
from gptlab.tokenizer import Tokenizer


def render_chat(tokenizer: Tokenizer, turns: Sequence[Mapping[str, Any]]) -> str:
    """`turns`, each with a "role" and a "content", up to where the model is to answer; special tokens as their text.

    The template is a program of whoever published the model. It runs in Jinja's sandbox, as in transformers, and is
    given what transformers gives it. Raises DataError where there is no template, or it refuses or fails.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"tokenizer {tokenizer.name!r} has no chat template: it did not come with one; write the prompt out, with "
            f"{option('special')} for special tokens"
        )
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    named = {role: tokenizer.named_token(role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
    given = {role: text for role, text in named.items() if text is not None}
    try:
        template = environment.from_string(tokenizer.chat_template)
        return template.render(messages=list(turns), add_generation_prompt=True, tools=None, documents=None, **given)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"the chat template of tokenizer {tokenizer.name!r} gives no text: {reason}") from None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own writes < and > as a web page needs them


def _refuse(message: str) -> NoReturn:
    """What templates call for a conversation that they have no form for."""
    from jinja2 import TemplateError

    raise TemplateError(message)
