"""Types of config values: strict where a slip would be silent, lenient where people write the same thing two ways."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, StrictBool, StrictStr, WithJsonSchema
from pydantic_core import PydanticCustomError

from gptlab.config.messages import expected
from gptlab.config.numbers import parse_number


def _number(value: Any) -> int | float:
    if isinstance(value, bool):
        raise expected("a number, not true or false")
    if isinstance(value, str):
        try:
            value = parse_number(value)
        except ValueError:
            raise expected("a number such as 1000, 2M or 6e-4") from None
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise expected("a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise expected("a number below 2^63")
        return value
    raise expected("a number")


def _integer(value: Any) -> int:
    try:
        number = _number(value)
    except PydanticCustomError:
        raise expected("a whole number such as 1000 or 2M") from None
    if isinstance(number, float):
        if not number.is_integer():
            raise expected("a whole number")
        return int(number)
    return number


def _boolean(value: Any) -> Any:
    words = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if isinstance(value, bool):
        return value
    raise expected("true or false")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise expected("text (put it in quotes)")


_SUFFIXED = {"type": "string", "pattern": r"^[+-]?[0-9][0-9_]*(\.[0-9]*)?([eE][+-]?[0-9]+)?[KMBGTkmbgt]?$"}

Integer = Annotated[
    int,
    BeforeValidator(_integer),
    WithJsonSchema({"anyOf": [{"type": "number", "multipleOf": 1}, _SUFFIXED]}),
]
"""A whole number; `2M` and `1e9` are ones."""
Number = Annotated[float, BeforeValidator(_number), WithJsonSchema({"anyOf": [{"type": "number"}, _SUFFIXED]})]
"""Any number."""
Boolean = Annotated[StrictBool, BeforeValidator(_boolean), WithJsonSchema({"type": "boolean"})]
"""true or false; also yes, no, on, off."""
Text = Annotated[StrictStr, BeforeValidator(_text)]
"""Text; a number or a truth value must be quoted to count as text."""
