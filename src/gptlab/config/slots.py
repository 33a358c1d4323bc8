"""Slots: the places of a run where one component can take the place of another.

A slot value is `{use: NAME, **arguments}`, or just `NAME`. NAME is

- a class of the slot's home module (`SwiGLU` for `mlp` is `gptlab.model.mlp.SwiGLU`),
- an import path (`package.module:Name`), or
- a file (`./idea.py:MyMLP`), relative to the YAML it is written in.

A component's constructor is its schema. Parameters before the `*` are asked of the framework *by name*
(`dim`, `layer_index`, …: `SLOTS` lists what each slot is offered); keyword-only parameters are what YAML may set,
type-checked from their annotations. Nested slots are parameters annotated `Annotated[Slot, "mlp"]`.

Signatures are read from the source text and never by importing: validating a config neither loads torch nor runs
anybody's code. The price is that annotations are plain types and defaults are literals (docs/decisions/0003).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from gptlab.config.types import Boolean, Integer, Number, Text
from gptlab.errors import ConfigError, GptlabError, did_you_mean


@dataclass(frozen=True)
class SlotKind:
    """A kind of slot: the module whose classes are its menu, and the names that components may ask for."""

    home: str
    offers: tuple[str, ...]


_LAYER = ("dim", "layer_index", "layers", "heads", "head_dim", "context_length", "dropout", "vocab_size", "layer")

SLOTS: dict[str, SlotKind] = {
    "model": SlotKind("gptlab.model.transformer", ("vocab_size", "sequence_length")),
    "block": SlotKind("gptlab.model.block", (*_LAYER, "norm")),
    "attention": SlotKind("gptlab.model.attention", _LAYER),
    "mlp": SlotKind("gptlab.model.mlp", _LAYER),
    "norm": SlotKind("gptlab.model.norm", ("dim",)),
    "position": SlotKind("gptlab.model.position", ("dim", "heads", "head_dim", "context_length")),
    "residual": SlotKind("gptlab.model.residual", ("layers",)),
    "initialization": SlotKind("gptlab.model.initialization", ("layers",)),
    "loss": SlotKind("gptlab.loss", ()),
    "optimizer": SlotKind("gptlab.optim", ("named_parameters", "params")),  # torch's own call them params
    "schedule": SlotKind("gptlab.schedules", ("total_steps",)),
    "mix": SlotKind("gptlab.data.mixture", ("sources",)),
    "stream": SlotKind(
        "gptlab.data.batches",
        ("datasets", "mix", "sequence_length", "sequences_per_step", "seed", "total_steps", "epochs"),
    ),
}


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


@dataclass(frozen=True)
class Signature:
    """What a component's constructor asks for, read from source."""

    name: str
    asks: tuple[str, ...]  # by name, from the framework
    nested: dict[str, str]  # parameter -> slot kind
    schema: type[pydantic.BaseModel]  # what YAML may set
    file: Path


# ---------------------------------------------------------------- finding the source of a component


def _module_file(module: str) -> Path | None:
    """The source file of a module, found without importing it or its parents."""
    path: list[str] | None = None
    parts = module.split(".")
    for index in range(len(parts)):
        name = ".".join(parts[: index + 1])
        if index == 0:
            try:
                spec = importlib.util.find_spec(name)  # top level: nothing is imported by looking
            except (ImportError, ValueError):
                return None
        else:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def locate(kind: str, use: str) -> tuple[str, Path, str]:
    """Where `use` points: (module name or "", source file, class name). Raises ConfigError."""
    if kind not in SLOTS:
        raise ConfigError(f"no slot is called {kind!r}; {did_you_mean(kind, SLOTS)}")
    module, _, name = use.rpartition(":")
    if not module:
        module = SLOTS[kind].home
    if module.endswith(".py"):
        file = Path(module)
        if not file.is_file():
            raise ConfigError(f"{kind}: no file {file} (from `use: {use}`); a file is relative to the YAML naming it")
        return "", file, name
    found = _module_file(module)
    if found is None or found.suffix != ".py":
        raise ConfigError(f"{kind}: no module {module!r} (from `use: {use}`); install it or put it on PYTHONPATH")
    return module, found, name


# ---------------------------------------------------------------- reading the signature


@dataclass(frozen=True)
class _Source:
    """The classes at the top of a source file, and where each imported name comes from: (module, name or "")."""

    classes: dict[str, ast.ClassDef]
    imports: dict[str, tuple[str, str]]


@functools.lru_cache(maxsize=256)
def _source(file: Path, modified: int) -> _Source:
    """Parse a source file. `modified` keys the cache."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise ConfigError(f"{file}:{line}: not valid Python: {getattr(error, 'msg', error)}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    imports: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imports |= {(name.asname or name.name): (node.module, name.name) for name in node.names}
        elif isinstance(node, ast.Import):
            imports |= {(name.asname or name.name): (name.name, "") for name in node.names}
    return _Source(classes, imports)


def _imported(name: str, source: _Source) -> tuple[str, str] | None:
    """Where `name` (`Name`, or `module.Name`) was imported from: (module, name there)."""
    if name in source.imports:
        return source.imports[name]
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = source.imports.get(".".join(parts[:length]))
        if module is not None:
            return ".".join([*filter(None, module), *parts[length:-1]]), parts[-1]
    return None


def _read(file: Path) -> _Source:
    return _source(file, file.stat().st_mtime_ns)


_REEXPORTS = 8  # files that a class may be imported through


def _constructor(name: str, source: _Source) -> ast.FunctionDef | None:
    """`__init__` of a class: its own, or inherited from a class of the same file or of a module it imports."""
    for _ in range(_REEXPORTS):
        if name in source.classes:
            break
        module, name = _imported(name, source) or ("", "")
        file = _module_file(module) if module and name else None
        if file is None or file.suffix != ".py":
            return None
        source = _read(file)
    node = source.classes.get(name)
    if node is None:
        return None
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    for base in node.bases:
        if isinstance(base, ast.Name | ast.Attribute):
            found = _constructor(ast.unparse(base), source)
            if found is not None:
                return found
    return None


_TYPES: dict[str, Any] = {
    "int": Integer,
    "float": Number,
    "bool": Boolean,
    "str": Text,
    "None": None,
    "Any": Any,
}


def _annotation(node: ast.expr | None, where: str) -> tuple[Any, str | None]:
    """An annotation as (type for pydantic, nested slot kind or None)."""
    if node is None:
        return Any, None
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None), None
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id], None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _annotation(node.left, where), _annotation(node.right, where)
        return left[0] | right[0], left[1] or right[1]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        generic = node.value.id
        if generic == "Literal":
            return Literal[tuple(ast.literal_eval(item) for item in items)], None
        if generic == "Annotated" and isinstance(items[0], (ast.Name, ast.BinOp)):
            kind = str(ast.literal_eval(items[1]))
            optional = isinstance(items[0], ast.BinOp)
            return (Any | None if optional else Any), kind
        if generic in ("list", "tuple", "dict"):
            container = {"list": list, "tuple": tuple, "dict": dict}[generic]
            inner = [
                Ellipsis if isinstance(item, ast.Constant) and item.value is Ellipsis else _annotation(item, where)[0]
                for item in items
            ]
            return container[tuple(inner)], None  # type: ignore[index]
    raise ConfigError(
        f"{where}: annotation `{ast.unparse(node)}` is not one that YAML can be checked against; "
        "use int, float, bool, str, Literal, list, tuple, dict, unions of them, or Annotated[Slot, KIND]"
    )


def _literal(node: ast.expr, where: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ConfigError(f"{where}: the default `{ast.unparse(node)}` is not a literal; write the value out") from None


def signature(kind: str, use: str) -> Signature:
    """Read what component `use` of slot `kind` asks for. Raises ConfigError where it does not exist or cannot fit."""
    module, file, name = locate(kind, use)
    source = _read(file)
    classes = source.classes
    if name not in classes:
        choices = menu(kind) if module == SLOTS[kind].home else [c for c in classes if not c.startswith("_")]
        raise ConfigError(f"{kind}: nothing called {name!r} in {module or file}; {did_you_mean(name, choices)}")
    init = _constructor(name, source)
    where = f"{file}:{init.lineno if init else classes[name].lineno}: {name}"
    asks: list[str] = []
    nested: dict[str, str] = {}
    fields: dict[str, Any] = {}
    arguments = init.args if init else ast.arguments([], [], None, [], [], None, [])
    if arguments.vararg:
        raise ConfigError(f"{where}: *{arguments.vararg.arg} cannot be given by name; name the parameters")
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    required = len(positional) - len(arguments.defaults)
    settable = list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    for index, argument in enumerate(positional):
        if argument.arg in SLOTS[kind].offers:
            asks.append(argument.arg)
        elif index >= required:  # torch's own optimizers take theirs positionally, with defaults and types of their own
            fields[argument.arg] = (Any, pydantic.Field(default=_literal(arguments.defaults[index - required], where)))
        else:
            raise ConfigError(
                f"{where} asks for {argument.arg!r}, which slot {kind} is not given; it may ask for "
                f"{', '.join(SLOTS[kind].offers) or 'nothing'} (make it keyword-only to set it from YAML)"
            )
    for argument, default in settable:
        type_, slot_kind = _annotation(argument.annotation, where)
        if slot_kind is not None:
            nested[argument.arg] = slot_kind
        value = ... if default is None else _literal(default, where)
        fields[argument.arg] = (type_, pydantic.Field(default=value))
    schema = pydantic.create_model(
        name, __config__=pydantic.ConfigDict(extra="forbid", protected_namespaces=()), **fields
    )
    return Signature(name, tuple(asks), nested, schema, file)


def _is_component(kind: str, name: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a class of a home module belongs on this slot's menu (`transformer.py` holds two kinds)."""
    for item in classes[name].body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id == "slot":
            return bool(ast.literal_eval(item.value) == kind)
    return False


def menu(kind: str) -> list[str]:
    """The components in a slot's home module: classes that say `slot = KIND`."""
    _, file, _ = locate(kind, "_")
    classes = _read(file).classes
    return [name for name in classes if _is_component(kind, name, classes)]


# ---------------------------------------------------------------- validating and building


class SlotError(Exception):
    """A value that does not fit, with the path of keys to it, so that the loader can name file and line."""

    def __init__(self, path: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.path, self.message = path, message


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
        raise SlotError((), f"no component named; add `use: NAME`, one of {', '.join(menu(kind))}")
    if not isinstance(use, str):
        raise SlotError(("use",), f"expected a component name, found {use!r}")
    try:
        found = signature(kind, use)
    except ConfigError as error:
        raise SlotError(("use",), str(error)) from None
    for key in arguments:
        if key not in found.schema.model_fields:
            raise SlotError((key,), f"{found.name} has no argument {key!r}; {_hint(key, found)}")
    for name, nested_kind in found.nested.items():
        nested_default = found.schema.model_fields[name].default
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
        path, message = explain(error)
        raise SlotError(path, message) from None
    return Slot(kind, {"use": use, **{key: getattr(checked, key) for key in found.schema.model_fields}})


def _hint(key: str, found: Signature) -> str:
    return did_you_mean(key, found.schema.model_fields)


def explain(error: pydantic.ValidationError) -> tuple[tuple[str, ...], str]:
    """The first thing wrong, as (key path, message). The alternatives of a union are joined with "or"."""
    problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "missing":
        return tuple(str(p) for p in first["loc"]), f"{first['loc'][-1]!r} is required; give it a value"
    # pydantic appends the union member's name to `loc`; the value itself is the same object for all of them
    same = [p for p in problems if p["input"] is first["input"]]
    path = tuple(str(part) for part in first["loc"])
    if len(same) > 1:
        shared = [a for a, *rest in zip(*(p["loc"] for p in same), strict=False) if all(a == b for b in rest)]
        path = tuple(str(part) for part in shared)
    else:
        path = tuple(part for part in path if part not in _UNION_LABELS and "[" not in part)
    wants = " or ".join(dict.fromkeys(_want(p) for p in same))
    return path, f"{first['input']!r} does not fit: expected {wants}"


_UNION_LABELS = frozenset({"int", "float", "bool", "str"})


def _want(problem: Any) -> str:
    context = problem.get("ctx", {})
    match problem["type"]:
        case "literal_error":
            return str(context["expected"])
        case "none_required":
            return "null"
        case "value_error":
            return str(context["error"])
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"a number {str(problem['msg']).removeprefix('Input should be ')}"
        case "string_pattern_mismatch":
            return f"text that matches {context['pattern']}"
        case "list_type" | "tuple_type":
            return "a list"
        case "dict_type" | "model_type":
            return "a mapping"
        case _:
            message = str(problem["msg"])
            return message.removeprefix("Input should be ").removeprefix("Value error, ")


def import_component(kind: str, use: str) -> type:
    """Import the class that `use` names. Here, and only here, a user's file is run."""
    module_name, file, name = locate(kind, use)
    if module_name:
        module = importlib.import_module(module_name)
    else:
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
            except Exception as error:
                del sys.modules[module_name]
                line = next((t.lineno for t in reversed(inspect.trace()) if t.filename == str(file)), 1)
                raise ConfigError(f"{file}:{line}: {type(error).__name__}: {error}") from error
    component: type = getattr(module, name)
    return component


def build(kind: str, value: Any, *, default: str | None = None, **offered: Any) -> Any:
    """Build the component that a slot value names, giving it what it asks for out of `offered`.

    Raises ConfigError where the value does not fit the component, and whatever the constructor itself raises.
    """
    try:
        slot = value if isinstance(value, Slot) else validate_slot(kind, value, default=default)
        found = signature(kind, slot.use)
    except SlotError as error:
        raise ConfigError(f"{'.'.join((kind, *error.path))}: {error.message}") from None
    component = import_component(kind, slot.use)
    if kind == "optimizer":
        offered["params"] = offered["named_parameters"]
    given = {name: offered[name] for name in found.asks}
    try:
        return component(**given, **{key: slot[key] for key in slot if key != "use"})
    except GptlabError:
        raise
    except Exception as error:
        if component.__module__.partition(".")[0] == "gptlab":
            raise
        line = next((t.lineno for t in reversed(inspect.trace()) if t.filename == inspect.getfile(component)), 1)
        raise ConfigError(
            f"{found.file}:{line}: {component.__name__} cannot be built: {type(error).__name__}: {error}"
        ) from error


def used_files(slot: Slot) -> dict[str, Path]:
    """Every `./file.py` that a slot value reaches, by its `use` text."""
    found: dict[str, Path] = {}
    module, _, _ = str(slot["use"]).rpartition(":")
    if module.endswith(".py"):
        found[module] = Path(module)
    for value in slot.values():
        if isinstance(value, Slot):
            found |= used_files(value)
    return found
