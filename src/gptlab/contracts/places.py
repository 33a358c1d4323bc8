"""Where a slot stands in a config: found by walking the default config and the signatures of its components, so a new
kind of slot is met where it is used, and refused loudly where it is used nowhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from gptlab.config import SLOTS, RunConfig
from gptlab.config.signatures import signature
from gptlab.errors import ConfigError

NULL_DEFAULTS = {"mix": ("data", "Weights"), "stream": ("data", "BatchStream"), "growth": ("train", "Fixed")}
"""Slots of other sections than the model, which are null by default: the section, and what null means."""


@functools.cache
def places() -> dict[str, tuple[str, ...]]:
    """Slot kind → the keys that lead to it in a config; where there are several, the shortest."""
    default = RunConfig()
    queue: list[tuple[tuple[str, ...], str, str | None]] = [
        ((kind,), kind, getattr(default, kind)["use"]) for kind in RunConfig.model_fields if kind in SLOTS
    ]
    queue += [((section, kind), kind, None) for kind, (section, _) in NULL_DEFAULTS.items()]
    found: dict[str, tuple[str, ...]] = {}
    while queue:
        path, kind, use = queue.pop(0)
        found.setdefault(kind, path)
        if use is None:
            continue
        known = signature(kind, use)
        for name, nested in known.nested.items():
            value = known.schema.model_fields[name].default
            inner = value.get("use") if isinstance(value, Mapping) else value
            queue.append(((*path, name), nested, inner if isinstance(inner, str) else None))
    return found


def default_component(kind: str) -> Any:
    """The slot value that a default run has in `kind`'s place, or means where it has none."""
    if kind in NULL_DEFAULTS:
        return NULL_DEFAULTS[kind][1]
    value: Any = RunConfig()
    for key in place_of(kind):
        value = getattr(value, key)
    return value["use"]


def place_of(kind: str) -> tuple[str, ...]:
    if kind not in places():
        raise ConfigError(
            f"slot {kind!r} is used nowhere in a default run, so nothing can be checked in it; let the model, or a "
            "component of it, have an argument for it"
        )
    return places()[kind]


def nested(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value
