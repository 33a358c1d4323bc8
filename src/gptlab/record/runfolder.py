"""A run's folder: what was asked for, what ran, on what, and what came of it.

config.yaml        the config, every default written out
env.json           a record of each session: hardware, versions, git commit and uncommitted diff
code/              the source that ran, user components included
tokenizer/         the tokenizer, so that the run can be used alone
metrics.jsonl, metrics.csv, samples.jsonl, log.txt, loss.png
facts.json         what a finished run was and cost
failed.json        why the last attempt failed, where it did
checkpoints/, model.safetensors (and model.sha256, its digest with its size and time), evals/
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pydantic
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from gptlab.config import RunConfig, component_files, dump_yaml, load_config, weights_digest
from gptlab.config.jsonfile import read_json
from gptlab.config.schema import Seed
from gptlab.config.signatures import own_sources
from gptlab.config.yamlfile import parse_yaml
from gptlab.console import say
from gptlab.errors import BusyError, CheckpointError, GptlabError
from gptlab.files import atomic_folder, exclusive, not_a_folder, write_atomic
from gptlab.record.facts import read_facts
from gptlab.record.measurement import Identity
from gptlab.seal import sealed_json
from gptlab.version import __version__

DIVERGED = "diverged"
"""The kind of failure that would come again."""
WEIGHTS, FACTS, FAILED = "model.safetensors", "facts.json", "failed.json"
DIGEST = "model.sha256"
_OWN = {"config.yaml", "code", "log.txt", "plan.json", "tokenizer", "checkpoints", "evals", "loss.png", "metrics.csv"}
_OWN |= {"metrics.jsonl", "samples.jsonl", WEIGHTS, DIGEST, FACTS, FAILED}
_PLACE = {"  path", "  sources", "  tokenizer", "system", "parallel", "log", "checkpoint"}
"""What of a config changes with the place where a run is used: no number of it follows from these alone."""
_NAMED = re.compile(r"-([0-9a-f]{8})(?:-seed([0-9-]+))?$")


class State(enum.Enum):
    """How far a run has come. Everything that asks whether a run is finished asks `state`."""

    ABSENT = "absent"
    """There is no folder, or nothing in it."""
    STARTED = "started"
    """It has a config, and nothing yet to go on from."""
    INTERRUPTED = "interrupted"
    """It has a checkpoint, or weights without the facts that are written after them: `--resume` goes on."""
    DIVERGED = "diverged"
    """It stopped by itself and would again: `read_failure` says why."""
    FINISHED = "finished"
    """It has its final weights, its facts, and the hash and seed that its name promises; or it was imported or
    averaged."""
    RECONFIGURED = "reconfigured"
    """It is finished, with another config or seed than its name (or the hash that is asked for) stands for."""
    DAMAGED = "damaged"
    """A file that must be there is missing, torn or no longer readable."""


class Session(TypedDict, total=False):
    """What env.json keeps of one session; more than these keys, which others depend on."""

    __pydantic_config__ = pydantic.ConfigDict(extra="allow")  # type: ignore[misc]

    started: str
    """ISO 8601."""
    config_hash: str
    seed: str
    """As folders are named by it."""
    config: str
    """The digest of config.yaml, but for what may be changed in it later (`_config_digest`)."""
    git: dict[str, str] | None
    """Commit, and the diff of what was not committed."""
    validation: Identity
    """What the validations of this session were read from."""
    weights: str
    """The digest of the weights that were imported or averaged; facts.json has that of a training."""
    imported: dict[str, Any]
    soup: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why the last attempt at a run failed.

    Attributes:
        kind: `DIVERGED`, where it would come again; else the class of the error.
        message: the error's one line.
        key: the config key that is to blame; None where there is none.
        step: the optimizer step at which it showed; None where no step was made.
    """

    kind: str
    message: str
    key: str | None = None
    step: int | None = None


def is_foreign(folder: Path) -> bool:
    """Whether there is something at `folder` that is no run's, begun or finished: nothing is trained into that."""
    if not folder.is_dir():
        return folder.exists()
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return "env.json" not in names and not names <= _OWN


def require_run(folder: Path) -> None:
    """Raise CheckpointError where `folder` is no run folder."""
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{not_a_folder(folder, 'a run folder', 'config.yaml')}; {_instead(folder)}")


def _instead(folder: Path) -> str:
    """What to do about a folder that is no run's: what others trained becomes one by importing it."""
    foreign = (folder / "config.json").is_file()
    if foreign or (len(folder.parts) == 2 and not folder.parent.exists()):
        whose = "a Hugging Face model" if foreign else "a model of the hub"
        return f"{whose} becomes one with `gptlab import {folder} --name {folder.resolve().name}`"
    return "runs are in runs/"


def training_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a run for training. Raises BusyError, when entered, where another process trains it."""
    return exclusive(
        lock_path(folder), BusyError(f"{folder}: another process is training this run; wait for it, or stop it")
    )


def lock_path(folder: Path) -> Path:
    """The lock file of a run: beside its folder, which may not be there yet."""
    return folder.parent / f".{folder.name}.lock"


def write_run_folder(folder: Path, config: RunConfig, session: Session) -> None:
    """Make or refresh a run folder: config, code, and one more session in env.json.

    `config.yaml` names user components by their copy in code/, so that the folder can be moved and read alone.
    """
    package, values = Path(__file__).parents[1], config.plain()
    with atomic_folder(folder / "code") as code:  # what it takes the place of may hold the very files that are copied
        for file in package.rglob("*.py"):
            _copy(file, code / "gptlab" / file.relative_to(package))
        for name, path in component_files(config).items():
            _copy(path, code / path.name)
            for other in own_sources(path):
                if other.is_relative_to(path.resolve().parent):
                    _copy(other, code / other.relative_to(path.resolve().parent))
            values = _rename(values, f"{name}:", f"./code/{path.name}:")
    text = dump_yaml(values)
    write_atomic(folder / "config.yaml", text)
    sessions, session = read_sessions(folder), {**session, "config": _config_digest(text)}
    write_atomic(folder / "env.json", sealed_json([*sessions, session]))


def reopen(folder: Path) -> None:
    """Take from a run what says that it is finished, or failed: it is trained from now on."""
    for name in (WEIGHTS, DIGEST, FACTS, FAILED):
        (folder / name).unlink(missing_ok=True)


def state(folder: Path, config_hash: str | None = None) -> State:
    """How far the run in `folder` has come. `config_hash`: the one that it must have to count as finished; None: the
    one in the folder's name, where there is one (a folder may be renamed)."""
    try:
        return _state(folder, config_hash)
    except GptlabError:
        return State.DAMAGED


def _state(folder: Path, config_hash: str | None) -> State:
    """The same; raises GptlabError where a file is damaged."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return State.ABSENT
    weights, facts = (folder / WEIGHTS).is_file(), (folder / FACTS).is_file()
    sessions = read_sessions(folder)
    if not (folder / "config.yaml").is_file():  # log.txt or a prediction may be there before training is
        return State.DAMAGED if weights or facts or (folder / "metrics.jsonl").is_file() else State.STARTED
    if weights and not _is_complete(folder / WEIGHTS):
        return State.DAMAGED
    if facts:
        read_json(folder / FACTS, dict[str, Any], mend="restore it")
    if (failure := read_failure(folder)) is not None and failure.kind == DIVERGED:
        return State.DIVERGED
    if weights and made_elsewhere(sessions):
        return State.FINISHED
    if weights and facts:
        wanted = config_hash or named_hash(folder)
        has = sessions[-1].get("config_hash") if sessions else None
        promised = _named(folder, 2)
        fits = wanted in (None, has) and (promised is None or _trained_seed(folder, sessions) in (None, promised))
        return State.FINISHED if fits else State.RECONFIGURED
    return State.INTERRUPTED if weights or any(folder.glob("checkpoints/step-*")) else State.STARTED


def made_elsewhere(sessions: Sequence[Session]) -> bool:
    """Whether the weights were imported or averaged, and not trained here."""
    return bool(sessions) and bool({"imported", "soup"} & sessions[-1].keys())


def named_hash(folder: Path) -> str | None:
    """The hash that the name of a run's folder promises; None for a folder of another name."""
    return _named(folder, 1)


def _named(folder: Path, part: int) -> str | None:
    """Hash (1) or seed (2) in the name of a run's folder, where it has them."""
    found = _NAMED.search(folder.resolve().name)
    return found[part] if found is not None else None


def _trained_seed(folder: Path, sessions: Sequence[Session]) -> str | None:
    """The seed that a run was trained with, so that a copy of its folder is not another seed's run. None where nothing
    says it (before 0.4 only config.yaml does)."""
    if sessions and "seed" in sessions[-1]:
        return sessions[-1]["seed"]
    with contextlib.suppress(OSError, ValueError, GptlabError):
        section = re.search(r"^seed:.*\n(?:[ \t].*\n?)*", (folder / "config.yaml").read_text(encoding="utf-8"), re.M)
        if section is not None and isinstance(found := parse_yaml(section[0], "config.yaml")[0], dict):
            return str(Seed.model_validate(found["seed"]))
    return None


def _is_complete(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says (its first 8 bytes give the header's length)."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError),
        open(path, "rb") as file,
    ):
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > size:
            return False
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(size == 8 + length + max(ends, default=0))
    return False


def write_failure(folder: Path, failure: Failure) -> None:
    """Keep in RUN/failed.json why a run could not be trained; the next attempt removes it."""
    write_atomic(folder / FAILED, sealed_json(dataclasses.asdict(failure)))


def note_error(folder: Path, error: GptlabError) -> None:
    """Keep in failed.json with what an attempt to train in `folder` ended, where there is a folder and nothing in it to
    go on from: a run that is there is not made a failure by a command that asks the wrong thing of it."""
    if folder.is_dir() and not is_foreign(folder) and state(folder) in (State.ABSENT, State.STARTED):
        write_failure(folder, Failure(type(error).__name__, str(error), key=getattr(error, "key", None)))


def read_failure(folder: Path) -> Failure | None:
    """Why the last attempt failed; None where it did not. Raises GptlabError where failed.json is damaged."""
    path, mend = folder / FAILED, "delete it, the next attempt writes its own"
    try:
        values = read_json(path, dict[str, Any], mend=mend)
        if isinstance(reason := values.get("reason"), str):  # as gptlab 0.3 wrote it
            return Failure(DIVERGED, reason)
        return read_json(path, Failure, mend=mend)
    except FileNotFoundError:
        return None


def read_sessions(folder: Path) -> list[Session]:
    """The sessions that worked on a run, the oldest first; none where there is no env.json. Raises GptlabError where it
    is damaged."""
    path, mend = folder / "env.json", "restore it, or move the run away"
    try:
        sessions = read_json(path, list[Session], mend=mend)
    except FileNotFoundError:
        return []
    if not sessions:
        raise GptlabError(f"{path}: damaged (no session is in it); {mend}")
    return sessions


def recorded_weights(folder: Path) -> str | None:
    """The digest of its weights that a finished run keeps; None where it keeps none."""
    if (folder / FACTS).is_file():
        return read_facts(folder).weights
    sessions = read_sessions(folder)
    return sessions[-1].get("weights") if sessions else None


def digest_of_weights(folder: Path) -> str:
    """16 digits of SHA-256 of a run's model.safetensors.

    It is kept beside the file with its size and time: gigabytes are not read for every command. A file whose size or
    time is another since, which nothing of ours makes, is read each time.
    """
    status = (folder / WEIGHTS).stat()
    now = [status.st_size, status.st_mtime_ns]
    kept: list[Any] = []
    with contextlib.suppress(OSError, GptlabError):
        kept = read_json(folder / DIGEST, list[Any], mend="delete it")
    if len(kept) == 3 and kept[1:] == now and isinstance(kept[0], str):
        return kept[0]
    digest = weights_digest(folder / WEIGHTS)
    if not (folder / DIGEST).exists():
        with contextlib.suppress(OSError):  # where nothing can be written it is read each time, too
            write_atomic(folder / DIGEST, json.dumps([digest, *now]) + "\n")
    return digest


def _config_digest(text: str) -> str:
    """16 digits of SHA-256 of a config.yaml, without what changes with the place where a run is used."""
    sections = re.split(r"^(?=\S|  (?:path|sources|tokenizer|mix|stream|epochs):)", text, flags=re.M)
    kept = [section.rstrip() for section in sections if section.partition(":")[0] not in _PLACE]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def is_edited(folder: Path) -> bool:
    """Whether config.yaml is not what was written when the run began: a model that was edited may fit the weights all
    the same, and a rate that was edited is not the one that was trained with."""
    sessions = read_sessions(folder)
    digest = sessions[-1].get("config") if sessions else None
    return digest is not None and digest != _config_digest(
        (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    )


def say_edited_config(folder: Path) -> None:
    """Say it where `is_edited`."""
    if is_edited(folder):
        say(
            f"careful: {folder / 'config.yaml'} was edited since the run began: what the run logged is of another "
            "config; restore it"
        )


def say_changed_weights(folder: Path) -> None:
    """Say it where model.safetensors is not what was written when the run ended: edited on purpose, or damaged."""
    written = recorded_weights(folder)
    if written is not None and digest_of_weights(folder) != written:
        say(
            f"careful: {folder / WEIGHTS} was changed or damaged since the run ended (its digest is not {written}): "
            "what the run logged is of other weights"
        )


def read_config(folder: Path) -> RunConfig:
    """The config of a run; an edit of it is said. Raises ConfigError where the folder has none that can be read."""
    require_run(folder)
    say_edited_config(folder)
    return load_config(folder / "config.yaml")


def session_record(
    config_hash: str,
    config: RunConfig,
    hardware: dict[str, Any],
    world_size: int,
    **more: Any,
) -> Session:
    """What env.json keeps of one session. `more`: what only one kind of session has (`Session`)."""
    values = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "gptlab": __version__,
        "config_hash": config_hash,
        "seed": str(config.seed),
        "tokens": config.train.tokens,
        "world_size": world_size,
        **hardware,
        "git": _git_state(),
        **more,
    }
    return cast("Session", values)


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
