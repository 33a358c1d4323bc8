"""`gptlab new component`: a working starting file, its config as a diff, and its test."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.config import SLOTS, dump_yaml, load_config
from gptlab.config.preset import reference, require_config
from gptlab.contracts.places import nested, places
from gptlab.errors import ConfigError, did_you_mean, option
from gptlab.files import atomic_folder, check_place

_TEMPLATES = Path(__file__).parent / "templates"
_CLASS = "MyIdea"  # what the class is called in every template


@dataclass(frozen=True)
class WrittenComponent:
    """What was written: the component's file, the config that uses it, its test, and how `use` names it."""

    code: Path
    config: Path
    test: Path
    use: str


def write_component(kind: str, name: str, *, base: str | Path, folder: Path) -> WrittenComponent:
    """Write `folder` with a component for slot `kind` that works, a config that is a diff against `base`, and a test.

    Raises ConfigError for a kind that does not exist, a name that is no name, a base that is no config, and a folder
    that exists already. Nothing is written then.
    """
    if kind not in SLOTS:
        raise ConfigError(f"no slot is called {kind!r}; {did_you_mean(kind, SLOTS)}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ConfigError(f"{name!r} is no name for an idea; use letters, digits and -, beginning with a letter")
    check_place(folder, option("out", argument="folder"))
    if folder.exists():
        raise ConfigError(
            f"{folder} exists already; choose another name, or another folder with {option('out', argument='folder')}"
        )
    require_config(base, "to make a diff against", "base")
    class_name = class_name_of(name)
    module = name.replace("-", "_") + ".py"
    diff = {"base": reference(base, folder), **component_diff(kind, f"./{module}:{class_name}", base)}
    with atomic_folder(folder) as aside:
        (aside / module).write_text(component_source(kind, class_name), encoding="utf-8")
        (aside / f"{name}.yaml").write_text(dump_yaml(diff), encoding="utf-8")
        test = (_TEMPLATES / "test_component.txt").read_text(encoding="utf-8")
        for key, value in {"MODULE": module, "CLASS": class_name, "NAME": name, "KIND": kind}.items():
            test = test.replace(f"@{key}@", value)
        (aside / f"test_{module}").write_text(test, encoding="utf-8")
    return WrittenComponent(
        folder / module, folder / f"{name}.yaml", folder / f"test_{module}", f"{_shown(folder / module)}:{class_name}"
    )


def class_name_of(name: str) -> str:
    """`my-idea` as the name of a class: MyIdea."""
    words = "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_.]+", name))
    words = words if words[:1].isalpha() else f"Idea{words}"
    return f"{words}Idea" if keyword.iskeyword(words) else words


def component_source(kind: str, class_name: str) -> str:
    """The source of a small working component for slot `kind`. Raises ConfigError where there is no such slot."""
    if kind not in SLOTS:
        raise ConfigError(f"no slot is called {kind!r}; {did_you_mean(kind, SLOTS)}")
    code = (_TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")
    return re.sub(rf"\b{_CLASS}\b", class_name, code)


def component_diff(kind: str, use: str, base: str | Path) -> dict[str, Any]:
    """The part of a config that puts `use` into `kind`'s place; of a mixture, also the data that it mixes."""
    data = load_config(base).data
    if kind != "mix":
        return dict(nested(places()[kind], use))
    if data.sources is None and data.path is None:
        raise ConfigError(f"{base} names no data to mix; give it data.path, or choose another {option('base')}")
    sources = data.sources or {"a": data.path, "b": data.path}  # the same one twice: put yours in its place
    return {"data": {"path": None, "sources": dict(sources), "mix": use}}


def _shown(path: Path) -> str:
    """A path as `use` needs it: with something before the name, so that it is seen to be a path."""
    return str(path) if path.is_absolute() else f"./{path}"
