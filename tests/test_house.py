"""The shape of the house, measured: no circle of imports, files and functions of a size that is read, one protocol."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import gptlab
from gptlab.model.component import PROTOCOL
from gptlab.record.fingerprint import ENTRY, NO_RESULT, code_fingerprint, executable, reachable

PACKAGE = Path(gptlab.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(file for file in PACKAGE.rglob("*.py") if "templates" not in file.parts)
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINES_OF_THE_READING_PATH = 450, 80, 700


def module_name(file: Path) -> str:
    parts = ("gptlab", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def imports_of(source: str, modules: set[str]) -> set[str]:
    """The modules that a source imports, anywhere in it: at its top, in a function, or for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in modules else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules - {"gptlab"}  # the package's face names everything


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others."""
    reach = {name: set(targets) for name, targets in graph.items()}
    changed = True
    while changed:
        changed = False
        for name, targets in reach.items():
            more = set().union(*(reach[target] for target in targets), targets)
            if more != targets:
                reach[name], changed = more, True
    return sorted(
        sorted(other for other in reach if name in reach[other] and other in reach[name])
        for name in reach
        if name in reach[name]
    )


BROUGHT = {
    "PIL": "matplotlib",
    "pydantic_core": "pydantic",
    "tiktoken_ext": "tiktoken",
    "IPython": "a notebook's kernel",
}
"""What is imported and not declared: the package that cannot be without it."""


def requirements() -> list[str]:
    """Every requirement that pyproject.toml names, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]


def distribution(requirement: str) -> str:
    """torch of "torch>=2.11"; one spelling for each (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def test_what_is_imported_is_declared() -> None:
    """What another package happens to bring may be gone with its next version, as click with typer's."""
    declared, brings = set(map(distribution, requirements())), packages_distributions()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - {"gptlab", *BROUGHT, *sys.stdlib_module_names}:
                owners = {distribution(owner) for owner in brings.get(top, [top])}
                assert owners & declared, f"{file.name} imports {top}, which pyproject.toml does not name"


def test_the_lock_is_of_what_is_declared() -> None:
    """`uv sync` refuses a lock that is older than pyproject.toml; after a change there: `uv lock`."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    (ours,) = (package for package in packages if package["name"] == "gptlab")
    asked = {(distribution(line["name"]), line.get("specifier", "")) for line in ours["metadata"]["requires-dist"]}
    for requirement in requirements():
        bounds = re.sub(r"^[\w.-]+(\[[^]]*\])?", "", requirement)
        assert (distribution(requirement), bounds) in asked, f"uv.lock does not have {requirement}"
    (locked,) = {package["version"] for package in packages if package["name"] == "torch"}
    assert f"torch=={locked}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imports_of(file.read_text("utf-8"), set(MODULES)) - {name} for name, file in MODULES.items()}
    assert circles(graph) == []


def test_a_circle_would_be_noticed() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from b import x\ndef f():\n    import c\n"
    assert imports_of(source, {"a", "b", "c"}) == {"b", "c"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]] * 3


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_files_and_functions_are_of_a_size_that_is_read(file: Path) -> None:
    source = file.read_text("utf-8")
    assert len(source.splitlines()) <= LINES_OF_A_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LINES_OF_A_FUNCTION, node.name


def lines_of(file: str, *classes: str) -> int:
    source = (PACKAGE / file).read_text("utf-8")
    if not classes:
        return len(source.splitlines())
    nodes = [node for node in ast.parse(source).body if getattr(node, "name", "") in classes]
    assert len(nodes) == len(classes)
    return sum((node.end_lineno or 0) - node.lineno + 1 for node in nodes)


def test_the_reading_path_is_one_sitting() -> None:
    """The model, its default block, and the loop with what it does to a batch."""
    path = [
        lines_of("model/transformer.py"),
        lines_of("model/block.py", "Block"),
        lines_of("training/loop.py"),
        lines_of("training/accumulation.py"),
    ]
    assert sum(path) <= LINES_OF_THE_READING_PATH


# ---------------------------------------------------------------- the protocol of components


def attributes_asked_for(source: str) -> Iterator[str]:
    """Names that a source asks things for by `getattr(x, "name", …)` or `hasattr(x, "name")`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value


def test_what_parts_read_of_each_other_is_read_by_the_protocol() -> None:
    declared = {attribute.name for attribute in PROTOCOL} - {"slot"}  # of a class, which the config reads in the source
    for file in FILES:
        if file != PACKAGE / "model" / "component.py":
            assert not declared & set(attributes_asked_for(file.read_text("utf-8"))), file


def test_every_attribute_of_the_protocol_is_read_where_it_says() -> None:
    for attribute in PROTOCOL:
        for reader in attribute.reader.split(", "):
            path = PACKAGE.joinpath(*reader.split("."))
            files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            source = "".join(file.read_text("utf-8") for file in files)
            calls = rf"(declared\w*|modules_with)\([^)]*\"{attribute.name}\"|\.{attribute.name}\b|{attribute.name}\("
            assert re.search(calls, source), f"{attribute.name} is not read in {reader}"


# ---------------------------------------------------------------- the fingerprint of code


def test_the_fingerprint_is_over_what_training_executes() -> None:
    """A new room that training uses shows up here: decide whether it computes a result, or belongs in NO_RESULT."""
    found = {file.relative_to(PACKAGE).as_posix() for file in reachable(PACKAGE)}
    assert {file.partition("/")[0] for file in found} == {
        "data",
        "growth.py",
        "hardware",
        "inference",
        "loss.py",
        "model",
        "optim.py",
        "parallel",
        "run.py",
        "schedules.py",
        "systems",
        "training",
    }
    assert {"model/mlp.py", "model/attention.py", "schedules.py", "data/batches.py"} <= found  # reached by name alone
    for name in (ENTRY, *NO_RESULT):
        path = PACKAGE.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} is gone"


def make_package(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_moving_a_definition_changes_no_fingerprint_and_changing_it_does(tmp_path: Path) -> None:
    step = "def step(x):\n    '''Doubles.'''\n    return 2 * x  # why\n"
    one = {"training/loop.py": f"from gptlab.console import say\nimport math\n\n{step}", "console.py": "say = print\n"}
    moved = {
        "training/loop.py": "from gptlab.model.step import step\n",
        "model/step.py": "def step(x):\n    return 2*x\n",
    }
    other = {"training/loop.py": step.replace("2 * x", "3 * x")}
    spoken = {**one, "console.py": "say = repr\n"}
    prints = [
        code_fingerprint(make_package(tmp_path / str(n), files)) for n, files in enumerate((one, moved, other, spoken))
    ]
    assert prints[0] == prints[1] == prints[3] != prints[2]


def test_what_does_not_run_is_left_out() -> None:
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import re\n"
    source = f"'''Module.'''\nimport os\n{types}def f():\n    import json\n"
    assert executable(source) == ["def f():\n    pass"]
