"""The kinds of sources: every module of this package that says what it reads. Nothing else knows them all.

A kind is a module with

- `PREFIXES`, how inputs of its kind begin (`hf://`), and `open_input(given, cache=, block_bytes=) -> list[Source]`; or
- `SUFFIXES`, how its files end (`.parquet`), and `open_file(path, name, block_bytes) -> Source`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from gptlab.data.sources.base import Source

_PACKAGE = "gptlab.data.sources"


@functools.cache
def _modules(folders: tuple[str, ...]) -> list[ModuleType]:
    return [importlib.import_module(f"{_PACKAGE}.{found.name}") for found in pkgutil.iter_modules(folders)]


def _kinds() -> list[ModuleType]:
    return _modules(tuple(importlib.import_module(_PACKAGE).__path__))


def kind_of_input(given: str) -> ModuleType | None:
    """The kind whose prefix `given` begins with; None for a path."""
    return next((kind for kind in _kinds() if given.startswith(getattr(kind, "PREFIXES", ()))), None)


def kind_of_file(path: Path) -> ModuleType | None:
    """The kind of files that end as `path` does; None where none does."""
    return next((kind for kind in _kinds() if suffixes(path) in getattr(kind, "SUFFIXES", ())), None)


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """A file as a source of its kind; of an unknown kind, as text."""
    kind = kind_of_file(path) or importlib.import_module(f"{_PACKAGE}.text")
    source: Source = kind.open_file(path, name, block_bytes)
    return source


def suffixes(path: Path) -> str:
    """`.jsonl.gz` of `a.b.JSONL.gz`: the last suffix, with the one before where the last only says "compressed"."""
    packed = path.suffix.lower() in (".gz", ".zst")
    return ((Path(path.stem).suffix if packed else "") + path.suffix).lower()
