"""The kinds of sources: every module of this package that says what it reads. Nothing else knows them all.

A kind is a module with

- `PREFIXES`, how inputs of its kind begin (`hf://`), or `NAMES`, how they are called (`-`), and
  `open_input(given, cache=, block_bytes=) -> list[Source]`; or
- `SUFFIXES`, how its files end (`.parquet`), or `NAMED`, how those do that are read when they are named but not where a
  folder is (`.csv`), and `open_file(path, name, block_bytes) -> Source`. `folder_files(folder)`, if there is one, gives
  the files of a folder that is one data set of its kind, and None for other folders.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from gptlab.data.sources.base import Source
from gptlab.data.sources.streams import suffixes

_PACKAGE = "gptlab.data.sources"


@functools.cache
def _modules(folders: tuple[str, ...]) -> list[ModuleType]:
    return [importlib.import_module(f"{_PACKAGE}.{found.name}") for found in pkgutil.iter_modules(folders)]


def _kinds() -> list[ModuleType]:
    return _modules(tuple(importlib.import_module(_PACKAGE).__path__))


def kind_of_input(given: str) -> ModuleType | None:
    """The kind whose prefix `given` begins with, or whose name it is; None for a path."""
    for kind in _kinds():
        if given.startswith(getattr(kind, "PREFIXES", ())) or given in getattr(kind, "NAMES", ()):
            return kind
    return None


def kind_of_file(path: Path, *, named: bool = False) -> ModuleType | None:
    """The kind of files that end as `path` does, in a folder or `named` outright; None where none does."""
    lists = ("SUFFIXES", "NAMED") if named else ("SUFFIXES",)
    ending = suffixes(path)
    return next((kind for kind in _kinds() if any(ending in getattr(kind, name, ()) for name in lists)), None)


def files_of_data_set(folder: Path) -> list[Path] | None:
    """The files of a folder that is one data set of some kind; None for a folder of files."""
    for kind in _kinds():
        if (files_of := getattr(kind, "folder_files", None)) is not None and (files := files_of(folder)) is not None:
            return list(files)
    return None


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """A file as a source of its kind; of an unknown kind, as text."""
    kind = kind_of_file(path, named=True) or importlib.import_module(f"{_PACKAGE}.text")
    source: Source = kind.open_file(path, name, block_bytes)
    return source
