"""pydantic's complaints in our words: the key that is wrong, and what was expected there.

A validator of ours says what kind of value it wants with `expected`; any other ValueError is taken as a whole sentence,
which `broken_rule` can give the key it is about. `validated` makes one ConfigError of it all: file and line, key,
message.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails, PydanticCustomError

from gptlab.config.yamlfile import KeyPath, Origin, find_origin
from gptlab.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=pydantic.BaseModel)

_EXPECTED, _RULE = "expected", "broken_rule"  # our own types of error, beside pydantic's

_WANTED = {
    _EXPECTED: "{what}",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number greater than or equal to {ge:g}",
    "int_type": "a whole number",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number less than or equal to {le:g}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "none_required": "null",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_type": "text",
    "too_long": "{max_length} items at most",
    "too_short": "{min_length} items or more",
    "tuple_type": "a list",
}
"""What was expected, by pydantic's type of error, with the fields of its context."""


class SlotError(ConfigError):
    """A slot value that does not fit its component. `path`: the keys from the slot's own on; `message`: without them.

    It is raised inside of a config, so that the loader can put the keys above it, file and line in front.
    """

    def __init__(self, path: KeyPath, message: str) -> None:
        super().__init__(": ".join(filter(None, (".".join(path), message))), key=".".join(path) or None)
        self.path, self.message = path, message


def expected(what: str) -> PydanticCustomError:
    """To raise in a validator: the value does not fit, and this is what would."""
    return PydanticCustomError(_EXPECTED, "{what}", {"what": what})


def broken_rule(message: str, *, key: str = "") -> PydanticCustomError:
    """To raise in a validator of a whole section: values that do not go together. `key`: the one to change, dotted and
    relative to the section."""
    return PydanticCustomError(_RULE, "{message}", {"message": message, "key": key})


def validated(
    model: type[Model],
    values: Mapping[str, Any],
    origins: Mapping[KeyPath, Origin],
    *,
    file: object = None,
    also: Sequence[str] = (),
) -> Model:
    """`values` as a `model`.

    Args:
        origins: where each value was written.
        file: what to name where no origin is known.
        also: keys at the top that are valid beside the model's fields.

    Raises ConfigError for the first thing that is wrong, unknown keys before all others.
    """
    try:
        return model.model_validate(values)
    except SlotError as error:
        path, message = error.path, error.message
    except pydantic.ValidationError as error:
        path, message = explain(error, model, values, also=also)
    where = find_origin(origins, path) or file
    parts = (str(where) if where is not None else "", ".".join(path), message)
    raise ConfigError(": ".join(filter(None, parts)), key=".".join(path) or None) from None


def explain(
    error: pydantic.ValidationError,
    model: type[pydantic.BaseModel],
    values: Mapping[str, Any],
    *,
    also: Sequence[str] = (),
) -> tuple[KeyPath, str]:
    """The first thing that is wrong with `values`, as (path of keys, message). Alternatives are joined with "or"."""
    problems = error.errors(include_url=False)
    unknown = next((problem for problem in problems if problem["type"] == "extra_forbidden"), None)
    if unknown is not None:
        path = _key_path(unknown["loc"], values)
        known = [*_fields_at(model, path[:-1]), *(also if len(path) == 1 else ())]
        return path, f"unknown key {path[-1]!r}; {did_you_mean(path[-1], known)}"
    first = problems[0]
    if first["type"] == "missing":
        *parents, last = first["loc"]
        return (*_key_path(tuple(parents), values), str(last)), f"{last!r} is required; give it a value"
    path, context = _key_path(first["loc"], values), first.get("ctx", {})
    if first["type"] == _RULE:
        return (*path, *filter(None, context["key"].split("."))), str(context["message"])
    if first["type"] == "value_error":
        return path, str(context["error"])
    wanted = dict.fromkeys(_wanted(problem) for problem in problems if _key_path(problem["loc"], values) == path)
    found = repr(first["input"])
    found = found if len(found) <= 100 else f"{found[:100]}…"
    return path, f"{found} does not fit: expected {' or '.join(wanted)}"


def problem_of(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong in a file of ours, in a line: the place in it, and what was expected there."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] in ("missing", "missing_argument"):
        return f"{where!r} is missing"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where!r} is unknown"
    if first["type"] == "json_invalid":
        return f"no JSON: {first['ctx']['error']}"
    wanted = str(first.get("ctx", {}).get("error", "")) if first["type"] == "value_error" else _wanted(first)
    found = repr(first["input"])
    found = found if len(found) <= 40 else f"{found[:40]}…"
    return f"{where or 'it'} is {found}, expected {wanted}" if first["type"] != "value_error" else f"{where}: {wanted}"


def _wanted(problem: ErrorDetails) -> str:
    template = _WANTED.get(problem["type"])
    return problem["msg"] if template is None else template.format(**problem.get("ctx", {}))


def _key_path(location: tuple[int | str, ...], value: Any) -> KeyPath:
    """The keys of pydantic's `location`, which also names the members of unions that were tried: those lead nowhere."""
    path: list[str] = []
    for part in location:
        is_index = isinstance(part, int) and isinstance(value, list | tuple) and part < len(value)
        if is_index or (isinstance(value, Mapping) and part in value):
            value = value[part]
            path.append(str(part))
    return tuple(path)


def _fields_at(model: Any, path: KeyPath) -> list[str]:
    """The keys that the section at `path` of `model` knows; none where it is no section."""
    for part in path:
        field = model.model_fields.get(part)
        model = None if field is None else _section_of(field.annotation)
        if model is None:
            return []
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The model that an annotation is, or has among its alternatives."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (types.UnionType, typing.Union) else ()
    for member in (annotation, *members):
        if isinstance(member, type) and issubclass(member, pydantic.BaseModel):
            return member
    return None
