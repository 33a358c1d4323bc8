"""The folder of a judging: what runs answered and what the judge said, a line each, kept the moment it is there.

judgings/NAME/answers.jsonl     what each run made of each prompt
judgings/NAME/verdicts.jsonl    each answer of the judge, what it cost, and what was read of it
judgings/NAME/result.json       what it all says

A line is on the disk before the next is asked for: who is killed loses the one that was under way. Each is found by
what it depends on, so that the same question is never put twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from gptlab.config.jsonfile import parse_json
from gptlab.console import say
from gptlab.errors import BusyError, GptlabError
from gptlab.files import exclusive, fsync_directory
from gptlab.seal import sealed_json

Row = TypeVar("Row", "Answer", "Verdict")


@dataclass(frozen=True)
class Answer:
    """What a run made of a prompt.

    Attributes:
        key: of all that it depends on.
        run: the name of its folder.
        prompt, text: the beginning and what follows it.
    """

    key: str
    run: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What a judge said to a question.

    Attributes:
        key: of the question (`Question.key`).
        shown: the names of the runs whose texts it saw, in their order.
        prompt: the beginning.
        repeat: which time it was asked, from 1.
        said: its words, the last 4,000 characters.
        scores: what was read of them; None where that could not be.
        tokens_in, tokens_out: that it took; `counted` where the endpoint said so, else guessed from bytes.
        dollars: that it cost.
    """

    key: str
    shown: tuple[str, ...]
    prompt: str
    repeat: int
    said: str
    scores: dict[str, float] | None
    tokens_in: int
    tokens_out: int
    counted: bool
    dollars: float


class Lines(Generic[Row]):
    """A file of rows that only grows. A torn last line (a crash while writing) is cut off, and said.

    Raises GptlabError where another line is damaged or was edited.
    """

    def __init__(self, path: Path, kind: type[Row]) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.by_key: dict[str, list[Row]] = {}
        content = path.read_bytes() if path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            say(f"{path}: the last line is torn (a crash while writing it); it is left out")
            with open(path, "r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                self._add(parse_json(line, kind))
            except ValueError as problem:
                raise GptlabError(
                    f"{path}:{number}: damaged ({problem}); delete the line: what it held is asked for again"
                ) from None

    def append(self, row: Row) -> None:
        """Add a row, and have it on the disk."""
        is_new = not self.path.exists()
        with open(self.path, "ab") as file:
            file.write(sealed_json(dataclasses.asdict(row), indent=None).encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            fsync_directory(self.path.parent)
        self._add(row)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self.by_key.setdefault(row.key, []).append(row)


@dataclass(frozen=True)
class Book:
    """A judging's folder, opened by one process alone."""

    folder: Path
    answers: Lines[Answer]
    verdicts: Lines[Verdict]

    @property
    def dollars(self) -> float:
        """Spent on it so far, in all sessions."""
        return sum(row.dollars for row in self.verdicts.rows)


@contextlib.contextmanager
def open_book(folder: Path) -> Iterator[Book]:
    """The folder, made where it is not there, and locked. Raises BusyError where another process holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    with exclusive(lock, BusyError(f"{folder}: another process judges into it; wait for it, or stop it")):
        folder.mkdir(exist_ok=True)
        yield Book(folder, Lines(folder / "answers.jsonl", Answer), Lines(folder / "verdicts.jsonl", Verdict))
