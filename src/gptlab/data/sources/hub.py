"""Data sets of the Hugging Face hub: `hf://NAME[:CONFIG][@SPLIT]`, streamed, and files of one, `hf://OWNER/NAME/PATTERN`,
each fetched when it is its turn."""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptlab.console import waiting
from gptlab.data.sources import kinds, token_files
from gptlab.data.sources.base import BLOCK_BYTES, Block, Reading, RowsBlock, Source, row_size
from gptlab.errors import DataError, option

PREFIXES = ("hf://",)


def open_input(given: str, *, cache: Path | None, block_bytes: int) -> list[Source]:
    """The data set that `given` names. Raises DataError where that is no name."""
    file = re.fullmatch(r"hf://([^/:@]+/[^/:@]+)/([^:@]+)", given)
    if file and not Path(given.removeprefix("hf://")).is_dir():
        return list(_files(given, file[1], file[2], block_bytes))
    match = re.fullmatch(r"hf://([^:@]+)(?::([^@]+))?(?:@(.+))?", given)
    if match is None:
        raise DataError(
            f"{given}: is no dataset name; write hf://OWNER/NAME, hf://OWNER/NAME:CONFIG@SPLIT or, for files, hf://OWNER/NAME/PATTERN"
        )
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
            size += row_size(rows[-1])
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
            raise _unavailable(self.name, error) from None

    def _examples(self, stream: Any) -> Iterator[dict[str, Any]]:
        iterator = iter(stream)
        while True:
            try:
                example = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # as above: network, decoding, schema
                raise _unavailable(self.name, error) from None
            yield example


def _files(given: str, repository: str, pattern: str, block_bytes: int) -> Iterator[Source]:
    """The files of a data set that match, by name. Raises DataError where they cannot be listed, or there is none."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise DataError(
            f"{given}: files of the Hugging Face hub need an extra; install it with: pip install 'gptlab[hub]'"
        ) from None
    try:
        with waiting(f"listing {repository}"):
            info = HfApi().dataset_info(repository)
    except Exception as error:  # of a dozen kinds: network, rights, no such name
        raise _unavailable(given, error) from None
    names = sorted(file.rfilename for file in info.siblings or [])
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise DataError(f"{given}: no such file in {repository} (it has: {', '.join(names[:8])}…); check the pattern")
    for name in found:
        yield HubFile(f"hf://{repository}/{name}", repository, name, str(info.sha), block_bytes)


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the hub, at one commit of it. It is fetched once, and kept in the hub's own cache."""

    is_stream: ClassVar[bool] = True

    name: str
    repository: str
    file: str
    commit: str
    block_bytes: int

    @property
    def holds_ids(self) -> bool:
        """Whether it is a file of token ids."""
        return Path(self.file).suffix in token_files.NAMED

    def size(self, reading: Reading) -> int | None:
        return None

    def identity(self) -> list[Any]:
        return [self.name, self.commit]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        from huggingface_hub import hf_hub_download

        try:
            with waiting(f"fetching {self.file}"):
                path = hf_hub_download(self.repository, self.file, repo_type="dataset", revision=self.commit)
        except Exception as error:
            raise _unavailable(self.name, error) from None
        yield from kinds.open_file(Path(path), self.name, self.block_bytes).blocks(number, reading, position)


def _unavailable(name: str, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return DataError(
        f"{name}: cannot be read ({type(error).__name__}: {reason}); check name, config, split and network, "
        f"or give downloaded files with {option('input')}"
    )
