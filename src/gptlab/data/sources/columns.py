"""Columns of Arrow tables, as Parquet and Arrow files have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gptlab.data.sources.base import Reading
from gptlab.errors import DataError


def column_names(fields: Iterable[Any], above: str = "") -> Iterator[str]:
    """The names of columns as --text-column takes them: `doc.text` for field `text` of a struct `doc`."""
    import pyarrow.types as types

    for field in fields:
        if types.is_struct(field.type):
            yield from column_names(field.type, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}"


def check_column(schema: Any, reading: Reading, name: str) -> None:
    """Raise DataError where a file, called `name`, has no column of `reading`'s."""
    names = list(column_names(schema))
    if reading.text_column not in names:
        raise DataError(
            f"{name}: no column {reading.text_column!r} (it has: {', '.join(names)}); name the column with "
            f"{reading.column_option}"
        )


def column_of(table: Any, column: str) -> Any:
    """The column of a table or record batch, which `check_column` has found there."""
    import pyarrow.compute as pc

    if column in table.schema.names:
        return table.column(column)
    first, *inner = column.split(".")
    return pc.struct_field(table.column(first), inner)


def values_of(column: Any) -> list[Any]:
    """The values of a column: lists of numbers as arrays; where a text is no valid UTF-8, all of them as bytes."""
    import pyarrow as pa

    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(check(column.type) for check in is_list) and pa.types.is_integer(column.type.value_type):
        return [row for chunk in getattr(column, "chunks", [column]) for row in _arrays(chunk)]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        values = column.cast(pa.large_binary()).to_pylist()
    return values


def _arrays(column: Any) -> list[Any]:
    """The rows of an array of lists of integers; a null is an empty one. Raises DataError for a null among them."""
    import pyarrow.compute as pc

    values = column.flatten()
    if values.null_count:
        raise DataError("a list of token ids has a null in it; mend the file")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    rows: list[Any] = np.split(values.to_numpy(zero_copy_only=False), np.cumsum(lengths)[:-1]) if len(lengths) else []
    return rows
