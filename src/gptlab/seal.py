"""The seal of a JSON file of ours: a digest of its content, in the file itself, under `"seal"`.

A number that was edited into another possible number looks like a measurement. With its seal it is refused. It guards
against accidents, and is no signature: who deletes it is believed, and files of gptlab before 0.4 have none.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

SEAL = "seal"


def sealed_json(value: Any, *, indent: int | None = 1) -> str:
    """`value`, an object or a list of objects, as JSON with its seal: in the object, or in each one of the list."""
    seal = seal_of(value)
    sealed = [{**item, SEAL: seal} for item in value] if isinstance(value, list) else {**value, SEAL: seal}
    return json.dumps(sealed, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def seal_of(value: Any) -> str:
    """16 digits of SHA-256 of `value` as JSON; seals in it do not count, the order of its keys does."""
    return _digest(_canonical(_without_seal(value)))


def unsealed(value: Any) -> str:
    """`value` as it was before it was sealed, as JSON; empty where it has no seal. Raises ValueError where one does not
    fit."""
    items = value if isinstance(value, list) else [value]
    seals = [item[SEAL] for item in items if isinstance(item, dict) and SEAL in item]
    if not seals:
        return ""
    plain = _canonical(_without_seal(value))
    if any(seal != _digest(plain) for seal in seals):
        raise ValueError(f"it was edited since gptlab wrote it: who means the edit deletes {SEAL!r} in it")
    return plain


def _without_seal(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_seal(item) if isinstance(item, dict) else item for item in value]
    return {key: item for key, item in value.items() if key != SEAL}


def _canonical(plain: Any) -> str:
    return json.dumps(plain, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
