"""How results look: `Shown` prints one as a table at a prompt, through rich, and below a notebook's cell.

A class that has results says what its table is (`sheet`), and nothing else. Colours are those of the place: the HTML
sets none but for marks, which are half transparent, so that it can be read on a light page and on a dark one.
"""

from __future__ import annotations

import abc
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROWS = 60  # of a table; the middle of a longer one is left out
_LINE = "1px solid rgba(128, 128, 128, 0.35)"


@dataclass(frozen=True)
class Sheet:
    """A table with a title above it and lines below. The first `left` columns are text, the others numbers; rows
    without a header are a name and what it is."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    notes: Sequence[str] = ()
    left: int = 1

    def shortened(self) -> Sheet:
        """With no more rows than are looked at: its beginning, its end, and between them how many are left out."""
        if len(self.rows) <= _ROWS:
            return self
        out = f"… {len(self.rows) - _ROWS + 1} more"
        middle = [out, *[""] * (len(self.rows[0]) - 1)]
        rows = [*self.rows[: _ROWS // 2], middle, *self.rows[len(self.rows) - _ROWS // 2 + 1 :]]
        return Sheet(self.title, rows, self.header, self.notes, self.left)

    def is_text(self, column: int) -> bool:
        """Whether a column is set left."""
        return column < self.left or not self.header


class Shown(abc.ABC):
    """A result that people look at. A dataclass that is one is declared with `repr=False`."""

    @abc.abstractmethod
    def sheet(self) -> Sheet:
        """What is shown of it."""

    def __repr__(self) -> str:
        sheet = self.sheet().shortened()
        rows = [*([sheet.header] if sheet.header else []), *sheet.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
        lines = [
            "  ".join(
                cell.ljust(width) if sheet.is_text(column) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in [sheet.title, *lines, *sheet.notes] if line)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        sheet = self.sheet().shortened()
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(sheet.header))
        for column in range(len(sheet.rows[0]) if sheet.rows else 0):
            name = Text(sheet.header[column]) if sheet.header else ""
            table.add_column(name, justify="left" if sheet.is_text(column) else "right", no_wrap=True)
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        return Group(Text(sheet.title, style="bold"), table, *map(Text, sheet.notes))

    def _repr_html_(self) -> str:
        sheet = self.sheet().shortened()
        head = _row(sheet, sheet.header, "th") if sheet.header else ""
        body = "".join(_row(sheet, row, "td") for row in sheet.rows)
        notes = "".join(f'<div style="opacity: 0.8">{html.escape(note)}</div>' for note in sheet.notes)
        table = f'<table style="border-collapse: collapse; margin: 0.3em 0">{head}{body}</table>'
        return f"<div><b>{html.escape(sheet.title)}</b>{table}{notes}</div>"


def _row(sheet: Sheet, cells: Sequence[str], tag: str) -> str:
    found = []
    for column, cell in enumerate(cells):
        side = "left" if sheet.is_text(column) else "right"
        style = f"text-align: {side}; padding: 0.15em 0.8em 0.15em 0; white-space: pre; border-bottom: {_LINE}"
        found.append(f'<{tag} style="{style}">{html.escape(cell)}</{tag}>')
    return f"<tr>{''.join(found)}</tr>"


HUES = ("0, 114, 178", "0, 158, 115", "230, 159, 0", "204, 121, 167", "86, 180, 233")
"""Colours of marks (Okabe and Ito 2008) as red, green, blue."""


class Marked:
    """A text in pieces with a coloured background each, and a word on each for whoever points at it.

    Attributes:
        pieces: (text, opacity of its mark from 0 to 1, what it says).
        hue: a place in HUES for all, or None: each piece another one than the last.
    """

    def __init__(self, pieces: Iterable[tuple[str, float, str]], *, hue: int | None = None) -> None:
        self.pieces, self.hue = list(pieces), hue

    def __repr__(self) -> str:
        return "│".join(text for text, _, _ in self.pieces)

    def _repr_html_(self) -> str:
        spans = []
        for number, (text, opacity, said) in enumerate(self.pieces):
            hue = HUES[(number if self.hue is None else self.hue) % len(HUES)]
            style = f"background: rgba({hue}, {min(1.0, max(0.0, opacity)):.2f}); border-radius: 2px"
            shown = html.escape(text.replace("\n", "⏎\n"))
            spans.append(f'<span style="{style}" title="{html.escape(said)}">{shown}</span>')
        return f'<div style="white-space: pre-wrap; font-family: monospace">{"".join(spans)}</div>'


def cells(values: Iterable[float | None], form: str = ".4f") -> list[str]:
    """Numbers as a table has them: a dash for None."""
    write: Callable[[float], str] = f"{{:{form}}}".format
    return ["–" if value is None else write(value) for value in values]
