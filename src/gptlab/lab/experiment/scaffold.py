"""`gptlab new NAME`: an experiment that can be run before a line of it is changed."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptlab.config import dump_yaml, load_config
from gptlab.config.preset import reference, require_config
from gptlab.errors import ConfigError, option
from gptlab.files import atomic_folder, check_place

_TEMPLATES = Path(__file__).parent / "templates"


def write_experiment(name: str, *, baseline: str | Path, folder: Path, idea: str, diff: Mapping[str, Any]) -> None:
    """Write `folder` with experiment.yaml, idea.py and NOTES.md.

    `idea`: the source of the component in idea.py; `diff`: the part of a config that puts it into its place. Raises
    ConfigError for a name that is none, a baseline that is no config, and a folder that is there; nothing is written
    then.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} is no name for an experiment; use letters, digits, . and -")
    check_place(folder, option("out", argument="folder"))
    if folder.exists():
        raise ConfigError(
            f"{folder} exists already; choose another name, or another folder with {option('out', argument='folder')}"
        )
    path = require_config(baseline, "to compare with", "baseline")
    load_config(baseline)  # what is wrong in it is said now
    words = {
        "NAME": name,
        "FOLDER": str(folder),
        "STEM": path.stem,
        "BASELINE": reference(baseline, folder),
        "DIFF": textwrap.indent(dump_yaml(dict(diff)).rstrip(), "    "),
        "DATE": time.strftime("%Y-%m-%d"),
    }
    with atomic_folder(folder) as aside:
        for file in ("experiment.yaml", "NOTES.md"):
            text = (_TEMPLATES / file).read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(f"@{word}@", value)
            (aside / file).write_text(text, encoding="utf-8")
        (aside / "idea.py").write_text(idea, encoding="utf-8")
