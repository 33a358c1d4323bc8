"""A run's folder: what was asked for, what ran, on what, and what came of it.

config.yaml        the config, every default written out
env.json           a record of each session: hardware, versions, git commit and uncommitted diff
code/              the source that ran, user components included
tokenizer/         the tokenizer, so that the run can be used alone
metrics.jsonl, metrics.csv, log.txt, loss.png
facts.json         what a finished run was and cost
checkpoints/, model.safetensors, evals/
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import gptlab
from gptlab.config import RunConfig, component_files, dump_yaml, load_config
from gptlab.errors import ConfigError
from gptlab.files import exclusive, write_atomic

_FINISHED = ("model.safetensors", "facts.json")


def training_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a run for training. Raises ConfigError, when entered, where another process trains it."""
    return exclusive(
        lock_path(folder), ConfigError(f"{folder}: another process is training this run; wait for it, or stop it")
    )


def lock_path(folder: Path) -> Path:
    """The lock file of a run: beside its folder, which may not be there yet."""
    return folder.parent / f".{folder.name}.lock"


def write_run_folder(folder: Path, config: RunConfig, session: dict[str, Any]) -> None:
    """Make or refresh a run folder: config, code, and one more session in env.json. It is not finished from now on.

    `config.yaml` names user components by their copy in code/, so that the folder can be moved and read alone.
    """
    for name in _FINISHED:
        (folder / name).unlink(missing_ok=True)
    code = folder / "code"
    shutil.rmtree(code, ignore_errors=True)
    package = Path(gptlab.__file__).parent
    for file in package.rglob("*.py"):
        _copy(file, code / "gptlab" / file.relative_to(package))
    values = config.plain()
    for name, path in component_files(config).items():
        _copy(path, code / path.name)
        values = _rename(values, f"{name}:", f"./code/{path.name}:")
    write_atomic(folder / "config.yaml", dump_yaml(values))
    sessions = read_sessions(folder)
    write_atomic(folder / "env.json", json.dumps([*sessions, session], indent=1))


def is_finished(folder: Path) -> bool:
    """Whether training reached its end: the facts are written last."""
    return all((folder / name).is_file() for name in _FINISHED)


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The sessions that worked on a run, the oldest first; none where env.json is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        sessions: list[dict[str, Any]] = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        return sessions
    return []


def read_config(folder: Path) -> RunConfig:
    """The config of a run. Raises ConfigError where the folder has none that can be read."""
    return load_config(folder / "config.yaml")


def session_record(config_hash: str, config: RunConfig, hardware: dict[str, Any], world_size: int) -> dict[str, Any]:
    """What env.json keeps of one session."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "gptlab": gptlab.__version__,
        "config_hash": config_hash,
        "tokens": config.train.tokens,
        "world_size": world_size,
        **hardware,
        "git": _git_state(),
    }


def log_line(folder: Path, text: str) -> None:
    """Append a dated line to log.txt."""
    with open(folder / "log.txt", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _rename(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _rename(item, old, new) for key, item in value.items()}
    return value.replace(old, new) if isinstance(value, str) and value.startswith(old) else value


def _git_state() -> dict[str, str] | None:
    """Commit and uncommitted changes of the working folder's repository; None outside one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "diff": git("diff", "HEAD")[:1_000_000]}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
