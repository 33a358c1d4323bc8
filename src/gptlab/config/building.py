"""From slot values to components: the one place that imports the class a slot names, and calls it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from gptlab.config.messages import SlotError
from gptlab.config.signatures import locate, signature
from gptlab.config.slots import Slot, validate_slot
from gptlab.errors import ConfigError, GptlabError

_CALLED = ("block", "attention", "mlp", "norm", "residual", "loss", "schedule", "growth")
"""Slots whose components are called."""


def import_component(kind: str, use: str) -> type:
    """Import the class that `use` names."""
    module_name, file, name = locate(kind, use)
    module = importlib.import_module(module_name) if module_name else run_file(file)
    component: type = getattr(module, name)
    return component


def run_file(file: Path) -> ModuleType:
    """The module that a user's file is. Here, and only here, one is run. Raises ConfigError where it fails."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    module_name = f"gptlab_idea_{file.stem}_{digest}"
    if module_name in sys.modules:
        module = sys.modules[module_name]
    else:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[module_name]
            frames = inspect.trace()
            if isinstance(error, KeyboardInterrupt) and frames[-1].filename != str(file):
                raise  # a person's, while the file was importing something
            line = next((t.lineno for t in reversed(frames) if t.filename == str(file)), 1)
            raise ConfigError(f"{file}:{line}: {type(error).__name__}: {error}".rstrip(": ")) from error
    return module


def build(kind: str, value: Any, *, default: str | None = None, **provided: Any) -> Any:
    """Build the component that a slot value names, passing what its constructor requires of `provided`.

    Raises ConfigError where the value does not fit the component, and whatever the constructor itself raises.
    """
    try:
        slot = value if isinstance(value, Slot) else validate_slot(kind, value, default=default)
        found = signature(kind, slot.use)
    except SlotError as error:
        key = ".".join((kind, *error.path))
        raise ConfigError(f"{key}: {error.message}", key=key) from None
    component = import_component(kind, slot.use)
    if kind == "optimizer":
        provided["params"] = provided["named_parameters"]
    given = {name: provided[name] for name in found.requires}
    try:
        made = component(**given, **{key: slot[key] for key in slot if key != "use"})
        if kind in _CALLED and not callable(made):
            raise ConfigError(
                f"{found.file}: {component.__name__} has no __call__, and a {kind} is called; make it a module of "
                "torch with a forward, or give it one",
                key=kind,
            )
        return made
    except GptlabError:
        raise
    except (Exception, SystemExit) as error:
        if component.__module__.partition(".")[0] == "gptlab":
            raise
        line = next((t.lineno for t in reversed(inspect.trace()) if t.filename == inspect.getfile(component)), 1)
        raise ConfigError(
            f"{found.file}:{line}: {component.__name__} cannot be built: {type(error).__name__}: {error}"
        ) from error
