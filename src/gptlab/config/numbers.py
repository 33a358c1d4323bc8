"""Numbers as people write them, `6e-4`, `1e9`, `2M`, `1.5B`, `100_000`, and the ranges that they must lie in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from gptlab.errors import ConfigError, option

_SUFFIX = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*)(?:\.\d*)?(?:[eE][+-]?\d+)?|[+-]?\.\d+(?:[eE][+-]?\d+)?)([KMBGT]?)", re.I)


def parse_number(text: str) -> int | float:
    """`text` as a number; whole values are `int`. K, M, B (or G) and T stand for powers of 1,000.

    Raises ValueError where `text` is no number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number; write it like 1000, 2M, 1.5B or 6e-4")
    digits, suffix = match[1].replace("_", ""), match[2].upper()
    scale = _SUFFIX[suffix]
    if re.fullmatch(r"[+-]?\d+", digits):
        return int(digits) * scale
    value = float(digits) * scale
    return int(value) if (suffix or "e" in digits.lower()) and value.is_integer() else value


BOUNDS: dict[str, int] = {
    "dim": 2**17,
    "layers": 1024,
    "heads": 2**13,
    "head_dim": 2**14,
    "context_length": 2**24,
    "sequence_length": 2**24,
    "batch_tokens": 2**33,
    "tokens": 10**15,
    "steps": 10**9,
    "seed": 2**63 - 1,
    "processes": 4096,
    "runs": 10_000,
    "minutes": 10**6,
    "vocab_size": 2**31 - 1,
    "metric": 10**12,
}
"""The largest value of each kind of size that anything can be made of: beyond it, something is looped over or allocated
that no machine can hold, before anybody could say so."""


_RANGES: dict[str, Callable[[float], bool]] = {
    "above 0": lambda value: value > 0,
    "above 1": lambda value: value > 1,
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0.1 to 10": lambda value: 0.1 <= value <= 10,
    "from 1 to 99": lambda value: 1 <= value <= 99,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
    "above 0 and at most 1": lambda value: 0 < value <= 1,
}


def require_range(where: str, must: str, **values: float | None) -> None:
    """Raise ConfigError for the first of `values`, arguments of what stands at `where`, that is out of range.

    `where` is the dotted key of a section or slot (`model.block.mlp`). `must` says the range as a person reads it, one
    of `_RANGES`; nothing infinite is in any. None passes.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and _RANGES[must](value)):
            key = f"{where}.{name}"
            raise ConfigError(f"{key}: {value:g} is out of range; make it {must}", key=key)


def require_bounds(where: str, **sizes: int | None) -> None:
    """Raise ConfigError for the first of `sizes`, kinds of `BOUNDS`, that is beyond what can be. None passes."""
    for name, value in sizes.items():
        if value is not None and value > BOUNDS[name]:
            key = f"{where}.{name}"
            raise ConfigError(
                f"{key}: {value:g} is more than anything here can hold; at most {BOUNDS[name]:,}", key=key
            )


def require_count(name: str, value: int | float, most: str) -> None:
    """Raise ConfigError where `value`, given to the option `name`, is beyond `BOUNDS` of `most`."""
    if not value <= BOUNDS[most]:
        raise ConfigError(
            f"{option(name, value)}: more than anything here can hold or wait for; at most {BOUNDS[most]:,}"
        )


def format_count(value: float) -> str:
    """A count for people: 999, 1.2K, 3.4M, 124.4M, 1.5B."""
    for scale, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.4g}"
