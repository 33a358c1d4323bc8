"""No option that nobody reads: every field of the schema, and every argument of every component, is used by code.

Read from source, by names: a field counts as read where an attribute of its name is taken from its section, which is
`….SECTION`, a local name for that, or a parameter annotated with the section's class.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import gptlab
from gptlab.config import SLOTS, RunConfig, component_names
from gptlab.config.building import import_component
from gptlab.config.schema import Section
from gptlab.config.signatures import signature

SOURCE = Path(gptlab.__file__).parent
SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def source_trees() -> Iterator[ast.Module]:
    """Every file of the package but the schema itself, which defines fields and so mentions all of them."""
    for file in sorted(SOURCE.rglob("*.py")):
        if file != SOURCE / "config" / "schema.py":
            yield ast.parse(file.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- fields of sections


def section_of(node: ast.expr, aliases: dict[str, str]) -> str:
    """Which section an expression is ("config" for the whole), or ""."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, "config" if node.id == "config" else "")
    if isinstance(node, ast.Attribute):
        if node.attr == "config":
            return "config"
        if node.attr in SECTIONS and section_of(node.value, aliases) == "config":
            return node.attr
    return ""


def aliases_in(function: ast.AST) -> dict[str, str]:
    """Local names of sections: annotated parameters, and assignments such as `log = job.config.log`."""
    by_class = {section.__name__: name for name, section in SECTIONS.items()} | {"RunConfig": "config"}
    found: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name) and node.annotation.id in by_class:
            found[node.arg] = by_class[node.annotation.id]
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for left, right in pairs:
                if isinstance(left, ast.Name) and (section := section_of(right, found)):
                    found[left.id] = section
    return found


def fields_read(trees: Iterable[ast.Module]) -> set[str]:
    """Dotted names of all fields that the code takes from a config."""
    found: set[str] = set()
    for tree in trees:
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]
        for function in functions:
            aliases = aliases_in(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    section = section_of(node.value, aliases)
                    if section:
                        found.add(node.attr if section == "config" else f"{section}.{node.attr}")
    return found


def all_fields(config: type[Section]) -> set[str]:
    """Dotted names of all fields; a section's own name is none, its fields are."""
    found: set[str] = set()
    for name, field in config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            found |= {f"{name}.{key}" for key in section.model_fields}
        else:
            found.add(name)
    return found


@pytest.fixture(scope="module")
def read() -> set[str]:
    found = fields_read(source_trees())
    # What RunConfig computes from fields (sequences_per_step, total_steps) is read where the property is.
    tree = ast.parse((SOURCE / "config" / "schema.py").read_text(encoding="utf-8"))
    (run_config,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RunConfig"]
    for node in run_config.body:
        if isinstance(node, ast.FunctionDef) and node.name in found:
            found |= {
                f"{inner.value.attr}.{inner.attr}"
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Attribute)
            }
    return found


@pytest.mark.parametrize("field", sorted(all_fields(RunConfig)))
def test_every_field_is_read(read: set[str], field: str) -> None:
    assert field in read, f"nothing reads {field}: use it, or take it out of the schema"


def test_the_walk_would_notice_a_field_that_nobody_reads(read: set[str]) -> None:
    class Log(SECTIONS["log"]):  # type: ignore[misc, valid-type, name-defined]
        colour: str = "blue"

    class Extended(RunConfig):
        log: Log = Log()
        mood: str = "good"

    assert all_fields(Extended) - read == {"log.colour", "mood"}
    assert len(all_fields(RunConfig)) > 30


def test_the_walk_tells_sections_apart() -> None:
    """`log.every` is not read by reading `eval.every`, nor by an attribute of something else that is called `log`."""
    code = "def f(job, log, data: Data):\n    e = job.config.eval\n    return e.every, log.every, x.log.keep, data.path"
    assert fields_read([ast.parse(code)]) == {"eval", "eval.every", "data.path"}


# ---------------------------------------------------------------- arguments of components

COMPONENTS = [(kind, name) for kind in SLOTS for name in component_names(kind)]


def parameters_used(component: type) -> set[str]:
    """Parameters of a constructor that its body uses.

    One that is only kept, as `self.x = x`, is used where `.x` is read in the component's classes.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(component.__init__)))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    kept: dict[int, str] = {}  # id of the node of a value -> attribute that it is kept in
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for left, right in pairs:
            if isinstance(left, ast.Attribute) and isinstance(right, ast.Name):
                kept[id(right)] = left.attr
    used: set[str] = set()
    attributes = attributes_read(component)
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                attribute = kept.get(id(node))
                if attribute is None or attribute in attributes:
                    used.add(node.id)
    return used - {"self"}


def attributes_read(component: type) -> set[str]:
    """Attributes of `self` (or of a name that may be the component) read in its classes."""
    found: set[str] = set()
    for cls in component.__mro__:
        if cls.__module__.startswith("gptlab") or cls.__module__ == component.__module__:
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
    return found


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=["-".join(pair) for pair in COMPONENTS])
def test_every_argument_of_every_component_is_used(kind: str, name: str) -> None:
    found = signature(kind, name)
    settable = set(found.schema.model_fields)
    if not settable:
        return
    unused = (settable | set(found.requires)) - parameters_used(import_component(kind, name))
    assert not unused, f"{kind} {name} takes {sorted(unused)} and does nothing with it"


class Careless:
    """What the walk must catch: `a` is used, `b` kept and read; `c` is kept and never read, `d` not even that."""

    def __init__(self, *, a: int = 1, b: int = 2, c: int = 3, d: int = 4) -> None:
        self.double = 2 * a
        self.b, self.c = b, c

    def __call__(self) -> int:
        return self.b


def test_the_walk_would_notice_an_argument_that_nobody_uses() -> None:
    assert parameters_used(Careless) == {"a", "b"}
