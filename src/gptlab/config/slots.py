"""Slot values: `{use: NAME, **arguments}`, or just `NAME`, of a place where one component can replace another.

NAME is

- a class of the slot's home module (`SwiGLU` for `mlp` is `gptlab.model.mlp.SwiGLU`),
- an import path (`package.module:Name`), or
- a file (`./idea.py:MyMLP`), relative to the YAML it is written in.

A component's constructor is its schema. The framework passes positional parameters *by name* (`dim`, `layer_index`, …:
`SLOTS` lists those that each slot provides); keyword-only parameters are what YAML may set, type-checked from their
annotations. Nested slots are parameters annotated `Annotated[Slot, "mlp"]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from gptlab.config.messages import SlotError, explain
from gptlab.config.signatures import component_names, is_own_source, locate, signature
from gptlab.errors import ConfigError, did_you_mean


class Slot(Mapping[str, Any]):
    """A validated slot value: `use` plus every argument, defaults written out. Reads as a mapping or by attribute."""

    def __init__(self, kind: str, values: Mapping[str, Any]) -> None:
        self._kind, self._values = kind, dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        try:
            return self._values[key]
        except KeyError:
            raise AttributeError(f"{self._kind} {self._values['use']} has no argument {key!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Slot({self._kind}: {self._values})"

    @property
    def kind(self) -> str:
        """Which slot this is a value for: `mlp`, `optimizer`, …"""
        return self._kind

    def plain(self) -> dict[str, Any]:
        """As nested dictionaries, ready for YAML."""
        return {key: _plain(value) for key, value in self._values.items()}

    def replace(self, **arguments: Any) -> Slot:
        """The same component with some arguments changed, validated again."""
        return validate_slot(self._kind, {**self.plain(), **arguments})


def _plain(value: Any) -> Any:
    if isinstance(value, Slot):
        return value.plain()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def validate_slot(kind: str, value: Any, *, default: str | None = None) -> Slot:
    """`value` (a NAME, a mapping with `use`, or a Slot) with every default written out.

    `default` names the component where a mapping has no `use`. Raises SlotError (with the key path) or ConfigError.
    """
    if isinstance(value, Slot):
        value = value.plain()
    if isinstance(value, str):
        value = {"use": value}
    if not isinstance(value, Mapping):
        raise SlotError((), f"expected a component name or a mapping with `use`, found {value!r}")
    arguments = dict(value)
    use = arguments.pop("use", default)
    if use is None:
        raise SlotError((), f"no component named; add `use: NAME`, one of {', '.join(component_names(kind))}")
    if not isinstance(use, str):
        raise SlotError(("use",), f"expected a component name, found {use!r}")
    try:
        found = signature(kind, use)
    except ConfigError as error:
        raise SlotError(("use",), str(error)) from None
    known = found.schema.model_fields
    for key in arguments:
        if key not in known:
            raise SlotError((key,), f"{found.name} has no argument {key!r}; {did_you_mean(key, known)}")
    for name, nested_kind in found.nested.items():
        nested_default = known[name].default
        given = arguments.get(name, nested_default)
        if given is None and name not in arguments:
            continue
        if given is None and nested_default is None:
            continue
        try:
            default_use = nested_default if isinstance(nested_default, str) else None
            arguments[name] = validate_slot(nested_kind, given, default=default_use)
        except SlotError as error:
            raise SlotError((name, *error.path), error.message) from None
    try:
        checked = found.schema.model_validate(arguments)
    except pydantic.ValidationError as error:
        raise SlotError(*explain(error, found.schema, arguments)) from None
    return Slot(kind, {"use": use, **{key: getattr(checked, key) for key in known}})


def used_modules(slot: Slot) -> dict[str, Path]:
    """Modules of a user's own, by the import path that a slot value names components with; nested ones too."""
    found: dict[str, Path] = {}
    module, _, _ = str(slot["use"]).rpartition(":")
    if module and not module.endswith(".py") and is_own_source(file := locate(slot.kind, slot["use"])[1]):
        found[module] = file
    for value in slot.values():
        if isinstance(value, Slot):
            found |= used_modules(value)
    return found


def used_files(slot: Slot) -> dict[str, Path]:
    """Files of user components in a slot value, nested ones too, by the path it names them with."""
    found: dict[str, Path] = {}
    module, _, _ = str(slot["use"]).rpartition(":")
    if module.endswith(".py"):
        found[module] = Path(module)
    for value in slot.values():
        if isinstance(value, Slot):
            found |= used_files(value)
    return found
