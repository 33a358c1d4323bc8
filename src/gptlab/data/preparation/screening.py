"""Steps before tokenizing, run: over the documents of a unit, and over what is known of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from gptlab.data.preparation import steps as menu
from gptlab.data.preparation.steps import ComparingStep, DocumentStep, Step
from gptlab.data.sources.base import Document, utf8_length
from gptlab.errors import DataError, did_you_mean, option

_PUBLIC = {
    name: value
    for name, value in vars(menu).items()
    if isinstance(value, type) and issubclass(value, Step) and value.__module__ == menu.__name__ and name[0] != "_"
}
STEPS: dict[str, type[Step]] = {
    name: value for name, value in _PUBLIC.items() if value not in (Step, DocumentStep, ComparingStep)
}
"""The steps that there are, by name."""


def load_steps(given: Sequence[Any]) -> list[Step]:
    """Steps of names and of mappings with `use` and arguments.

    Raises DataError for an unknown step or argument, a wrong value, a step named twice, a step for single documents
    after one that compares them, and one that needs what is not installed.
    """
    found: list[Step] = []
    for each in given:
        step = each if isinstance(each, Step) else _load(each)
        step.check()
        if any(type(step) is type(other) for other in found):
            raise DataError(f"{option('step', step.use)}: is named twice")
        if not step.compares and found and found[-1].compares:
            raise DataError(
                f"{option('step', step.use)}: looks at one document at a time, which is done first; name it before "
                f"{next(other.use for other in found if other.compares)}"
            )
        found.append(step)
    return found


def _load(given: Any) -> Step:
    arguments = {"use": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = arguments.pop("use", None)
    if not isinstance(name, str):
        raise DataError(f"{option('step')}: {given!r} names no step; write NAME or {{use: NAME, argument: value}}")
    if name not in STEPS:
        raise DataError(f"{option('step', name)}: no such step; {did_you_mean(name, STEPS)}")
    fields = STEPS[name].model_fields
    for key in arguments:
        if key not in fields:
            raise DataError(f"{option('step', name)}: has no argument {key!r}; {did_you_mean(str(key), fields)}")
    try:
        # YAML has lists where a field is a tuple, and whole numbers where it is a fraction
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
        return STEPS[name].model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or name
        raise DataError(f"{option('step', name)}: {key}: {first['msg']} (given: {first['input']!r})") from None


def make_ready(steps: Iterable[Step], asked: Sequence[Sequence[tuple[str, str, str]]], folder: Path) -> None:
    """Write to `folder` what workers need of the questions that each step asked for."""
    for step, questions in zip(steps, asked, strict=True):
        if questions:
            step.make_ready(questions, folder)


class Screen:
    """The steps, over the documents of one unit.

    Args:
        steps: all, in order.
        folder: of what `make_ready` wrote.
    """

    def __init__(self, steps: Sequence[Step], folder: Path) -> None:
        self._alone = [step for step in steps if isinstance(step, DocumentStep)]
        self._comparing = [step for step in steps if isinstance(step, ComparingStep)]
        self._folder = folder
        self._counts = [no_counts() for _ in self._alone]
        self._marks: list[list[NDArray[Any]]] = [[] for _ in self._comparing]

    def kept(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that every step keeps, as they are afterwards; what is compared of each is noted."""
        for document in documents:
            text: str | None = document.text
            for step, counts in zip(self._alone, self._counts, strict=True):
                assert text is not None
                before = text
                counts["documents"] += 1
                counts["bytes"] += utf8_length(before)
                text, reason = step.apply(before, self._folder)
                if not text:
                    counts["removed"] += 1
                    counts["removed_bytes"] += utf8_length(before)
                    counts["reasons"][reason or "nothing left"] += 1
                    break
                counts["changed"] += text != before
                counts["removed_bytes"] += max(0, utf8_length(before) - utf8_length(text))
            if text:
                for marker, marks in zip(self._comparing, self._marks, strict=True):
                    marks.append(marker.mark(text))
                yield Document(text, document.source)

    def marks(self) -> list[NDArray[Any]]:
        """For each comparing step (documents, width) of what it compares."""
        return [np.stack(marks) if marks else np.zeros((0, 0), dtype=np.uint64) for marks in self._marks]

    def report(self) -> dict[str, Any]:
        """What each step that looks at one document did."""
        return {"alone": [{**counts, "reasons": dict(counts["reasons"])} for counts in self._counts]}


def no_counts() -> dict[str, Any]:
    """What the report says of a step, before it has done anything."""
    counts: dict[str, Any] = dict.fromkeys(("documents", "bytes", "removed", "removed_bytes", "changed"), 0)
    return {**counts, "reasons": Counter()}
