"""Tables as all commands print them: no lines, numbers to the right, never cut off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gptlab.console import output

if TYPE_CHECKING:
    from rich.table import Table


def new_table(header: Sequence[str], *, left: int = 1) -> Table:
    """An empty table; its first `left` columns are text, the others numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


def add_row(table: Table, cells: Iterable[str], *, style: str | None = None) -> None:
    """Add a row of cells that are shown as they are, brackets too."""
    table.add_row(*(cell.replace("[", "\\[") for cell in cells), style=style)


def show(table: Table) -> None:
    """Print a table on standard output. In a narrow terminal lines run on: a number cut off is worth nothing."""
    from rich.console import Console
    from rich.measure import Measurement

    unlimited = Console(width=10_000)
    natural = Measurement.get(unlimited, unlimited.options, table).maximum
    Console(highlight=False, soft_wrap=True, width=max(output().width, natural)).print(table)


def show_rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table of `rows`."""
    table = new_table(header, left=left)
    for row in rows:
        add_row(table, row)
    show(table)


FORMATS = ("table", "markdown", "latex", "csv")
"""Of `print_rows`: for the eye, and three to paste."""


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], format: str = "table", *, left: int = 1) -> None:
    """Print a table in one of FORMATS."""
    if format == "table":
        show_rows(header, rows, left=left)
        return
    if format == "csv":
        import csv
        import io

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        lines = text.getvalue().splitlines()
    elif format == "markdown":
        rule = ["---" if number < left else "---:" for number in range(len(header))]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows)]
    else:
        from gptlab.lab.report.latex import escape, tabular

        escaped = [[escape(cell) for cell in row] for row in (header, *rows)]
        lines = tabular(escaped[0], escaped[1:], "l" * left + "r" * (len(header) - left)).splitlines()
    for line in lines:
        output().print(line, markup=False, highlight=False, soft_wrap=True)
