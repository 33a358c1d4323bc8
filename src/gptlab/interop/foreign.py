"""What somebody names as a model, as a run folder: a run is one already, what others trained is imported once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gptlab.console import say
from gptlab.errors import GptlabError
from gptlab.files import sha256_file
from gptlab.interop import import_run, is_nanogpt
from gptlab.record.runfolder import read_sessions, require_run

_FILES = (".pt", ".bin", ".gguf")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def is_foreign(source: Path) -> bool:
    """Whether `source` is, by what stands there, somebody else's model: a file or folder that `import_run` takes, or,
    where nothing of that name is here, a model of the Hugging Face hub."""
    if (source / "config.yaml").is_file():
        return False
    if source.is_file():
        return source.suffix in _FILES
    if source.is_dir():
        return (source / "config.json").is_file() or (source / "model.pth").is_file()
    return _is_of_the_hub(source)


def _is_of_the_hub(source: Path) -> bool:
    """Whether nothing of that name is here, nor the folder that it would be in: `runs/a` is a run that is missing."""
    owner = source.parts[0] if source.parts else ""
    named = _HUB.fullmatch(source.as_posix()) is not None and owner not in ("runs", ".", "..")
    return named and not source.exists() and not source.parent.exists()


def check_source(source: Path) -> None:
    """Raise CheckpointError where `source` is neither a run folder nor what can become one."""
    if not is_foreign(source):
        require_run(source)


def run_of(source: Path, runs: Path = Path("runs")) -> Path:
    """The run folder of `source`: itself where it is one, or a `ckpt.pt` of nanoGPT, which is read as it is; else the
    one in `runs` that was imported of the same files (of a model of the hub: under the same name), else a new one,
    runs/NAME-HASH, which is said.

    Raises GptlabError as `import_run`; then nothing is written.
    """
    check_source(source)
    if not is_foreign(source) or (source.suffix == ".pt" and is_nanogpt(source)):
        return source
    if (there := _imported(source, runs)) is not None:
        say(f"{source}: is imported already, as {there}")
        return there
    folder = import_run(source.as_posix(), name=name_of(source), runs=runs)
    say(f"{source}: imported into {folder}")
    return folder


def name_of(source: Path) -> str:
    """What a run made of `source` is called: by its file or folder, or the second part of a name of the hub."""
    last = source.stem if source.suffix in _FILES else (source.resolve().name or source.name)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:100] or "imported"


def _imported(source: Path, runs: Path) -> Path | None:
    """The run in `runs` that was made of `source`."""
    digests: dict[Path, str] = {}

    def is_same(name: str, digest: str) -> bool:
        file = source / name if source.is_dir() else source
        if not file.is_file():
            return False
        if file not in digests:
            digests[file] = sha256_file(file)
        return digests[file] == digest

    for folder in sorted(path.parent for path in runs.glob("[!.]*/env.json")):
        try:
            sessions = read_sessions(folder)
        except GptlabError:  # somebody else's trouble
            continue
        record: Any = sessions[0].get("imported") if sessions else None
        if not isinstance(record, dict) or not (folder / "model.safetensors").is_file():
            continue
        files = record.get("sha256")
        if not source.exists():
            if record.get("from") == source.as_posix() and record.get("revision"):
                return folder
        elif isinstance(files, dict) and files and all(is_same(name, digest) for name, digest in files.items()):
            return folder
    return None
