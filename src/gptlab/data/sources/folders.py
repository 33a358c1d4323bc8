"""The files that a path names: itself, what a glob matches, or what a folder holds, at any depth."""

from __future__ import annotations

import collections
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from gptlab.data.sources.base import damage_as_data_error
from gptlab.data.sources.kinds import files_of_data_set, kind_of_file
from gptlab.data.sources.streams import say_once, suffixes
from gptlab.errors import DataError


def local_files(given: str) -> list[Path]:
    """The files that `given` names, in the order of their paths. What a folder holds besides is said.

    Raises DataError where there is none, and for links that lead nowhere.
    """
    if not given:
        raise DataError("an input without a name; name a file, a folder, a glob or an address")
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:
        raise DataError(f"{given}: is no path ({error}); check the path of the input") from None
    with damage_as_data_error(given):
        if _exists(path):
            return _files_of(path, given)
        _check_link(path)
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        for each in found:
            _check_link(each)
        files = [each for each in found if each.is_file()]
    if not files:
        what = "no file matches" if glob.has_magic(given) else "no such file or folder"
        raise DataError(f"{given}: {what}; check the path of the input")
    return files


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError as error:  # a NUL in the name
        raise DataError(f"{str(path)!r}: is no path ({error})") from None
    return True


def _files_of(path: Path, given: str) -> list[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{given}: is no regular file; write what it gives to a file first")
        return [path]
    left_out: collections.Counter[str] = collections.Counter()
    files = list(_walk(path, left_out))
    what = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(8))
    if not files:
        raise DataError(
            f"{given}: no .parquet, .jsonl, .arrow, .txt or .md file in this folder (it has: {what or 'nothing'}); name"
            " the files with a glob"
        )
    if left_out:
        say_once(f"{given}: reading {len(files)} file(s), left out {left_out.total()}: {what}")
    return files


def _walk(folder: Path, left_out: collections.Counter[str]) -> Iterator[Path]:
    """The files to be read; counts the others in `left_out`, by suffix."""
    if (files := files_of_data_set(folder)) is not None:
        yield from files
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(path, left_out)
        elif entry.is_symlink() and entry.is_dir():
            left_out["linked folder"] += 1  # a loop, or text that is read twice
        elif kind_of_file(path) is None:
            left_out[suffixes(path) or "without suffix"] += 1
        else:
            _check_link(path)
            if entry.is_file():
                yield path
            else:
                left_out["special file"] += 1


def _check_link(path: Path) -> None:
    """Raise DataError for a link that leads nowhere: the text that was meant is missing."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: is a link to {os.readlink(path)}, where nothing is; mend or remove it")
