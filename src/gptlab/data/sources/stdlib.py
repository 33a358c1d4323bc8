"""The sources of the running Python's standard library, `stdlib:train` and `stdlib:validation`: text without network.

A tenth of the files, by hash of their name, is for validation.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from gptlab.console import say
from gptlab.data.sources.base import Source
from gptlab.data.sources.text import TextFile
from gptlab.errors import DataError, option

PREFIXES = ("stdlib:",)

_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "site-packages",
    "dist-packages",
    "ensurepip",
    "lib2to3",
    "__pycache__",
}


def open_input(given: str, *, cache: Path | None, block_bytes: int) -> list[Source]:
    """A file for each module of the library. Raises DataError for a split that there is not."""
    split = given.removeprefix("stdlib:")
    if split not in ("train", "validation"):
        raise DataError(f"{given}: no such part; use stdlib:train or stdlib:validation")
    root = Path(sysconfig.get_path("stdlib"))
    sources: list[Source] = []
    skipped = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _LEFT_OUT.intersection(relative.parts):
            continue
        tenth = int(hashlib.sha256(relative.as_posix().encode()).hexdigest()[:8], 16) % 10 == 0
        if tenth != (split == "validation"):
            continue
        try:
            path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            skipped.append(relative.as_posix())
            continue
        sources.append(TextFile(path, f"stdlib:{relative.as_posix()}"))
    if skipped:
        say(f"{given}: left out {len(skipped)} files that are no readable UTF-8: {', '.join(skipped)}")
    if not sources:
        raise DataError(
            f"{root}: no Python sources here; this Python comes without its library, give {option('input')}"
        )
    return sources
