"""Experiments that come with gptlab, by name: `gptlab experiment copy betas` brings one to where it can be run.

They are the folders in `presets/` beside this module. A folder of one's own gets what its runs are made from, and the
notes; the report stays behind, because it is of runs that are not there.
"""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path

from gptlab.config import load_config
from gptlab.config.preset import reference, require_config
from gptlab.errors import ConfigError, did_you_mean
from gptlab.files import atomic_folder, check_place

PLACE = Path("experiments")
"""The folder, of where one works, that experiments are in unless something else is said."""

_COPIED = ("experiment.yaml", "*.py", "NOTES.md")


@functools.cache
def shipped() -> dict[str, Path]:
    """The folder of each experiment that comes with gptlab, by name."""
    statements = (Path(__file__).parent / "presets").glob("*/experiment.yaml")
    return {path.parent.name: path.parent for path in sorted(statements)}


def copy_experiment(name: str, folder: Path | None = None, *, baseline: str | Path | None = None) -> Path:
    """Copy the experiment `name` to `folder`, by default experiments/NAME, and return where it is now.

    `baseline`: a config of one's own to ask the same question of; the notes, which tell of another, stay behind then.
    Raises ConfigError for a name that is none, a baseline that is no config, and a folder that is there; nothing is
    written then.
    """
    if name not in shipped():
        raise ConfigError(f"no experiment {name!r} comes with gptlab; {did_you_mean(name, shipped())}")
    target = folder or PLACE / name
    check_place(target, "the folder")
    if target.exists():
        raise ConfigError(f"{target} exists already; name another folder after {name}, or remove that one")
    if baseline is not None:
        require_config(baseline, "to compare with", "baseline")
        load_config(baseline)  # what is wrong in it is said now
    with atomic_folder(target) as aside:
        for pattern in _COPIED:
            for file in sorted(shipped()[name].glob(pattern)):
                shutil.copyfile(file, aside / file.name)
        if baseline is not None:
            statement = aside / "experiment.yaml"
            line = f"baseline: {reference(baseline, target)}"
            text = statement.read_text(encoding="utf-8")
            statement.write_text(re.sub(r"(?m)^baseline: .*$", lambda _: line, text), encoding="utf-8")
            (aside / "NOTES.md").unlink()
    return target


def how_to_begin(folder: Path) -> str:
    """What to say where no experiment stands at `folder`: the one that may have been meant, or how to have one."""
    if folder.name in shipped() and not folder.exists():
        return f"`gptlab experiment copy {folder.name}` brings the one that comes with gptlab to {PLACE / folder.name}"
    return "`gptlab new NAME --baseline CONFIG` writes one, `gptlab experiment list` names some that come with gptlab"
