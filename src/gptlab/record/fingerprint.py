"""Which code a run was computed by: a fingerprint over everything that training executes.

Two runs of one config are only comparable where the code between config and loss was the same. What counts is found and
not listed: the modules that `ENTRY` imports, directly or through others, less those of `NO_RESULT`. Of each the
top-level definitions are hashed one by one, without comments, docstrings, layout and imports, and the hashes are
sorted: where a definition stands does not matter, so a better explanation or a file that moves does not make last
month's baseline useless, and a new module that training uses counts without anybody listing it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

ENTRY = "training.loop"
"""The module that trains."""

_FACE = "__init__"  # `import gptlab` names everything and imports nothing

NO_RESULT = (
    "config",  # its values are hashed into the run's own name
    "console",
    "data.ngrams",  # to look for questions in training data
    "data.preparation",  # what it makes is known by its checksums
    "data.preset",
    "data.sources",
    "errors",
    "evals",
    "files",
    "hardware.allocator",
    "hardware.gpus",
    "inference.cache",
    "inference.generate",
    "inference.inspection",
    "inference.quantization",
    "planning",  # it refuses a run, and computes none
    "plotting",
    "processes",
    "record",
    "seal",
    "shown",
    "systems.display",
    "systems.metrics",
    "systems.plot",
    "systems.signals",
    "systems.sinks",
    "tokenizer",  # as preparation
    "training.conclusion",
    "training.processes",
    "training.samples",
    "training.tasks",
    "version",
)
"""What training imports and no loss depends on: to read, speak, draw, keep records. A name stands for all below it."""


@functools.cache
def code_fingerprint(package: Path = Path(__file__).parents[1]) -> str:
    """Eight hex digits of SHA-256 over the definitions that training in `package` (or a run's code/gptlab) executes."""
    definitions = sorted(
        hashlib.sha256(text.encode()).hexdigest()
        for module in reachable(package)
        for text in executable(module.read_text("utf-8"))
    )
    return hashlib.sha256("\n".join(definitions).encode()).hexdigest()[:8]


def reachable(package: Path) -> list[Path]:
    """The source files in `package` that `ENTRY` imports or names, directly or through others, less `NO_RESULT`.

    Components are named, by the table of slots in `config`, and never imported by what builds them.
    """
    found: dict[str, Path] = {}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        file = _file(package, name)
        if file is None or name in found or name == _FACE:
            continue
        found[name] = file
        waiting += _mentioned(ast.parse(file.read_text("utf-8")))
    return [found[name] for name in sorted(found) if not _without_result(name)]


def _without_result(name: str) -> bool:
    return any(name == listed or name.startswith(f"{listed}.") for listed in NO_RESULT)


def executable(source: str) -> list[str]:
    """The top-level statements of Python source, without what does not run (comments, layout, docstrings, what is for
    type checkers) and without imports. Raises SyntaxError."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
    tree = _WithoutImports().visit(tree)
    return [ast.unparse(node) for node in tree.body]


class _WithoutImports(ast.NodeTransformer):
    """Where a name comes from is told by what is imported being hashed itself."""

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def _mentioned(tree: ast.Module) -> Iterator[str]:
    """Modules of gptlab, without its name, that a module imports anywhere or names in a string (a slot's home)."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == "gptlab":
                yield from (_below(f"{module}.{name.name}") for name in node.names)
                yield _below(module)
            case ast.Import():
                yield from (_below(name.name) for name in node.names if name.name.startswith("gptlab."))
            case ast.Constant(value=str(text)) if text.startswith("gptlab.") and text.replace(".", "").isidentifier():
                yield _below(text)


def _below(module: str) -> str:
    return module.removeprefix("gptlab").removeprefix(".") or _FACE


def _file(package: Path, name: str) -> Path | None:
    path = package.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
