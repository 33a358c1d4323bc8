"""Tables in text, comma- or tab-separated, with a first line of names: a row's `--text-column` is a document."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.data.sources.base import Block, Reading, Source, row_blocks
from gptlab.data.sources.formats import refuse_binary
from gptlab.data.sources.streams import HEAD_BYTES, MAX_LINE_BYTES, PACKED, PackedFile, lines_of, open_stream, suffixes
from gptlab.errors import DataError, option

NAMED = tuple(kind + packed for kind in (".csv", ".tsv") for packed in ("", *PACKED))  # lists of files lie beside texts


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """The source that a file is."""
    return TableFile(path, name, block_bytes)


@dataclass(frozen=True)
class TableFile(PackedFile):
    """A .csv or .tsv file, plain or compressed."""

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        """Rows are counted from 1, the first below the names."""
        rows = ((row, text) for row, text in enumerate(self._column(reading), 1) if row >= (position or 1))
        return row_blocks(rows, self.name, lambda row: (number, row), self.block_bytes, origin=1)

    def _column(self, reading: Reading) -> Iterator[str]:
        csv.field_size_limit(MAX_LINE_BYTES)
        with open_stream(self.path, self.name) as file:
            refuse_binary(file.peek(HEAD_BYTES)[:HEAD_BYTES], self.name)
            lines = (reading.decode(line, self.name, offset) for offset, line in lines_of(file, self.name))
            tabs = suffixes(self.path).startswith(".tsv")
            table = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
            try:
                names = next(table, [])
                names[:1] = [name.removeprefix("\ufeff") for name in names[:1]]
                if reading.text_column not in names:
                    raise DataError(
                        f"{self.name}: no column {reading.text_column!r} in its first line ({', '.join(names)});"
                        f" name the column of the text with {option('text_column')}"
                    )
                column = names.index(reading.text_column)
                for row in table:
                    if row and len(row) != len(names):
                        raise DataError(
                            f"{self.name}, line {table.line_num}: {len(row)} columns where the first line names"
                            f" {len(names)}; mend or remove the row"
                        )
                    yield row[column] if row else ""
            except csv.Error as error:
                raise DataError(
                    f"{self.name}, line {table.line_num}: is no row of a table or cut off ({error}); mend the file"
                ) from None
