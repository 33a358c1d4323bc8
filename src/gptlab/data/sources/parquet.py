"""Parquet files: their row groups are read in the workers, in slices."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptlab.data.sources.base import (
    BLOCK_BYTES,
    Block,
    Cursor,
    Document,
    Reading,
    RowsBlock,
    Source,
    damage_as_data_error,
    file_identity,
)
from gptlab.data.sources.columns import check_column, column_of, values_of

SUFFIXES = (".parquet",)

_ROW_GROUP_IN_WORKER = 1 << 26  # larger row groups are streamed by the parent: memory stays bounded


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """The source that a file is. Its blocks are slices of row groups, whatever `block_bytes`."""
    return ParquetFile(path, name)


@dataclass(frozen=True)
class ParquetBlock:
    """Rows `start` … `stop - 1` of a row group of a Parquet file, read by whoever needs them."""

    cursor: Cursor
    source: str
    path: str
    row_group: int
    start: int
    stop: int
    source_bytes: int

    def documents(self, reading: Reading) -> Iterator[Document]:
        column = _row_group(self.path, self.row_group, reading.text_column)
        rows = values_of(column[self.start : self.stop])
        texts = [
            reading.check_row(text, self.source, f"row group {self.row_group}, row {number}")
            for number, text in enumerate(rows, self.start)
        ]
        return reading.join_rows(texts, self.source, first=self.row_group == 0 and self.start == 0)


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file."""

    is_stream: ClassVar[bool] = False

    path: Path
    name: str

    def size(self, reading: Reading) -> int | None:
        metadata, column = _parquet_metadata(self.path, reading)
        sizes = (metadata.row_group(i).column(column).total_uncompressed_size for i in range(metadata.num_row_groups))
        return int(sum(sizes))

    def identity(self) -> list[Any]:
        return file_identity(self.path)

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        metadata, column = _parquet_metadata(self.path, reading)
        first_group, first_row = position or (0, 0)
        for group in range(first_group, metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            size = metadata.row_group(group).column(column).total_uncompressed_size
            skip = first_row if group == first_group else 0
            if size > _ROW_GROUP_IN_WORKER:
                yield from self._streamed(number, group, skip, reading)
                continue
            slices = max(1, min(8, size // BLOCK_BYTES))
            edges = [rows * i // slices for i in range(slices + 1)]
            for start, stop in itertools.pairwise(edges):
                if start >= skip and stop > start:
                    cursor = (number, [group, start])
                    source_bytes = size * (stop - start) // rows
                    yield ParquetBlock(cursor, self.name, str(self.path), group, start, stop, source_bytes)

    def _streamed(self, number: int, group: int, skip: int, reading: Reading) -> Iterator[Block]:
        import pyarrow.parquet as pq

        row = 0
        with damage_as_data_error(self.name), pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(256, row_groups=[group], columns=[reading.text_column]):
                if row >= skip:
                    texts = values_of(column_of(batch, reading.text_column))
                    yield RowsBlock((number, [group, row]), self.name, row, texts, group == 0 and row == 0)
                row += batch.num_rows


def _parquet_metadata(path: Path, reading: Reading) -> tuple[Any, int]:
    """The file's metadata and the number of the column among its leaves."""
    import pyarrow.parquet as pq

    with damage_as_data_error(str(path)):
        metadata = pq.read_metadata(path)
        check_column(metadata.schema.to_arrow_schema(), reading, str(path))
    leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    column = reading.text_column  # a list's leaf has a longer path than its column
    return metadata, next(i for i, leaf in enumerate(leaves) if leaf == column or leaf.startswith(f"{column}."))


@functools.lru_cache(maxsize=1)  # the slices of a row group follow each other
def _row_group(path: str, row_group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with damage_as_data_error(path), pq.ParquetFile(path) as file:
        return column_of(file.read_row_group(row_group, columns=[column], use_threads=False), column)
