"""JSON files of ours, read as what they must be: every file that a person can edit comes in by `read_json`.

The kind is any type that pydantic knows: a dataclass, `list[dict[str, Any]]`. Numbers are not made of text, nor text
of numbers; NaN and Infinity are no JSON.
A file that carries a seal (`gptlab.seal`) is refused where it does not fit.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic
import pydantic_core

from gptlab.config.messages import problem_of
from gptlab.errors import GptlabError
from gptlab.seal import unsealed

Kind = TypeVar("Kind")


@functools.cache
def _adapter(kind: Hashable) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cast("Any", kind))


def parse_json(content: str | bytes, kind: type[Kind]) -> Kind:
    """`content` as a `kind`. Raises ValueError with what is wrong, in a line."""
    try:
        content = unsealed(pydantic_core.from_json(content, allow_inf_nan=False)) or content
        return cast("Kind", _adapter(cast("Hashable", kind)).validate_json(content, strict=True))
    except pydantic.ValidationError as error:
        raise ValueError(problem_of(error)) from None


def read_json(path: Path, kind: type[Kind], *, mend: str, error: type[GptlabError] = GptlabError) -> Kind:
    """The file at `path` as a `kind`.

    Raises FileNotFoundError where there is no such file, which every caller has its own word for; else `error`, which
    says what is wrong and ends with `mend`.
    """
    try:
        return parse_json(path.read_bytes(), kind)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem}); {mend}") from None
    except ValueError as problem:
        raise error(f"{path}: damaged ({problem}); {mend}") from None
