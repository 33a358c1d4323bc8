"""The blocks of a report, from which both Markdown and HTML are rendered, so that the two say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A title: level 1 is the report's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain lines."""

    items: Sequence[str]


@dataclass(frozen=True)
class Verdicts:
    """The answer: (verdict, the line that says it), one an arm."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under a header. All columns but the first `left` ones are set right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure by its name in `figures.FIGURES`, and what it shows."""

    name: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines to be read as they are."""

    text: str
    language: str = ""


Block = Heading | Paragraph | Bullets | Verdicts | Table | Picture | Code
