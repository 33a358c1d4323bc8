"""Columns of Arrow tables, as Parquet and Arrow files have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gptlab.errors import DataError, option


def column_names(fields: Iterable[Any], above: str = "") -> Iterator[str]:
    """The names of columns as --text-column takes them: `doc.text` for field `text` of a struct `doc`."""
    import pyarrow.types as types

    for field in fields:
        if types.is_struct(field.type):
            yield from column_names(field.type, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}"


def check_column(schema: Any, column: str, name: str) -> None:
    """Raise DataError where a file, called `name`, has no such column."""
    names = list(column_names(schema))
    if column not in names:
        raise DataError(
            f"{name}: no column {column!r} (it has: {', '.join(names)}); name the column of the text with "
            f"{option('text_column')}"
        )


def column_of(table: Any, column: str) -> Any:
    """The column of a table or record batch, which `check_column` has found there."""
    import pyarrow.compute as pc

    if column in table.schema.names:
        return table.column(column)
    first, *inner = column.split(".")
    return pc.struct_field(table.column(first), inner)


def values_of(column: Any) -> list[Any]:
    """The values of a column; where one is no valid UTF-8, all of them as bytes."""
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        values = column.cast(pa.large_binary()).to_pylist()
    return values
