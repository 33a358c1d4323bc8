"""What an evaluation has computed so far, on disk, so that one that was killed goes on.

Beside the result, in `.TASK.RANK.partial.jsonl`, a file for each process: first what the numbers depend on, then a line
a batch. Batches do not depend on how many processes share them nor on which were computed before, so that what a
continued evaluation comes to is to the last bit what an undisturbed one does. A line carries a seal: one that is torn
or damaged is computed again.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptlab.console import say
from gptlab.parallel import World
from gptlab.seal import sealed_json, unsealed

WRITE_SECONDS = 2.0
"""Between two writings."""

Found = list[Any]
"""What was found in a batch, as JSON values."""

_journal: contextvars.ContextVar[Journal | None] = contextvars.ContextVar("journal", default=None)


class Journal:
    """The batches of one evaluation.

    `folder`: where its results go. `of`: what they depend on, as JSON values; a journal of something else is not used,
    which is said. With `resume` what is there is taken up, else it is removed. The main process of `world` reads for
    all of them.
    """

    def __init__(
        self, folder: Path, task: str, of: Mapping[str, Any], world: World | None = None, *, resume: bool = False
    ) -> None:
        self._world = world or World()
        self._folder, self._task, self._of = folder, task, json.loads(json.dumps(of))
        self._path = folder / f".{task}.{self._world.rank}.partial.jsonl"
        self._lines: list[str] = []
        self._due, self._refused = time.monotonic() + WRITE_SECONDS, False
        if self._world.is_main and not resume:
            self.remove()
        # After this nobody reads: from here each process writes its own file.
        self._known = self._world.broadcast(self._read() if self._world.is_main and resume else {})
        if self._known and self._world.is_main:
            say(f"{task}: goes on where it was stopped: {len(self._known):,} batches are there")

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f".{self._task}.*.partial.jsonl"))

    def remove(self) -> None:
        """Remove it, all processes' files."""
        self._lines = []
        for path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()

    def _read(self) -> dict[tuple[str, int], Found]:
        """What all files hold of this evaluation. Those of another one are removed."""
        known: dict[tuple[str, int], Found] = {}
        for path in self._files():
            rows = list(_rows(path))
            of = rows[0].get("of") if rows else None
            if of != self._of:
                say(f"{self._task}: what was begun is {_difference(of, self._of)}, and is not used")
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            known.update(((row["part"], row["batch"]), row["found"]) for row in rows[1:])
        return known

    def known(self, part: str) -> dict[int, Found]:
        """What is known of a part, by the numbers of its batches."""
        return {batch: values for (of, batch), values in self._known.items() if of == part}

    def keep(self, part: str, batch: int, found: Found) -> None:
        """Note what was found in a batch, and write it where the last writing is long enough ago."""
        if self._refused:
            return
        with contextlib.suppress(ValueError):  # what is not finite ends the evaluation, and is no JSON
            self._lines.append(sealed_json({"part": part, "batch": batch, "found": found}, indent=None))
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write what is noted. A disk that refuses is said once, and the evaluation goes on without."""
        if not self._lines:
            return
        lines, self._lines = "".join(self._lines), []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                lines = sealed_json({"of": self._of}, indent=None) + lines
            with open(self._path, "a+b") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                torn = file.read(1) not in (b"", b"\n")  # of a kill: the rest of that line is never written
                file.write((b"\n" if torn else b"") + lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._refused = True
            say(f"careful: {self._path} cannot be written ({error.strerror}): if this is killed, it begins anew")
        self._due = time.monotonic() + WRITE_SECONDS

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Within: what this process evaluates is kept here. Benchmarks are not told: those of others keep it too."""
        token = _journal.set(self)
        try:
            yield
        finally:
            _journal.reset(token)
            self.write()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that are whole: its head, then batches."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            whole = bool(unsealed(row))
        except (ValueError, RecursionError, UnicodeDecodeError):
            whole = False
        if whole:
            yield row
        elif number == 0:
            return


def _difference(of: Any, now: Mapping[str, Any]) -> str:
    """In which the two differ, for people."""
    if not isinstance(of, dict):
        return "damaged"
    names = [name for name in {**now, **of} if of.get(name) != now.get(name)]
    plain = next((name for name in names if not isinstance(now.get(name), dict)), None)
    if plain is None:
        return f"of other {names[0]}"
    return f"of another {plain.replace('_', ' ')} ({of.get(plain)}, not {now.get(plain)})"


class Part:
    """One list of batches of the evaluation that is under way, of which `decides` is everything: JSON values or bytes.

    Without a journal nothing is known, and nothing kept.
    """

    def __init__(self, *decides: Any) -> None:
        self._journal, self._name = _journal.get(), ""
        if self._journal is not None:
            digest = hashlib.sha256()
            for one in decides:
                digest.update(one if isinstance(one, bytes) else json.dumps(one).encode())
            self._name = digest.hexdigest()[:16]
        self.known: dict[int, Found] = {} if self._journal is None else self._journal.known(self._name)

    def keep(self, batch: int, found: Found) -> None:
        """Note what was found in a batch."""
        if self._journal is not None:
            self._journal.keep(self._name, batch, found)
