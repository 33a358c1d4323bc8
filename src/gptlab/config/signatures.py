"""Component signatures, read from source text: what a constructor needs from the framework, and what YAML may set.

Nothing is imported by it: validating a config neither loads torch nor runs anybody's code. The price is that
annotations are plain types and defaults are literals (docs/decisions/0003).
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from gptlab.config.types import Boolean, Integer, Number, Text
from gptlab.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class SlotKind:
    """A kind of slot.

    Attributes:
        module: its home; of a class there that says `slot = KIND`, the name alone is enough.
        provides: constructor arguments that the framework can pass.
    """

    module: str
    provides: tuple[str, ...]


_IN_BLOCK = (
    "dim",
    "layer_index",
    "layers",
    "heads",
    "head_dim",
    "context_length",
    "dropout",
    "vocab_size",
    "layer",
)

SLOTS: dict[str, SlotKind] = {
    "model": SlotKind("gptlab.model.transformer", ("vocab_size", "sequence_length")),
    "block": SlotKind("gptlab.model.block", (*_IN_BLOCK, "norm")),
    "attention": SlotKind("gptlab.model.attention", _IN_BLOCK),
    "mlp": SlotKind("gptlab.model.mlp", _IN_BLOCK),
    "norm": SlotKind("gptlab.model.norm", ("dim",)),
    "position": SlotKind("gptlab.model.position", ("dim", "heads", "head_dim", "context_length")),
    "residual": SlotKind("gptlab.model.residual", ("layers",)),
    "initialization": SlotKind("gptlab.model.initialization", ("layers",)),
    "loss": SlotKind("gptlab.loss", ()),
    "optimizer": SlotKind("gptlab.optim", ("named_parameters", "params")),  # torch's own call them params
    "schedule": SlotKind("gptlab.schedules", ("total_steps",)),
    "growth": SlotKind("gptlab.growth", ("batch_tokens", "parameters")),
    "mix": SlotKind("gptlab.data.mixture", ("sources",)),
    "stream": SlotKind(
        "gptlab.data.batches",
        ("datasets", "mix", "sequence_length", "sequences_per_step", "seed", "total_steps", "epochs"),
    ),
}


@dataclass(frozen=True)
class Signature:
    """What a component's constructor takes, read from source.

    Attributes:
        name: of the class.
        requires: arguments that the framework passes, by name.
        nested: arguments that are slots themselves, with their kind.
        schema: the arguments that YAML may set.
        file: the source file.
    """

    name: str
    requires: tuple[str, ...]
    nested: dict[str, str]
    schema: type[pydantic.BaseModel]
    file: Path


# ---------------------------------------------------------------- finding the source of a component


def _module_file(module: str) -> Path | None:
    """The source file of a module, found without importing it or its parents."""
    return _shipped_file(module) if module.startswith("gptlab.") else _find_module(module)


@functools.cache
def _shipped_file(module: str) -> Path | None:
    return _find_module(module)


def _find_module(module: str) -> Path | None:
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
    """Where `use` leads: (module, source file, class); the module of a file is "". Raises ConfigError."""
    if kind not in SLOTS:
        raise ConfigError(f"no slot is called {kind!r}; {did_you_mean(kind, SLOTS)}")
    module, _, name = use.rpartition(":")
    if not module:
        module = SLOTS[kind].module
    if module.endswith(".py"):
        file = Path(module)
        if not file.is_file():
            raise ConfigError(f"{kind}: no file {file} (from `use: {use}`); a file is relative to the YAML naming it")
        return "", file, name
    found = _module_file(module)
    if found is None or found.suffix != ".py":
        raise ConfigError(f"{kind}: no module {module!r} (from `use: {use}`); install it or put it on PYTHONPATH")
    return module, found, name


# ---------------------------------------------------------------- what else of a user's own a component runs

_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def is_own_source(file: Path) -> bool:
    """Whether a file is somebody's own: neither gptlab's nor Python's, nor of an installed package, all of which are
    known by their versions."""
    place = file.resolve()
    installed = any(place.is_relative_to(folder) for folder in (*_INSTALLED, Path(__file__).resolve().parents[1]))
    return file.suffix == ".py" and not installed and not {"site-packages", "dist-packages"} & set(place.parts)


def own_sources(file: Path) -> list[Path]:
    """The files of a user's own that `file` imports, directly or through others, without itself: what they do is as
    much the component's as what stands in its file. Those that are not found are not there to be imported."""
    found: dict[Path, None] = {file.resolve(): None}
    waiting = [file]
    while waiting:
        source = waiting.pop()
        for imported in _own_imports(source, source.stat().st_mtime_ns):
            if imported.resolve() not in found:
                found[imported.resolve()] = None
                waiting.append(imported)
    return sorted(path for path in found if path != file.resolve())


@functools.lru_cache(maxsize=256)
def _own_imports(file: Path, modified: int) -> tuple[Path, ...]:
    """The files of a user's own that the statements of a source file name. `modified` keys the cache."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return ()  # whoever reads it for its classes says so
    found: list[Path | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [_module_file(name.name) or _beside(file, name.name) for name in names]
            case ast.ImportFrom(module=module, names=names, level=0) if module:
                own = _module_file(module) or _beside(file, module)
                found.append(own)
                if own is not None and own.name == "__init__.py":
                    found += [_beside(own, name.name) for name in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                folder = file.parents[min(level, len(file.parents)) - 1]
                below = _beside(folder / "__init__.py", module) if module else folder / "__init__.py"
                found.append(below)
                found += [_beside(below or folder / "__init__.py", name.name) for name in names]
    return tuple(one for one in found if one is not None and one.is_file() and is_own_source(one))


def _beside(file: Path, module: str) -> Path | None:
    """The source of `module` in the folder of `file`."""
    place = file.parent.joinpath(*module.split("."))
    return next((one for one in (place.with_suffix(".py"), place / "__init__.py") if one.is_file()), None)


# ---------------------------------------------------------------- reading a source file


@dataclass(frozen=True)
class _SourceFile:
    """The classes at the top of a source file, and where each imported name comes from: (module, name or "")."""

    classes: dict[str, ast.ClassDef]
    imports: dict[str, tuple[str, str]]


@functools.lru_cache(maxsize=256)
def _parse_source(file: Path, modified: int) -> _SourceFile:
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
    return _SourceFile(classes, imports)


def _import_of(name: str, source: _SourceFile) -> tuple[str, str] | None:
    """Where `name` (`Name`, or `module.Name`) was imported from: (module, name there)."""
    if name in source.imports:
        return source.imports[name]
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = source.imports.get(".".join(parts[:length]))
        if module is not None:
            return ".".join([*filter(None, module), *parts[length:-1]]), parts[-1]
    return None


def _read_source(file: Path) -> _SourceFile:
    return _parse_source(file, file.stat().st_mtime_ns)


_MAX_REEXPORTS = 8  # files that a class may be imported through
_MAX_BASES = 50  # classes above a component; torch's own have five at most


def _find_init(name: str, source: _SourceFile, depth: int = 0) -> ast.FunctionDef | None:
    """`__init__` of a class: its own, or inherited from a class of the same file or of a module it imports."""
    if depth > _MAX_BASES:
        raise ConfigError(
            f"{name}: its base classes go {_MAX_BASES} deep, or in a circle; write an __init__ of its own"
        )
    for _ in range(_MAX_REEXPORTS):
        if name in source.classes:
            break
        module, name = _import_of(name, source) or ("", "")
        file = _module_file(module) if module and name else None
        if file is None or file.suffix != ".py":
            return None
        source = _read_source(file)
    node = source.classes.get(name)
    if node is None:
        return None
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    for base in node.bases:
        if isinstance(base, ast.Name | ast.Attribute):
            found = _find_init(ast.unparse(base), source, depth + 1)
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
            try:
                return container[tuple(inner)], None  # type: ignore[index]
            except TypeError as error:
                raise ConfigError(f"{where}: annotation `{ast.unparse(node)}`: {error}; name all types") from None
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
    """The signature of component `use` of slot `kind`. Raises ConfigError where it does not exist or cannot fit."""
    module, file, name = locate(kind, use)
    sources = [file, *own_sources(file)] if is_own_source(file) else [file]
    return _read_signature(kind, module, file, name, tuple(source.stat().st_mtime_ns for source in sources))


@functools.lru_cache(maxsize=256)
def _read_signature(kind: str, module: str, file: Path, name: str, modified: tuple[int, ...]) -> Signature:
    """The signature of a class. `modified`, of its file and of what that imports of a user's own, keys the cache."""
    source = _read_source(file)
    classes = source.classes
    if name not in classes:
        in_menu = module == SLOTS[kind].module
        choices = component_names(kind) if in_menu else [c for c in classes if not c.startswith("_")]
        raise ConfigError(f"{kind}: nothing called {name!r} in {module or file}; {did_you_mean(name, choices)}")
    init = _find_init(name, source)
    where = f"{file}:{init.lineno if init else classes[name].lineno}: {name}"
    requires: list[str] = []
    nested: dict[str, str] = {}
    fields: dict[str, Any] = {}
    arguments = init.args if init else ast.arguments([], [], None, [], [], None, [])
    if arguments.vararg:
        raise ConfigError(f"{where}: *{arguments.vararg.arg} cannot be given by name; name the parameters")
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    required = len(positional) - len(arguments.defaults)
    settable = list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    for index, argument in enumerate(positional):
        if argument.arg in SLOTS[kind].provides:
            requires.append(argument.arg)
        elif index >= required:  # torch's own optimizers take theirs positionally, with defaults and types of their own
            fields[argument.arg] = (Any, pydantic.Field(default=_literal(arguments.defaults[index - required], where)))
        else:
            raise ConfigError(
                f"{where} asks for {argument.arg!r}, which slot {kind} is not given; it may ask for "
                f"{', '.join(SLOTS[kind].provides) or 'nothing'} (make it keyword-only to set it from YAML)"
            )
    for argument, default in settable:
        if argument.arg.startswith("_") or hasattr(pydantic.BaseModel, argument.arg):
            raise ConfigError(f"{where}: {argument.arg!r} is no name that YAML can set; call the argument otherwise")
        type_, slot_kind = _annotation(argument.annotation, where)
        if slot_kind is not None:
            nested[argument.arg] = slot_kind
        value = ... if default is None else _literal(default, where)
        fields[argument.arg] = (type_, pydantic.Field(default=value))
    try:
        schema = pydantic.create_model(
            name, __config__=pydantic.ConfigDict(extra="forbid", protected_namespaces=()), **fields
        )
    except (pydantic.errors.PydanticUserError, TypeError, NameError) as error:
        raise ConfigError(f"{where}: its arguments cannot be checked: {str(error).splitlines()[0]}") from None
    return Signature(name, tuple(requires), nested, schema, file)


def _is_component(kind: str, name: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a class of a home module is a component of this slot (`transformer.py` holds two kinds)."""
    for item in classes[name].body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id == "slot":
            return bool(ast.literal_eval(item.value) == kind)
    return False


def component_names(kind: str) -> list[str]:
    """Names of the components that ship for a slot: classes of its module that say `slot = KIND`."""
    _, file, _ = locate(kind, "_")
    classes = _read_source(file).classes
    return [name for name in classes if _is_component(kind, name, classes)]
