"""mkdocs hook: tables that come from the code, so that a page cannot say what the code does not do.

A line of its own in a page is replaced:

{{ slot KIND }}            every component on a slot's component_names, with its arguments
{{ component KIND NAME }}  one of them
{{ command NAME … }}       a command of `gptlab`: usage, arguments, options
{{ schema }}               the fields of a config, section by section
{{ experiment }}           the fields of an experiment.yaml
{{ verdicts NAME … }}      what came of experiments that come with gptlab, by their reports
{{ figures NAME }}         the pictures of such an experiment: its curves, and the differences seed by seed
{{ rooms }}                the rooms of the package: lines, and who imports them
{{ protocol }}             what parts of a model may read of each other
{{ configs }}              the configs that come with the project
{{ file PATH }}            a file of the repository, as a code block
{{ output ARGUMENTS … }}   what `gptlab ARGUMENTS …` prints, run in the repository

A directive that names something that does not exist stops the build.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic_core
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from gptlab.cli import app
from gptlab.config import SLOTS, RunConfig, component_names
from gptlab.config.building import import_component
from gptlab.config.schema import Section
from gptlab.config.signatures import signature
from gptlab.config.yamlfile import dump_yaml
from gptlab.lab.experiment.metric import Metric
from gptlab.lab.experiment.preset import shipped
from gptlab.lab.experiment.spec import ComputeCurve, DecisionRule, Statement
from gptlab.planning.formatting import format_seconds

ROOT = Path(__file__).resolve().parent.parent
_DIRECTIVE = re.compile(r"^\{\{ (\w+)((?: [^\s}]+)*) \}\}$", re.M)
_TYPES = {
    "PositiveInteger": "whole number, at least 1",
    "NonNegativeInteger": "whole number, at least 0",
    "Integer": "whole number",
    "TokenCount": "whole number, at least 1",
    "BatchTokens": "whole number, at least 1",
    "Length": "whole number, at least 1",
    "SeedNumber": "whole number, at least 0",
    "PositiveNumber": "number above 0",
    "Number": "number",
    "Boolean": "true or false",
    "Text": "text",
    "None": "null",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs once: pictures of the experiments that come with gptlab are served as figures/NAME/*.png."""
    for name, folder in shipped().items():
        for picture in sorted((folder / "figures").glob("*.png")):
            files.append(File.generated(config, f"figures/{name}/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return expand(markdown)


def expand(markdown: str) -> str:
    """`markdown` with every directive replaced. Raises ValueError for one that is not known."""

    def replace(match: re.Match[str]) -> str:
        name, arguments = match[1], match[2].split()
        if name not in DIRECTIVES:
            raise ValueError(f"no directive {{{{ {name} }}}}; docs/hooks.py has {', '.join(DIRECTIVES)}")
        return DIRECTIVES[name](*arguments)

    return _DIRECTIVE.sub(replace, markdown)


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def _value(value: Any) -> str:
    if isinstance(value, Section):
        return f"`{value}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{dump_yaml({'x': value}).removeprefix('x:').strip()}`"


# ---------------------------------------------------------------- components


def slot(kind: str) -> str:
    """All components of a slot."""
    names = component_names(kind)
    if not names:
        raise ValueError(f"slot {kind} has an empty menu")
    offers = ", ".join(f"`{name}`" for name in SLOTS[kind].provides) or "nothing"
    home = SLOTS[kind].module.replace(".", "/")
    intro = f"Home: `src/{home}.py`. A constructor may ask for: {offers}."
    return "\n\n".join([intro, *(component(kind, name) for name in names)])


def component(kind: str, name: str) -> str:
    """One component: its docstring and its arguments."""
    found = signature(kind, name)
    class_ = import_component(kind, name)
    parameters = inspect.signature(class_).parameters
    rows = []
    for argument, field in found.schema.model_fields.items():
        annotation = str(parameters[argument].annotation)
        kinds = found.nested.get(argument)
        shown = f"[slot {kinds}]({kinds}.md)" if kinds else f"`{annotation}`"
        if kinds and "None" in annotation:
            shown += " or null"
        rows.append((f"`{argument}`", shown, "required" if field.is_required() else _value(field.default)))
    table = _table(("argument", "type", "default"), rows) if rows else "No arguments."
    return f"### {name}\n\n{_docstring(class_)}\n\n{table}"


def _docstring(thing: Any) -> str:
    """A docstring as Markdown: papers become links, an `Args:` section becomes a list."""
    text = inspect.getdoc(thing)
    if not text:
        raise ValueError(f"{thing} has no docstring to show")
    text = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"(?<!\()https?://[^\s)]+", r"<\g<0>>", text)
    body, _, arguments = text.partition("\nArgs:\n")
    if arguments:
        listed, _, rest = arguments.partition("\n\n")
        items = re.sub(r"^ {4}(\w+):", r"- `\1`:", listed, flags=re.M)
        body += "\n" + re.sub(r"^ {8}", "  ", items, flags=re.M) + "\n\n" + rest
    return body.strip()


# ---------------------------------------------------------------- commands


def command_tree() -> Any:
    """What typer makes of the command line (of a click that it brings itself, hence no type to name)."""
    return typer.main.get_command(app)


def find_command(*names: str) -> Any:
    """The command that `gptlab NAMES…` runs. Raises ValueError where there is none."""
    found = command_tree()
    for name in names:
        children = getattr(found, "commands", {})
        if name not in children:
            raise ValueError(f"gptlab {' '.join(names)}: no command {name!r}; there are {', '.join(children)}")
        found = children[name]
    return found


def command(*names: str) -> str:
    """One command: usage, arguments, options, as `--help` has them."""
    found = find_command(*names)
    arguments = [p for p in found.params if p.param_type_name == "argument"]
    options = [p for p in found.params if p.param_type_name == "option"]
    usage = " ".join(["gptlab", *names, *(_placeholder(p) for p in arguments), "[OPTIONS]" if options else ""]).strip()
    rows = [(f"`{_placeholder(p)}`", str(getattr(p, "help", "") or ""), "") for p in arguments]
    rows += [(_option(p), str(getattr(p, "help", "") or ""), _default(p)) for p in options]
    table = _table(("", "", "default"), rows)
    return f"```text\n{usage}\n```\n\n{inspect.cleandoc(found.help or '')}\n\n{table}"


def _placeholder(parameter: Any) -> str:
    name = parameter.name.upper() + ("…" if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = " ".join(f"`{name}`" for name in parameter.opts if name.startswith("--"))
    if getattr(parameter, "is_flag", False):
        return names
    return names + (f" `{parameter.metavar}`" if parameter.metavar else "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(shown := getattr(parameter, "show_default", None), str):  # what stands for a None
        return f"`{shown}`"
    if getattr(parameter, "is_flag", False) or parameter.default in (None, [], ()) or callable(parameter.default):
        return ""
    return f"`{parameter.default}`"


# ---------------------------------------------------------------- configs


def schema() -> str:
    """Every field of a config."""
    top: list[tuple[str, ...]] = []
    parts: list[str] = []
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            table = _table(("key", "type", "default", "meaning"), list(_fields(section, f"{name}.")))
            parts.append(f"### {name}\n\n{_docstring(section)}\n\n{table}")
        elif name in SLOTS:
            top.append(
                (f"`{name}`", f"[slot {name}](../components/{name}.md)", f"`{field.default}`", "see the slot's page")
            )
        else:
            top.append(_field(RunConfig, name, field, ""))
    top.insert(
        1, ("`base`", "text", "`null`", "a config that this one is a diff against; the path is relative to this file")
    )
    return "\n\n".join([_table(("key", "type", "default", "meaning"), top), *parts])


def experiment() -> str:
    """Every field of an experiment.yaml."""
    rows: list[tuple[str, ...]] = []
    sections = {"": Statement, "metric.": Metric, "decision.": DecisionRule, "compute_curve.": ComputeCurve}
    for name, section in sections.items():
        for key, field in section.model_fields.items():
            default = "required" if field.default is pydantic_core.PydanticUndefined else _value(field.default)
            default = "see below" if isinstance(field.default, Section) else default
            rows.append((f"`{name}{key}`", default, str(field.description or "")))
    return _table(("key", "default", "meaning"), rows)


def verdicts(*names: str) -> str:
    """What came of experiments that come with gptlab, a row an arm, by their reports."""
    rows = []
    for name in names:
        report = json.loads((shipped()[name] / "report.json").read_text(encoding="utf-8"))
        for arm in report["arms"]:
            low, high = (f"{bound:+.3f}" if bound is not None else "?" for bound in arm["interval"])
            effect = f"{arm['difference']:+.3f} [{low}, {high}]"
            took = f"{report['runs']} runs, {format_seconds(report['seconds'])}"
            rows.append((f"`{name}`", f"`{arm['name']}`", f"*{arm['verdict']}*", effect, str(arm["seeds"]), took))
    return _table(("experiment", "arm", "verdict", "difference, in nats", "seeds", "it took"), rows)


def figures(name: str) -> str:
    """An experiment's curves, and its differences seed by seed; for pages that stand in docs/ itself."""
    if name not in shipped():
        raise ValueError(f"no experiment {name} comes with gptlab")
    place = f"figures/{name}"
    return f"![{name}: loss of both arms]({place}/losses.png)\n\n![{name}: differences]({place}/differences.png)"


def rooms() -> str:
    """The rooms of the package: lines, files, and which rooms import them, for types included."""
    package = ROOT / "src" / "gptlab"
    lines: dict[str, int] = {}
    files: dict[str, int] = {}
    importers: dict[str, set[str]] = {}
    for file in sorted(package.rglob("*.py")):
        if "templates" in file.parts or (file.parent == package and file.stem.startswith("_")):
            continue
        room, source = _room(file.relative_to(package).parts), file.read_text(encoding="utf-8")
        lines[room] = lines.get(room, 0) + len(source.splitlines())
        files[room] = files.get(room, 0) + 1
        for node in ast.walk(ast.parse(source)):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module is not None and module.startswith("gptlab."):
                other = _room(tuple(module.split(".")[1:]))
                importers.setdefault(other, set()).update({room} - {other})
    rows = [
        (
            f"`{room}`",
            f"{count:,}",
            str(files[room]),
            ", ".join(f"`{name}`" for name in sorted(importers.get(room, ()))),
        )
        for room, count in lines.items()
    ]
    return _table(("room", "lines", "files", "imported by"), rows)


def _room(parts: tuple[str, ...]) -> str:
    """The room that a module stands in; of the lab, its own rooms."""
    return "/".join(parts[:2]) if parts[0] == "lab" and len(parts) > 2 else parts[0].removesuffix(".py")


def protocol() -> str:
    """What parts of a model may read of each other."""
    from gptlab.model.component import PROTOCOL

    rows = [
        (f"`{a.name}`", a.on, f"`{a.type}`", "" if a.default is None else f"`{a.default}`", f"`{a.reader}`", a.meaning)
        for a in PROTOCOL
    ]
    return _table(("name", "of a", "type", "default", "read by", "meaning"), rows)


def _fields(section: type[Section], prefix: str) -> Iterator[tuple[str, ...]]:
    """A row a field, and of a section within it its own."""
    for key, field in section.model_fields.items():
        if isinstance(field.default, Section):
            yield from _fields(type(field.default), f"{prefix}{key}.")
        else:
            yield _field(section, key, field, prefix)


def _field(section: type[Section], key: str, field: Any, prefix: str) -> tuple[str, ...]:
    default = "required" if field.default is pydantic_core.PydanticUndefined else _value(field.default)
    return f"`{prefix}{key}`", _type(str(section.__annotations__[key])), default, str(field.description or "")


def _type(annotation: str) -> str:
    """An annotation of the schema as a person says it."""
    if annotation.endswith("Slot"):
        kind = annotation.removesuffix("Slot").lower()
        return f"[slot {kind}](../components/{kind}.md) or null"
    if annotation.startswith("Annotated["):
        inner, _, rest = annotation.removeprefix("Annotated[").partition(",")
        annotation = inner + (" | None" if rest.endswith("] | None") else "")
    if annotation.startswith("dict["):
        return "mapping of names to text, or null"
    if listed := re.fullmatch(r"tuple\[(.*), \.\.\.\]", annotation):
        return f"list of {_type(listed[1])}"
    words = []
    for part in annotation.split(" | "):
        literal = re.fullmatch(r"Literal\[(.*)\]", part)
        words += [word.strip().strip("\"'") for word in literal[1].split(",")] if literal else [_TYPES[part]]
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]


def configs() -> str:
    """The shipped configs, each with the comment that it begins with."""
    rows = []
    for path in sorted((ROOT / "src/gptlab/config/presets").glob("*.yaml")):
        comment: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#") or line.startswith("#  "):
                break
            comment.append(line.removeprefix("#").strip())
        rows.append((f"`{path.stem}`", " ".join(comment)))
    return _table(("config", "what"), rows)


def file(path: str) -> str:
    """A file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f'```{Path(path).suffix.lstrip(".")} title="{path}"\n{text}\n```'


def output(*arguments: str) -> str:
    """A command and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "gptlab", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"gptlab {' '.join(arguments)} exited with {done.returncode}: {done.stderr}")
    printed = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
    return f"```console\n$ gptlab {' '.join(arguments)}\n{printed}\n```"


DIRECTIVES: dict[str, Callable[..., str]] = {
    "slot": slot,
    "component": component,
    "command": command,
    "experiment": experiment,
    "verdicts": verdicts,
    "figures": figures,
    "protocol": protocol,
    "rooms": rooms,
    "schema": schema,
    "configs": configs,
    "file": file,
    "output": output,
}
