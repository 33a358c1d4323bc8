"""`model.init_from`: a run whose weights another one starts from, and whose `model` section is its default.

Where a config is read, the path gets the digest of the weights: `runs/gpt2-0a1b2c3d@0123456789abcdef`. From then on the
value says what it means: the hash of a run covers the digest and not the path, and a config that was written out needs
the other run no more.
"""

from __future__ import annotations

import functools
import glob
import re
from pathlib import Path

from gptlab.errors import ConfigError
from gptlab.files import not_a_folder, sha256_file

WEIGHTS = "model.safetensors"
_PINNED = re.compile(r"(.+)@([0-9a-f]{16})")


def starting_run(value: str | None) -> tuple[Path, str] | None:
    """A pinned `init_from` as (run folder, digest of its weights); None for None.

    Raises ConfigError where the value is a path alone: only loading a config (`load_config`, `config_from`) pins it.
    """
    if value is None:
        return None
    found = _PINNED.fullmatch(value)
    if found is None:
        raise ConfigError(
            f"model.init_from: {value} has no digest of weights; load the config with load_config",
            key="model.init_from",
        )
    return Path(found[1]), found[2]


def is_pinned(value: str) -> bool:
    """Whether `init_from` carries the digest of the weights."""
    return _PINNED.fullmatch(value) is not None


def pin(text: str) -> str:
    """The one run folder that `text` (a path, or a pattern such as runs/gpt2-*) leads to, with its weights' digest.

    Raises ConfigError where there is none, or several, or it holds no final weights, or is another program's.
    """
    places = [Path(place) for place in sorted(glob.glob(text))] if glob.has_magic(text) else [Path(text)]
    if len(places) > 1:
        raise ConfigError(f"{text} fits {len(places)} folders, {places[0]} and {places[1]} among them; name one")
    folder = places[0] if places else Path(text)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.stem).strip("-._") or "NAME"
    if folder.suffix == ".pt" or (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is no run folder; first: gptlab import {folder} --name {name}")
    if not (folder / "config.yaml").is_file():
        what = not_a_folder(folder, "a run folder", "config.yaml")
        raise ConfigError(f"{what}; `gptlab import` makes one of weights")
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} holds no {WEIGHTS}: it is not finished; train it to its end first")
    return f"{folder}@{weights_digest(folder / WEIGHTS)}"


def weights_digest(path: Path) -> str:
    """16 hex digits of SHA-256 over a weights file."""
    status = path.stat()
    return _digest(path.resolve(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, modified: int, size: int) -> str:
    """Read once while a file stays as it is: `modified` and `size` are the cache's key."""
    return sha256_file(path)[:16]
