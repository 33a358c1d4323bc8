"""What a preparation will do: which sources are read, and where their documents go."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptlab.console import progress
from gptlab.data.dataset import FORMAT_VERSION, Split
from gptlab.data.preparation.overlap import refuse_equal_files
from gptlab.data.shards import MAX_SHARDS, MAX_TOKENS
from gptlab.data.sources.base import Reading, Source, utf8_length
from gptlab.data.sources.resolve import read_documents, total_size
from gptlab.data.sources.selection import Input, Selected
from gptlab.data.sources.text import character_split
from gptlab.errors import DataError, option
from gptlab.processes import usable_cores

if TYPE_CHECKING:
    from gptlab.tokenizer import Tokenizer

_JOURNAL_VERSION = 3  # what one of another says is of other documents, or of other places in them

_LEAST_TOKENS = 1000  # of a shard: fewer are smaller than its header
_MOST_TEXT = 10**15  # bytes or tokens: far more than anybody has written


@dataclass(frozen=True)
class Pass:
    """One walk over sources, and how its documents go to the splits.

    With `validation_documents_from` = n, documents 0 … n-1 of the walk are for training and the rest for validation.
    With `validation_tokens` the first documents, as many as fit in so many tokens, are for validation and the rest for
    training. With neither all go to `split`.
    """

    split: Split
    sources: list[Source]
    validation_documents_from: int | None = None
    validation_tokens: int | None = None

    @property
    def splits(self) -> list[Split]:
        """The splits that its documents go to."""
        divided = self.validation_documents_from is not None or self.validation_tokens is not None
        return [self.split, "validation"] if divided else [self.split]


def check_options(
    validation: Sequence[str | Input] | None,
    fraction: float | None,
    tokens: int | None,
    shard_size: int,
    num_shards: int | None,
    limit_bytes: int | None,
    workers: int | None,
) -> None:
    """Raise DataError for options that exclude each other, and for numbers that cannot be."""
    if (validation is not None) + (fraction is not None) + (tokens is not None) > 1:
        raise DataError(
            f"give only one of {option('validation')}, {option('validation_fraction')} and "
            f"{option('validation_tokens')}"
        )
    if fraction is not None and not 0 < fraction < 1:
        raise DataError(f"{option('validation_fraction', fraction)}: must lie between 0 and 1, like 0.1")
    if fraction is not None and num_shards is not None:
        raise DataError(
            f"{option('num_shards')} leaves out the last documents, which {option('validation_fraction')} "
            f"wants; use {option('validation_tokens')}"
        )
    cores = usable_cores()
    for name, value, least, most, why in (
        (option("shard_size"), shard_size, _LEAST_TOKENS, MAX_TOKENS, "a shard's header counts no more"),
        (option("num_shards"), num_shards, 1, MAX_SHARDS, "more files serve nobody; make shards larger"),
        (option("limit_bytes"), limit_bytes, 1, _MOST_TEXT, "there is no such text; leave it out"),
        (option("validation_tokens"), tokens, 1, _MOST_TEXT, "there is no such text"),
        (option("workers"), workers, 1, max(32, 4 * cores), f"this machine has {cores} cores"),
    ):
        if value is not None and value < least:
            raise DataError(f"{name} {value}: must be at least {least}")
        if value is not None and value > most:
            raise DataError(f"{name} {value}: must be at most {most}; {why}")


def plan_passes(
    sources: list[Source],
    validation: list[Source] | None,
    fraction: float | None,
    tokens: int | None,
    reading: Reading,
    limit_bytes: int | None,
    count: Callable[[], int] | None = None,
    *,
    whole: bool = False,
) -> list[Pass]:
    """The passes that make the data set. Counting the documents for a fraction takes a walk over the text.

    Args:
        count: counts the documents in another way.
        whole: a single text is one document, and is not divided by characters.

    Raises DataError where there is nothing to divide, or a file is for both splits.
    """
    for source in sources if validation is None and (fraction or tokens) else []:
        if isinstance(source, Selected) and source.input.weight > 1:
            raise DataError(
                f"{source.name}: weight {source.input.weight:g} repeats documents, which would come into both splits; "
                f"give text of its own with {option('validation')}"
            )
        if isinstance(source, Selected) and source.input.max_tokens and fraction:
            raise DataError(
                f"{source.name}: documents are counted for {option('validation_fraction')} before there are tokens to "
                f"cap; cap its bytes or documents, or use {option('validation_tokens')}"
            )
    if validation is not None:
        refuse_equal_files(sources, validation)
        return [Pass("train", sources), Pass("validation", validation)]
    if tokens is not None:
        return [Pass("train", sources, validation_tokens=tokens)]
    if fraction is None:
        return [Pass("train", sources)]
    one = not whole and len(sources) == 1 and reading.separator is None and reading.document_start is None
    if one and (parts := character_split(sources[0], fraction)):
        return [Pass("train", [parts[0]]), Pass("validation", [parts[1]])]
    documents = count() if count is not None else _count_documents(sources, reading, limit_bytes)
    if documents < 2:
        raise DataError(
            f"{sources[0].name}: {documents} document(s) cannot be split into training and validation; give"
            f" {option('validation', 'FILES')}"
        )
    last = max(1, math.ceil(documents * fraction - 1e-9))
    return [Pass("train", sources, validation_documents_from=max(1, documents - last))]


def _count_documents(sources: list[Source], reading: Reading, limit_bytes: int | None) -> int:
    for source in sources:
        if source.is_stream:
            raise DataError(
                f"{source.name}: a stream cannot be counted for {option('validation_fraction')}; use "
                f"{option('validation_tokens')} or "
                f"{option('validation')}"
            )
    documents = seen = 0
    with progress() as bar:
        task = bar.add_task("counting documents", total=total_size(sources, reading))
        for block, found in read_documents(sources, reading):
            for document in found:
                documents += not document.continues
                seen += utf8_length(document.text)
                if limit_bytes is not None and seen >= limit_bytes:
                    return documents
            bar.advance(task, block.source_bytes)
    return documents


def plan_fingerprint(passes: list[Pass], tokenizer: Tokenizer, options: dict[str, Any]) -> str:
    """Digest of all that decides the shards' bytes: a journal with another is of no use."""
    plan = [[one.split, [source.identity() for source in one.sources], one.validation_documents_from] for one in passes]
    decides = [_JOURNAL_VERSION, FORMAT_VERSION, plan, tokenizer.hash, options]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
