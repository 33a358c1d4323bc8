"""Token ids to shards, in order, with a journal from which an interrupted preparation is resumed."""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.console import progress, say
from gptlab.data.dataset import ShardEntry, Split, SplitEntry, checked_shard
from gptlab.data.preparation.plan import Pass
from gptlab.data.preparation.unit_files import DoneBlock, DoneUnits
from gptlab.data.preparation.workers import EncodedBlock, encoding_workers
from gptlab.data.shards import MAX_SHARDS, ShardWriter, token_dtype
from gptlab.data.sources.base import BlockPlace, Cursor, Reading, Source
from gptlab.data.sources.resolve import names_of, read_blocks, source_of, total_size
from gptlab.data.sources.selection import Selected
from gptlab.errors import DataError, option
from gptlab.files import atomic_folder, write_atomic
from gptlab.seal import sealed_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gptlab.tokenizer import Tokenizer

JOURNAL = "journal.json"
UNITS = "units"
"""In the working folder: the folder of units that are done."""
_BLOCKS_PER_WORKER = 4  # in flight: enough that no worker waits for the parent, few enough to bound memory


@dataclass
class ResumeState:
    """Resume state; the journal stores the value at the last completed shard.

    Attributes:
        number: of the pass.
        cursor: of the block that holds the next id.
        skip: ids of that block that are in completed shards.
        documents, bytes, tokens: of this pass before that block, whichever split they went to.
        source_tokens: of the block's source before it.
        split: of the last document before that block.
        source: the file that it is of (`resolve.source_of`): of another, the block's first one begins a document.
        splits: what is written.
    """

    number: int = 0
    cursor: Cursor | None = None
    skip: int = 0
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    source_tokens: int = 0
    split: Split | None = None
    source: list[Any] | None = None
    splits: dict[str, SplitEntry] = field(default_factory=dict)


class DatasetWriter:
    """Writes the shards of a data set: blocks go to the workers, their ids come back in order, shards are journaled.

    Args:
        folder: where shards and journal are written.
        passes: what is read, and which splits it makes.
        tokenizer: a copy of it is saved to `folder`; from `saved`, a folder of the same tokenizer, where there is one.
        reading: how text is read.
        shard_size: tokens of a shard.
        num_shards: training shards at most.
        limit_bytes: UTF-8 bytes of text to read at most.
        workers: processes.
        done: what is encoded already, in place of the text of the passes' sources.
    """

    def __init__(
        self,
        folder: Path,
        passes: list[Pass],
        tokenizer: Tokenizer,
        saved: Path | None,
        reading: Reading,
        *,
        shard_size: int,
        num_shards: int | None,
        limit_bytes: int | None,
        workers: int,
        done: DoneUnits | None = None,
    ) -> None:
        self.done = done
        self.folder, self.passes, self.reading = folder, passes, reading
        self.tokenizer, self.saved = tokenizer, saved
        self.shard_size, self.num_shards = shard_size, num_shards
        self.limit_bytes, self.workers = limit_bytes, workers
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.state = ResumeState()
        self.writer: ShardWriter | None = None
        self.writing: Split = "train"
        self.fingerprint = ""
        self.at_block_end: dict[str, Any] | None = None  # what the state is at the end of the last block
        self.full: set[int] = set()  # sources of the pass of which enough tokens are there

    def run(self, fingerprint: str) -> None:
        """Write all shards; `state.splits` tells them afterwards. Raises DataError as `prepare` does."""
        self.fingerprint = fingerprint
        resumed = self._resume()
        if not (self.folder / "tokenizer").is_dir():
            save_tokenizer(self.tokenizer, self.saved, self.folder / "tokenizer")
        started = time.monotonic()
        done = sum(entry.bytes for entry in self.state.splits.values())
        sizes = [total_size(one.sources, self.reading) for one in self.passes]
        known = [size for size in sizes if size is not None]
        try:
            with progress() as bar, self._encoding() as submit:
                total = sum(known) if len(known) == len(sizes) and self.limit_bytes is None else None
                doing = "tokenizing" if self.done is None else "writing shards"
                task = bar.add_task(doing, total=total, completed=resumed if total else 0)
                for number in range(self.state.number, len(self.passes)):
                    self._run_pass(number, submit, bar, task)
        except BaseException:
            if self.writer is not None:
                self.writer.discard()
            raise
        self._check_not_empty()
        self._report(time.monotonic() - started, done)

    def _encoding(self) -> contextlib.AbstractContextManager[Callable[[Any], Future[EncodedBlock]]]:
        """What gives the ids of a block."""
        if self.done is not None:
            return contextlib.nullcontext(_encoded_already)
        return encoding_workers(self.workers, self.folder / "tokenizer", self.reading)

    def _report(self, seconds: float, done: int) -> None:
        from gptlab.config.numbers import format_count  # its package is slow to import: kept out of the workers

        text = sum(entry.bytes for entry in self.state.splits.values())
        tokens = sum(entry.tokens for entry in self.state.splits.values())
        say(
            f"{text / 1e6:.1f} MB of text, {format_count(tokens)} tokens, {text / max(1, tokens):.3f} bytes a token; "
            f"{(text - done) / 1e6 / max(seconds, 1e-9):.1f} MB/s with {self.workers} worker(s)"
        )

    def _check_not_empty(self) -> None:
        for one in self.passes:
            names = ", ".join(names_of(one.sources, 3))
            for split in set(one.splits):
                if split not in self.state.splits:
                    (self.folder / JOURNAL).unlink(missing_ok=True)  # going on from it would end here again
                    raise DataError(f"{names}: no text for the {split} split; give more or other input")

    def _resume(self) -> int:
        """Resume from the journal of an earlier run, or clear the folder. Returns the bytes of text that are done."""
        journal = self._read_journal()
        if journal is None:
            remove(path for path in self.folder.iterdir() if path.name != UNITS)
            return 0
        remove(self.folder.glob(".*.tmp"))
        self.state = journal
        shards = [shard for entry in journal.splits.values() for shard in entry.shards]
        done = sum(entry.bytes for entry in journal.splits.values())
        say(f"going on after {len(shards)} finished shard(s), {done / 1e6:.1f} MB of text")
        return done

    def _read_journal(self) -> ResumeState | None:
        from gptlab.config.jsonfile import parse_json, read_json  # kept out of the workers

        path, mend = self.folder / JOURNAL, f"remove the folder {self.folder}"
        try:
            content = read_json(path, dict[str, Any], mend=mend, error=DataError)
            if content.pop("fingerprint", None) != self.fingerprint:
                say(f"{self.folder}: other inputs or options than last time; starting over")
                return None
            state = parse_json(json.dumps(content), ResumeState)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{path}: is damaged ({error}); {mend}") from None
        for entry in state.splits.values():
            for shard in entry.shards:
                checked_shard(self.folder, shard)
        return state

    def _run_pass(
        self, number: int, submit: Callable[[Any], Future[EncodedBlock]], bar: Progress, task: TaskID
    ) -> None:
        """Encode and write one pass. A bounded number of blocks is in flight; results are written in order."""
        if number != self.state.number:
            self.state = ResumeState(number, splits=self.state.splits)
        self.at_block_end = None
        self.full.clear()
        blocks: Iterator[BlockPlace]
        if self.done is not None:
            blocks = self.done.blocks(number, self.state.cursor, self.full)
        else:
            blocks = read_blocks(self.passes[number].sources, self.reading, self.state.cursor, self.full)
        window: collections.deque[tuple[BlockPlace, Future[EncodedBlock]]] = collections.deque()
        more = True
        try:
            while more or window:
                while more and len(window) < self.workers * _BLOCKS_PER_WORKER:
                    following = next(blocks, None)
                    if following is None:
                        more = False
                    else:
                        window.append((following, submit(following)))
                if window:
                    block, future = window.popleft()
                    wanted = block.cursor[0] not in self.full
                    finished = wanted and self._write_block(number, block, future.result())
                    bar.advance(task, block.source_bytes)
                    if finished:
                        break
        except BrokenProcessPool:
            raise DataError(
                f"a tokenizing process died, probably for want of memory; the same command goes on with fewer "
                f"{option('workers')}"
            ) from None
        finally:
            for _, future in window:
                future.cancel()
        self._close_shard()

    def _write_block(self, number: int, block: BlockPlace, encoded: EncodedBlock) -> bool:
        """Write a block's ids. Returns whether a limit ends the pass here."""
        one, state = self.passes[number], self.state
        if self.at_block_end is not None:  # the block before is done: what was counted in it holds from here on
            self.state = state = replace(state, **self.at_block_end, skip=0)
        if state.cursor is not None and state.cursor[0] != block.cursor[0]:
            state.source_tokens = 0
        state.cursor = block.cursor
        if source_of(block) != state.source:
            encoded = encoded.opened(self.tokenizer.end_of_text)
        encoded = self._capped(one.sources[block.cursor[0]], block.cursor[0], encoded)
        documents = _Documents(encoded, state.skip)
        switch, first, second = self._split_change(one, documents)
        stop, complete = self._limit(one, documents, switch, first, second)
        self._write(first, documents, 0, min(switch, stop))
        self._write(second, documents, switch, stop)
        self.at_block_end = {
            "documents": state.documents + int(encoded.begins.sum()),
            "bytes": state.bytes + int(encoded.bytes.sum()),
            "tokens": state.tokens + len(encoded.ids),
            "source_tokens": state.source_tokens + len(encoded.ids),
            "split": second if switch < len(documents.ends) else first,
            "source": source_of(block) if len(documents.ends) else state.source,
        }
        return complete

    def _capped(self, source: Source, number: int, encoded: EncodedBlock) -> EncodedBlock:
        """What of a block is within the tokens that its source may give: up to the document that reaches them."""
        cap = source.input.max_tokens if isinstance(source, Selected) else None
        if cap is None:
            return encoded
        reached = int(np.searchsorted(self.state.source_tokens + np.cumsum(encoded.lengths), cap))
        if reached < len(encoded.lengths):
            self.full.add(number)
        return encoded.first(reached + 1)

    def _split_change(self, one: Pass, documents: _Documents) -> tuple[int, Split, Split]:
        """Where in a block the split changes (its end: nowhere), the split before and the one after."""
        n = len(documents.ends)
        if one.validation_documents_from is not None:
            numbers = self.state.documents - 1 + np.cumsum(documents.begins)
            return int(np.searchsorted(numbers, one.validation_documents_from)), "train", "validation"
        if one.validation_tokens is not None:
            if self.state.split == "train":
                return n, "train", "train"
            written = self.state.tokens + documents.ends
            later = self.state.documents + np.cumsum(documents.begins) > 1  # the first document always goes in
            over = np.flatnonzero(documents.begins & later & (written > one.validation_tokens))
            return int(over[0]) if over.size else n, "validation", "train"
        return n, one.split, one.split

    def _limit(self, one: Pass, documents: _Documents, switch: int, first: Split, second: Split) -> tuple[int, bool]:
        """Number of documents of a block that are wanted, and whether a limit says that the pass ends there."""
        n = len(documents.ends)
        stop = n + 1
        if one.split == "train" and self.limit_bytes is not None:
            seen = self.state.bytes + np.cumsum(documents.bytes)
            stop = min(stop, int(np.searchsorted(seen, self.limit_bytes)) + 1)
        if one.split == "train" and self.num_shards is not None:
            unwritten = np.where((np.arange(n) < switch) == (first == "train"), documents.unwritten, 0)
            written = self._written("train") + np.cumsum(unwritten)
            over = np.flatnonzero((written > self.num_shards * self.shard_size) & (unwritten > 0))
            if over.size and written[over[0]] == unwritten[over[0]]:
                raise DataError(
                    f"{option('num_shards', self.num_shards)} of {option('shard_size', self.shard_size)} "
                    f"cannot hold the first document"
                    f" ({written[over[0]]} tokens or more); make shards larger"
                )
            stop = min(stop, int(over[0]) if over.size else stop)
        return (stop, True) if stop <= n else (n, False)

    def _written(self, split: Split) -> int:
        """Tokens of a split that are written by now."""
        finished = self.state.splits[split].tokens if split in self.state.splits else 0
        return finished + (self.writer.tokens if self.writer is not None and self.writing == split else 0)

    def _write(self, split: Split, documents: _Documents, start: int, stop: int) -> None:
        """Write documents `start` … `stop - 1` of a block, closing shards as they fill up."""
        if stop <= start:
            return
        position = max(int(documents.starts[start]), self.state.skip)
        end = int(documents.ends[stop - 1])
        if position >= end:
            return
        if self.writer is not None and self.writing != split:
            self._close_shard()
        while position < end:
            writer = self.writer or self._open_shard(split)
            part = documents.ids[position : min(end, position + self.shard_size - writer.tokens)]
            writer.append(part)
            entry = self.state.splits[split]
            counted = slice(*np.searchsorted(documents.starts, (position, position + len(part))))
            entry.documents += int(documents.begins[counted].sum())
            entry.bytes += int(documents.bytes[counted].sum())
            position += len(part)
            self.state.skip = position
            if writer.tokens == self.shard_size:
                self._close_shard()

    def _open_shard(self, split: Split) -> ShardWriter:
        entry = self.state.splits.setdefault(split, SplitEntry())
        if len(entry.shards) >= MAX_SHARDS:
            raise DataError(
                f"{option('shard_size', self.shard_size)}: the {split} split has {MAX_SHARDS} shards by now; "
                f"make them larger"
            )
        number = len(entry.shards) + (1 if split == "train" else 0)  # as modded-nanogpt counts its FineWeb files
        self.writer, self.writing = ShardWriter(self.folder / f"{split}_{number:06d}.bin", self.dtype), split
        return self.writer

    def _close_shard(self) -> None:
        """Put the shard on disk, then say so in the journal: a kill between the two only repeats the shard."""
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        entry = self.state.splits[self.writing]
        entry.shards.append(ShardEntry(writer.path.name, writer.tokens, writer.close()))
        entry.tokens += writer.tokens
        journal = {"fingerprint": self.fingerprint, **asdict(self.state)}
        write_atomic(self.folder / JOURNAL, sealed_json(journal))


def save_tokenizer(tokenizer: Tokenizer, saved: Path | None, folder: Path) -> None:
    """Save `tokenizer` to `folder`; of `saved`, a folder of the same one, a copy is made."""
    with atomic_folder(folder) as aside:
        if saved is not None:
            shutil.copytree(saved, aside, dirs_exist_ok=True)
        else:
            tokenizer.save(aside)


def _encoded_already(block: DoneBlock) -> Future[EncodedBlock]:
    future: Future[EncodedBlock] = Future()
    future.set_result(block.encoded)
    return future


class _Documents:
    """The documents of a block and parts of long ones, of which the first `skip` ids are in finished shards."""

    def __init__(self, encoded: EncodedBlock, skip: int) -> None:
        self.ids, self.begins, self.bytes = encoded.ids, encoded.begins, encoded.bytes
        self.ends = np.cumsum(encoded.lengths)
        self.starts = self.ends - encoded.lengths
        self.unwritten = np.maximum(self.ends - np.maximum(self.starts, skip), 0)  # ids yet to be written


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders."""
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
