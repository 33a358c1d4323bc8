"""The sources of the running Python's standard library, `stdlib:train` and `stdlib:validation`: text without network.

A twentieth of the files, by hash of their name, is for validation. They come in the order of these hashes, so that the
beginning of a split, which a short validation reads, is like all of it.
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
    places = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    digests = {place: hashlib.sha256(place.encode()).hexdigest() for place in places}
    for place in sorted(digests, key=digests.__getitem__):
        path = places[place]
        held_out = int(digests[place][:8], 16) % 20 == 0
        if held_out != (split == "validation") or _LEFT_OUT.intersection(path.relative_to(root).parts):
            continue
        try:
            path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            skipped.append(place)
            continue
        sources.append(TextFile(path, f"stdlib:{place}"))
    if skipped:
        say(f"{given}: left out {len(skipped)} files that are no readable UTF-8: {', '.join(skipped)}")
    if not sources:
        raise DataError(
            f"{root}: no Python sources here; this Python comes without its library, give {option('input')}"
        )
    return sources
