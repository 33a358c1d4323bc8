"""Text to token shards, in parallel, so that a kill at any moment loses at most the shard being written.

The parent reads blocks (`sources.read_blocks`), worker processes turn each into ids, and the parent takes the
results back in order and writes them. What is written depends on the inputs and options alone, never on the
number of workers. Each document is written as [end of text] + ids: the separator comes first, as in llm.c and
modded-nanogpt, and plays the part of a beginning-of-text token.

Everything happens in a folder beside the target (`.NAME.partial`) that takes the target's place when it is
whole. A journal in it is rewritten after each shard: what is finished, and the cursor of the block where the
shard ended. A new run with the same inputs and options goes on from there; with others it starts over.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptlab.console import progress, say
from gptlab.data.dataset import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    ShardEntry,
    Split,
    SplitEntry,
    checked_shard,
)
from gptlab.data.shards import MAX_TOKENS, ShardWriter, token_dtype
from gptlab.data.sources import (
    Block,
    Cursor,
    HubDataset,
    Reading,
    Source,
    block_bytes_for,
    character_split,
    names_of,
    read_blocks,
    resolve,
    total_size,
    utf8_length,
)
from gptlab.errors import DataError, GptlabError
from gptlab.files import atomic_folder, exclusive, fsync_directory, write_atomic

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gptlab.tokenizer import Tokenizer

JOURNAL = "journal.json"
_BLOCKS_PER_WORKER = 4  # in flight: enough that no worker waits for the parent, few enough to bound memory


@dataclass(frozen=True)
class Encoded:
    """What a worker makes of a block: the ids of all its documents, and where each lies."""

    ids: NDArray[Any]  # separators included
    lengths: NDArray[np.int64]  # ids of each document or piece, its separator included
    bytes: NDArray[np.int64]  # UTF-8 bytes of each
    begins: NDArray[np.bool_]  # whether each begins a document


@dataclass(frozen=True)
class Pass:
    """One walk over sources, and how its documents go to the splits.

    With `validation_documents_from` = n, documents 0 … n-1 of the walk are for training and the rest for
    validation. With `validation_tokens` the first documents, as many as fit in so many tokens, are for
    validation and the rest for training. With neither all go to `split`.
    """

    split: Split
    sources: list[Source]
    validation_documents_from: int | None = None
    validation_tokens: int | None = None


@dataclass
class State:
    """Where the writing stands; in the journal as it was when a shard was finished."""

    number: int = 0  # of the pass
    cursor: Cursor | None = None  # the block of the next id
    skip: int = 0  # ids of that block that are in finished shards
    documents: int = 0  # of this pass, before that block
    bytes: int = 0  # of text of this pass before that block
    tokens: int = 0  # of this pass before that block, whichever split they went to
    split: Split | None = None  # of the last document before that block
    splits: dict[str, SplitEntry] = field(default_factory=dict)


def prepare(
    inputs: Sequence[str],
    out: Path | str,
    *,
    tokenizer: str | Path | Tokenizer,
    validation: Sequence[str] | None = None,
    validation_fraction: float | None = None,
    validation_tokens: int | None = None,
    reading: Reading | None = None,
    shard_size: int = 100_000_000,
    num_shards: int | None = None,
    limit_bytes: int | None = None,
    workers: int | None = None,
    force: bool = False,
    cache: Path | None = None,
) -> Manifest:
    """Tokenize `inputs` into a data set in folder `out`; see `sources.resolve` for what inputs can be.

    Args:
        tokenizer: name, folder, or a loaded one; it is saved to `out/tokenizer`.
        validation: inputs of the validation split. At most one of these three; with none there is no such
            split.
        validation_fraction: share of the documents, the last ones, for validation; of a single plain text
            its last characters.
        validation_tokens: the first documents, as many as fit in so many tokens, for validation.
        reading: columns, separators and how to take what is no text.
        shard_size: tokens of a shard; only the last of a split is shorter.
        num_shards: stop after so many training shards (whole documents: the last shard may be a little
            short).
        limit_bytes: stop after the document (or piece of a long one) that reaches this many bytes of the inputs'
            text; `validation` inputs are read whole.
        workers: processes; default: one a CPU core. 1 works in this process.
        force: replace a finished data set in `out`.
        cache: folder of downloads.

    Returns what it wrote to `out/dataset.json`.
    Raises DataError for inputs, options and tokenizers that cannot give a data set. Finished shards are kept
    for the next try then; where there is none, nothing is left.
    """
    out, reading = Path(out), reading or Reading()
    _check_options(validation, validation_fraction, validation_tokens, shard_size, num_shards, limit_bytes)
    workers = workers or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    if out.exists() and not force:
        raise DataError(f"{out}: exists already; choose another --out, or replace it with --force")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is no data set, so --force does not replace it; choose another --out")
    block_bytes = block_bytes_for(limit_bytes)
    sources = resolve(inputs, cache=cache, block_bytes=block_bytes)
    checked = resolve(validation, cache=cache) if validation else None
    encoder = _load(tokenizer)
    passes = _plan(sources, checked, validation_fraction, validation_tokens, reading, limit_bytes)
    with _working_folder(out) as folder:
        options = {
            "shard_size": shard_size,
            "num_shards": num_shards,
            "limit_bytes": limit_bytes,
            "validation_fraction": validation_fraction,
            "validation_tokens": validation_tokens,
            **asdict(reading),
        }
        job = _Job(folder, passes, encoder, _saved(tokenizer), reading, shard_size, num_shards, limit_bytes, workers)
        job.run(_fingerprint(passes, encoder, options))
        manifest = Manifest(
            tokenizer={"name": encoder.name, "kind": encoder.kind, "hash": encoder.hash},
            vocab_size=encoder.vocab_size,
            end_of_text=encoder.end_of_text,
            splits=dict(sorted(job.state.splits.items())),
            sources=names_of([*sources, *(checked or [])]),
            options=options,
        )
        _finish(folder, out, manifest)
    return manifest


def _check_options(
    validation: Sequence[str] | None,
    fraction: float | None,
    tokens: int | None,
    shard_size: int,
    num_shards: int | None,
    limit_bytes: int | None,
) -> None:
    if (validation is not None) + (fraction is not None) + (tokens is not None) > 1:
        raise DataError("give only one of --validation, --validation-fraction and --validation-tokens")
    if fraction is not None and not 0 < fraction < 1:
        raise DataError(f"--validation-fraction {fraction}: must lie between 0 and 1, like 0.1")
    if fraction is not None and num_shards is not None:
        raise DataError(
            "--num-shards leaves out the last documents, which --validation-fraction wants; use --validation-tokens"
        )
    for name, value in (
        ("--shard-size", shard_size),
        ("--num-shards", num_shards),
        ("--limit-bytes", limit_bytes),
        ("--validation-tokens", tokens),
    ):
        if value is not None and value < 1:
            raise DataError(f"{name} {value}: must be at least 1")
    if shard_size > MAX_TOKENS:
        raise DataError(f"--shard-size {shard_size}: a shard holds at most {MAX_TOKENS} tokens; make more of them")


def _load(tokenizer: str | Path | Tokenizer) -> Tokenizer:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from gptlab.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer)


def _saved(tokenizer: str | Path | Tokenizer) -> Path | None:
    """The folder that `load_tokenizer` found, where it was a folder: copying is faster than saving anew."""
    if not isinstance(tokenizer, str | Path):
        return None
    for folder in (Path("tokenizers") / tokenizer, Path(tokenizer)):
        if (folder / "meta.json").is_file():
            return folder
    return None


def _plan(
    sources: list[Source],
    validation: list[Source] | None,
    fraction: float | None,
    tokens: int | None,
    reading: Reading,
    limit_bytes: int | None,
) -> list[Pass]:
    """The passes that make the data set. Counting the documents for a fraction takes a walk over the text."""
    if validation is not None:
        return [Pass("train", sources), Pass("validation", validation)]
    if tokens is not None:
        return [Pass("train", sources, validation_tokens=tokens)]
    if fraction is None:
        return [Pass("train", sources)]
    if len(sources) == 1 and reading.separator is None and (parts := character_split(sources[0], fraction)):
        return [Pass("train", [parts[0]]), Pass("validation", [parts[1]])]
    documents = _count_documents(sources, reading, limit_bytes)
    if documents < 2:
        raise DataError(
            f"{sources[0].name}: {documents} document(s) cannot be split into training and validation; give"
            " --validation FILES"
        )
    last = max(1, math.ceil(documents * fraction - 1e-9))
    return [Pass("train", sources, validation_documents_from=max(1, documents - last))]


def _count_documents(sources: list[Source], reading: Reading, limit_bytes: int | None) -> int:
    for source in sources:
        if isinstance(source, HubDataset):
            raise DataError(
                f"{source.name}: a stream cannot be counted for --validation-fraction; use"
                f" --validation-tokens or"
                " --validation"
            )
    documents = seen = 0
    with progress() as bar:
        task = bar.add_task("counting documents", total=total_size(sources, reading))
        for block in read_blocks(sources, reading):
            for document in block.documents(reading):
                documents += not document.continues
                seen += utf8_length(document.text)
                if limit_bytes is not None and seen >= limit_bytes:
                    return documents
            bar.advance(task, block.weight)
    return documents


def _fingerprint(passes: list[Pass], tokenizer: Tokenizer, options: dict[str, Any]) -> str:
    """Digest of all that decides the shards' bytes: a journal with another is of no use."""
    plan = [[one.split, [source.identity() for source in one.sources], one.validation_documents_from] for one in passes]
    decides = [FORMAT_VERSION, plan, tokenizer.hash, options]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """`.NAME.partial` beside `out`, for one process at a time; after an error only finished shards keep it
    alive."""
    folder = out.parent / f".{out.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None
    busy = DataError(f"{folder}: another process is preparing this data set; wait for it to end")
    with exclusive(folder / "lock", busy):
        try:
            yield folder
        except BaseException as error:
            _remove(folder.glob(".*.tmp"))
            if not (folder / JOURNAL).exists():
                shutil.rmtree(folder, ignore_errors=True)
                kept = ""
            else:
                kept = f" (finished shards are kept in {folder}: the same command goes on from there)"
            if isinstance(error, OSError):
                raise DataError(
                    f"{out}: cannot be written ({error}); make room or choose another --out{kept}"
                ) from None
            if isinstance(error, GptlabError) and kept:
                raise DataError(f"{error}{kept}") from None
            if kept:
                say(f"stopped{kept}")
            raise


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _finish(folder: Path, out: Path, manifest: Manifest) -> None:
    """Make the working folder the data set."""
    write_atomic(folder / MANIFEST, manifest.to_json())
    (folder / JOURNAL).unlink(missing_ok=True)
    (folder / "lock").unlink(missing_ok=True)
    old = out.with_name(f".{out.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        os.replace(out, old)
    os.replace(folder, out)
    fsync_directory(out.parent)
    shutil.rmtree(old, ignore_errors=True)


class _Job:
    """One run over the passes: reads, hands out, takes back, writes, journals."""

    def __init__(
        self,
        folder: Path,
        passes: list[Pass],
        tokenizer: Tokenizer,
        saved: Path | None,
        reading: Reading,
        shard_size: int,
        num_shards: int | None,
        limit_bytes: int | None,
        workers: int,
    ) -> None:
        self.folder, self.passes, self.reading = folder, passes, reading
        self.tokenizer, self.saved = tokenizer, saved
        self.shard_size, self.num_shards, self.limit_bytes, self.workers = (
            shard_size,
            num_shards,
            limit_bytes,
            workers,
        )
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.state = State()
        self.writer: ShardWriter | None = None
        self.writing: Split = "train"
        self.fingerprint = ""
        self.after: tuple[int, int, int, Split | None] | None = None  # counts at the end of the last block

    def run(self, fingerprint: str) -> None:
        """Write all shards; `state.splits` tells them afterwards. Raises DataError as `prepare` does."""
        self.fingerprint = fingerprint
        resumed = self._resume()
        if not (self.folder / "tokenizer").is_dir():
            self._save_tokenizer(self.folder / "tokenizer")
        started = time.monotonic()
        done = sum(entry.bytes for entry in self.state.splits.values())
        weights = [total_size(one.sources, self.reading) for one in self.passes]
        known = [weight for weight in weights if weight is not None]
        try:
            with progress() as bar, _workers(self.workers, self.folder / "tokenizer", self.reading) as submit:
                total = sum(known) if len(known) == len(weights) and self.limit_bytes is None else None
                task = bar.add_task("tokenizing", total=total, completed=resumed if total else 0)
                for number in range(self.state.number, len(self.passes)):
                    self._walk(number, submit, bar, task)
        except BaseException:
            if self.writer is not None:
                self.writer.discard()
            raise
        self._check_not_empty()
        self._report(time.monotonic() - started, done)

    def _report(self, seconds: float, done: int) -> None:
        from gptlab.config.numbers import format_count  # its package is slow to import: kept out of the workers

        text = sum(entry.bytes for entry in self.state.splits.values())
        tokens = sum(entry.tokens for entry in self.state.splits.values())
        say(
            f"{text / 1e6:.1f} MB of text, {format_count(tokens)} tokens, {text / max(1, tokens):.3f}"
            f" bytes a token;"
            f" {(text - done) / 1e6 / max(seconds, 1e-9):.1f} MB/s with {self.workers} worker(s)"
        )

    def _save_tokenizer(self, folder: Path) -> None:
        with atomic_folder(folder) as aside:
            if self.saved is not None:
                shutil.copytree(self.saved, aside, dirs_exist_ok=True)
            else:
                self.tokenizer.save(aside)

    def _check_not_empty(self) -> None:
        for one in self.passes:
            names = ", ".join(names_of(one.sources, 3))
            for split in {one.split, *(["validation"] if self._divides(one) else [])}:
                if split not in self.state.splits:
                    (self.folder / JOURNAL).unlink(missing_ok=True)  # going on from it would end here again
                    raise DataError(f"{names}: no text for the {split} split; give more or other input")

    @staticmethod
    def _divides(one: Pass) -> bool:
        return one.validation_documents_from is not None or one.validation_tokens is not None

    def _resume(self) -> int:
        """Take up the journal of an earlier run, or clear the folder. Bytes of text that are done already."""
        journal = self._read_journal()
        if journal is None:
            _remove(path for path in self.folder.iterdir() if path.name != "lock")
            return 0
        _remove(self.folder.glob(".*.tmp"))
        self.state = journal
        shards = [shard for entry in journal.splits.values() for shard in entry.shards]
        done = sum(entry.bytes for entry in journal.splits.values())
        say(f"going on after {len(shards)} finished shard(s), {done / 1e6:.1f} MB of text")
        return done

    def _read_journal(self) -> State | None:
        try:
            content = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{self.folder / JOURNAL}: is damaged ({error}); remove the folder {self.folder}") from None
        if content.pop("fingerprint") != self.fingerprint:
            say(f"{self.folder}: other inputs or options than last time; starting over")
            return None
        splits = {
            name: SplitEntry(**{**entry, "shards": [ShardEntry(**shard) for shard in entry["shards"]]})
            for name, entry in content.pop("splits").items()
        }
        for entry in splits.values():
            for shard in entry.shards:
                checked_shard(self.folder, shard)
        cursor = content.pop("cursor")
        return State(cursor=tuple(cursor) if cursor else None, splits=splits, **content)

    def _walk(self, number: int, submit: Callable[[Block], Future[Encoded]], bar: Progress, task: TaskID) -> None:
        """One pass: a window of blocks is out with the workers, their results are written in order."""
        if number != self.state.number:
            self.state = State(number, splits=self.state.splits)
        self.after = None
        blocks = read_blocks(self.passes[number].sources, self.reading, self.state.cursor)
        window: collections.deque[tuple[Block, Future[Encoded]]] = collections.deque()
        more = True
        try:
            while more or window:
                while more and len(window) < self.workers * _BLOCKS_PER_WORKER:
                    block = next(blocks, None)
                    if block is None:
                        more = False
                    else:
                        window.append((block, submit(block)))
                if window:
                    block, future = window.popleft()
                    finished = self._take(number, block, future.result())
                    bar.advance(task, block.weight)
                    if finished:
                        break
        except BrokenProcessPool:
            raise DataError(
                "a tokenizing process died, probably for want of memory; the same command goes on with fewer --workers"
            ) from None
        finally:
            for _, future in window:
                future.cancel()
        self._close_shard()

    def _take(self, number: int, block: Block, encoded: Encoded) -> bool:
        """Write a block's ids; whether the pass is complete (a limit is reached)."""
        one, state = self.passes[number], self.state
        if self.after is not None:  # the block before is done: what was counted in it holds from here on
            state.documents, state.bytes, state.tokens, state.split = self.after
            state.skip = 0
        state.cursor = block.cursor
        pieces = _Pieces(encoded, state.skip)
        switch, first, second = self._route(one, pieces)
        stop, complete = self._stop(one, pieces, switch, first, second)
        self._write(first, pieces, 0, min(switch, stop))
        self._write(second, pieces, switch, stop)
        self.after = (
            state.documents + int(encoded.begins.sum()),
            state.bytes + int(encoded.bytes.sum()),
            state.tokens + len(encoded.ids),
            second if switch < len(pieces.ends) else first,
        )
        return complete

    def _route(self, one: Pass, pieces: _Pieces) -> tuple[int, Split, Split]:
        """Where in a block the split changes (its end: nowhere), the split before and the one after."""
        n = len(pieces.ends)
        if one.validation_documents_from is not None:
            numbers = self.state.documents - 1 + np.cumsum(pieces.begins)
            return int(np.searchsorted(numbers, one.validation_documents_from)), "train", "validation"
        if one.validation_tokens is not None:
            if self.state.split == "train":
                return n, "train", "train"
            held = self.state.tokens + pieces.ends
            later = self.state.documents + np.cumsum(pieces.begins) > 1  # the first document always goes in
            over = np.flatnonzero(pieces.begins & later & (held > one.validation_tokens))
            return int(over[0]) if over.size else n, "validation", "train"
        return n, one.split, one.split

    def _stop(self, one: Pass, pieces: _Pieces, switch: int, first: Split, second: Split) -> tuple[int, bool]:
        """Number of pieces of a block that are wanted, and whether a limit says that the pass ends there."""
        n = len(pieces.ends)
        stop = n + 1
        if one.split == "train" and self.limit_bytes is not None:
            seen = self.state.bytes + np.cumsum(pieces.bytes)
            stop = min(stop, int(np.searchsorted(seen, self.limit_bytes)) + 1)
        if one.split == "train" and self.num_shards is not None:
            fresh = np.where((np.arange(n) < switch) == (first == "train"), pieces.fresh, 0)
            held = self._held("train") + np.cumsum(fresh)
            over = np.flatnonzero((held > self.num_shards * self.shard_size) & (fresh > 0))
            if over.size and held[over[0]] == fresh[over[0]]:
                raise DataError(
                    f"--num-shards {self.num_shards} of --shard-size {self.shard_size} cannot hold the first document"
                    f" ({held[over[0]]} tokens or more); make shards larger"
                )
            stop = min(stop, int(over[0]) if over.size else stop)
        return (stop, True) if stop <= n else (n, False)

    def _held(self, split: Split) -> int:
        """Tokens of a split that are written by now."""
        finished = self.state.splits[split].tokens if split in self.state.splits else 0
        return finished + (self.writer.tokens if self.writer is not None and self.writing == split else 0)

    def _write(self, split: Split, pieces: _Pieces, start: int, stop: int) -> None:
        """Write pieces `start` … `stop - 1` of a block, closing shards as they fill up."""
        if stop <= start:
            return
        position = max(int(pieces.starts[start]), self.state.skip)
        end = int(pieces.ends[stop - 1])
        if position >= end:
            return
        if self.writer is not None and self.writing != split:
            self._close_shard()
        while position < end:
            writer = self.writer or self._open_shard(split)
            part = pieces.ids[position : min(end, position + self.shard_size - writer.tokens)]
            writer.append(part)
            entry = self.state.splits[split]
            counted = slice(*np.searchsorted(pieces.starts, (position, position + len(part))))
            entry.documents += int(pieces.begins[counted].sum())
            entry.bytes += int(pieces.bytes[counted].sum())
            position += len(part)
            self.state.skip = position
            if writer.tokens == self.shard_size:
                self._close_shard()

    def _open_shard(self, split: Split) -> ShardWriter:
        entry = self.state.splits.setdefault(split, SplitEntry())
        number = len(entry.shards) + (1 if split == "train" else 0)  # as modded-nanogpt counts its FineWeb files
        self.writer, self.writing = ShardWriter(self.folder / f"{split}_{number:06d}.bin", self.dtype), split
        return self.writer

    def _close_shard(self) -> None:
        """Put the shard on disk, then say so in the journal: a kill between the two only repeats the
        shard."""
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        entry = self.state.splits[self.writing]
        entry.shards.append(ShardEntry(writer.path.name, writer.tokens, writer.close()))
        entry.tokens += writer.tokens
        journal = {"fingerprint": self.fingerprint, **asdict(self.state)}
        write_atomic(self.folder / JOURNAL, json.dumps(journal, indent=1) + "\n")


class _Pieces:
    """The documents and pieces of a block, of which the first `skip` ids are in finished shards."""

    def __init__(self, encoded: Encoded, skip: int) -> None:
        self.ids, self.begins, self.bytes = encoded.ids, encoded.begins, encoded.bytes
        self.ends = np.cumsum(encoded.lengths)
        self.starts = self.ends - encoded.lengths
        self.fresh = np.maximum(self.ends - np.maximum(self.starts, skip), 0)  # ids yet to be written


_worker: tuple[Tokenizer, Reading] | None = None


def _start_worker(tokenizer: Path, reading: Reading) -> None:
    """In a new worker process: load the tokenizer, leave Ctrl-C to the parent, and die with it."""
    global _worker
    from gptlab.tokenizer import load_tokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = (load_tokenizer(tokenizer), reading)


def _die_with_parent() -> None:
    """A pool's workers wait on a queue that outlives a killed parent: without this they would wait
    forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _encode_in_worker(block: Block) -> Encoded:
    assert _worker is not None
    return encode(block, *_worker)


def encode(block: Block, tokenizer: Tokenizer, reading: Reading) -> Encoded:
    """The ids of a block's documents, each with its separator before it. Raises DataError where it is no
    text."""
    documents = list(block.documents(reading))
    dtype = token_dtype(tokenizer.vocab_size)
    separator = np.array([tokenizer.end_of_text], dtype=dtype)
    texts = tokenizer.encode_documents([document.text for document in documents])
    begins = np.array([not document.continues for document in documents], dtype=np.bool_)
    parts = [part for ids, first in zip(texts, begins, strict=True) for part in ((separator, ids) if first else (ids,))]
    return Encoded(
        ids=np.concatenate(parts, dtype=dtype) if parts else np.empty(0, dtype=dtype),
        lengths=np.array([len(ids) for ids in texts], dtype=np.int64) + begins,
        bytes=np.array([utf8_length(document.text) for document in documents], dtype=np.int64),
        begins=begins,
    )


@contextlib.contextmanager
def _workers(workers: int, tokenizer: Path, reading: Reading) -> Iterator[Callable[[Block], Future[Encoded]]]:
    """Something to give blocks to: a pool of processes, or this one where one is enough."""
    if workers == 1:
        from gptlab.tokenizer import load_tokenizer

        loaded = load_tokenizer(tokenizer)

        def here(block: Block) -> Future[Encoded]:
            future: Future[Encoded] = Future()
            future.set_result(encode(block, loaded, reading))
            return future

        yield here
        return
    # "spawn": a forked child would inherit the locks of whatever threads the caller has (Arrow, BLAS, torch).
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer, reading))
    try:
        yield lambda block: pool.submit(_encode_in_worker, block)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
