"""Configs that come with gptlab, by name: `gptlab train gpt2` from any folder, `base: gptlab:gpt2` in a file.

They are the YAML files in `presets/` beside this module. The comment at the top of each says what it is.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from gptlab.errors import ConfigError, did_you_mean, option
from gptlab.files import what_is_there

PREFIX = "gptlab:"
"""Before the name of a preset where a path could stand as well."""


@functools.cache
def presets() -> dict[str, Path]:
    """The file of each preset, by name."""
    files = (Path(__file__).parent / "presets").glob("*.yaml")
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def find_config(source: str | Path, folder: Path = Path()) -> Path:
    """The file or run folder that `source` names: a path (relative to `folder`), or a preset's name.

    A bare name is a path where something is there, so that a file of one's own is never passed over; `gptlab:NAME` is
    always the preset. Raises ConfigError for a preset that does not exist. What is no preset is returned as a path.
    """
    text = str(source)
    if text.startswith(PREFIX):
        return _preset(text)
    path = folder / text
    if path.is_file() or (path / "config.yaml").is_file():
        return path
    return presets().get(text, path)


def require_config(source: str | Path, purpose: str, given: str) -> Path:
    """The file of a config that something new stands on. Raises ConfigError where there is none.

    `purpose`: "to compare with"; `given`: the option that names it.
    """
    path = find_config(source)
    if not path.is_file():
        raise ConfigError(f"no config at {source} {purpose} ({what_is_there(path)}); name one with {option(given)}")
    return path


def reference(source: str | Path, folder: Path) -> str:
    """How a file in `folder` names the config `source`: a preset by name, anything else by the way there."""
    path = find_config(source)
    return f"{PREFIX}{path.stem}" if path in presets().values() else os.path.relpath(path, folder)


def missing(path: Path) -> str:
    """What to say where no config stands at `path`: the preset that may have been meant, or how to see all."""
    if path.suffix == ".yaml" and path.stem in presets():
        return f"the config that comes with gptlab goes by its name: {path.stem}"
    if re.fullmatch(r"[\w.-]+", str(path)) and path.suffix not in (".yaml", ".yml"):
        return f"{did_you_mean(str(path), presets())} `gptlab config list` says what each is"
    return "check the path, or take one of `gptlab config list`"


def description(name: str) -> str:
    """How the comment begins that stands at the top of a preset, to the first stop."""
    comment: list[str] = []
    for line in presets()[name].read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#   "):  # what is indented is a command
            break
        comment.append(line.lstrip("# "))
    return re.split(r"[:;(]|\. |\.$", " ".join(comment), maxsplit=1)[0].rstrip(" ,")


def _preset(text: str) -> Path:
    name = text.removeprefix(PREFIX)
    if name not in presets():
        raise ConfigError(f"no config {text}; {did_you_mean(name, presets())}")
    return presets()[name]
