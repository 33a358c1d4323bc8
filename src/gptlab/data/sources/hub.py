"""Data sets of the Hugging Face hub, streamed: `hf://NAME[:CONFIG][@SPLIT]`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptlab.data.sources.base import BLOCK_BYTES, Block, Reading, RowsBlock, Source
from gptlab.errors import DataError, option

PREFIXES = ("hf://",)


def open_input(given: str, *, cache: Path | None, block_bytes: int) -> list[Source]:
    """The data set that `given` names. Raises DataError where that is no name."""
    match = re.fullmatch(r"hf://([^:@]+)(?::([^@]+))?(?:@(.+))?", given)
    if match is None:
        raise DataError(f"{given}: is no dataset name; write hf://OWNER/NAME, hf://OWNER/NAME:CONFIG@SPLIT")
    return [HubDataset(given, match[1], match[2], match[3] or "train")]


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face dataset, streamed through the `datasets` library."""

    is_stream: ClassVar[bool] = True

    name: str
    dataset: str
    config: str | None
    split: str

    def size(self, reading: Reading) -> int | None:
        return None

    def identity(self) -> list[Any]:
        return [self.name]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        stream = self._open()
        row, state = position or (0, None)
        if state is not None:
            stream.load_state_dict(state)
        start, rows, size = row, [], 0
        state = copy.deepcopy(stream.state_dict())
        for example in self._examples(stream):
            rows.append(reading.pick(example, self.name, f"row {row}"))
            size += len(rows[-1] or "") if isinstance(rows[-1], str) else 0
            row += 1
            if size >= BLOCK_BYTES:
                yield RowsBlock((number, [start, state]), self.name, start, rows, start == 0)
                start, rows, size, state = row, [], 0, copy.deepcopy(stream.state_dict())
        if rows:
            yield RowsBlock((number, [start, state]), self.name, start, rows, start == 0)

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{self.name}: Hugging Face datasets need an extra; install it with: pip install 'gptlab[hub]'"
            ) from None
        try:
            return datasets.load_dataset(self.dataset, self.config, split=self.split, streaming=True)
        except Exception as error:  # the library raises errors of a dozen packages; all mean "cannot be had"
            raise self._unavailable(error) from None

    def _examples(self, stream: Any) -> Iterator[dict[str, Any]]:
        iterator = iter(stream)
        while True:
            try:
                example = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # as above: network, decoding, schema
                raise self._unavailable(error) from None
            yield example

    def _unavailable(self, error: Exception) -> DataError:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return DataError(
            f"{self.name}: cannot be read ({type(error).__name__}: {reason}); check name, config, split and network, "
            f"or give downloaded files with {option('input')}"
        )
