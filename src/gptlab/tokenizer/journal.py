"""What a training has found so far, on disk, so that a training that was stopped goes on.

In a folder of its own: `counts.npz`, the pre-tokens of the text that was read, and `merges.json`, the merges that were
made of them. Both are written aside and renamed, and name the training that they are of: its text, its pattern, what it
grows. The size of the vocabulary is no part of that, since merges come in the same order for any.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.console import say
from gptlab.errors import BusyError, GptlabError
from gptlab.files import exclusive, write_atomic
from gptlab.seal import sealed_json, unsealed
from gptlab.tokenizer.counting import TextCounts

_COUNTS, _MERGES = "counts.npz", "merges.json"
_VERSION = 1  # of both files, and of what decides counts and merges
_SAVE_SECONDS = 5.0  # between two writings; more where one takes long
_SHARE = 20  # of the time at most a twentieth is spent writing


class Journal:
    """The counts and merges of one training; in `folder`, or with None in memory alone.

    `identity`: of the text, as JSON values: what changes when it does.
    """

    def __init__(self, folder: Path | None = None, identity: Any = None) -> None:
        self.counts = TextCounts()
        self.merges: list[tuple[int, int]] = []
        self._folder, self._identity, self._of = folder, identity, ""
        self._due = time.monotonic() + _SAVE_SECONDS
        self._saved = (0, False)  # documents that the counts on disk are of, and whether those are all

    def begin(self, *decides: Any) -> None:
        """Take up what is on disk of a training on this text that has the same `decides`; say what, or why nothing."""
        given = json.dumps([_VERSION, self._identity, decides], sort_keys=True)
        self._of = hashlib.sha256(given.encode()).hexdigest()
        if self._folder is None or not self.is_kept:
            return
        try:
            counts = self._read_counts(self._folder / _COUNTS)
            merges = self._read_merges(self._folder / _MERGES) if counts and counts.is_whole else []
        except _DAMAGE as error:
            say(f"{self._folder}: is damaged, so training starts over ({' '.join(str(error).split())})")
            counts, merges = None, []
        else:
            if counts is None:
                say(f"{self._folder}: is of another text, pattern or base, so training starts over")
        if counts is None:
            shutil.rmtree(self._folder)
            return
        self.counts, self.merges, self._saved = counts, merges, (counts.documents, counts.is_whole)
        done = f"{len(merges):,} merges are made" if counts.is_whole else "the rest of the text is to be counted"
        say(f"going on where it was stopped: {counts.bytes / 1e6:,.1f} MB of text are counted, {done}")

    @property
    def is_kept(self) -> bool:
        """Whether something is on disk."""
        return self._folder is not None and (self._folder / _COUNTS).is_file()

    def keep(self, *, at_once: bool = False) -> None:
        """Write what has been found, where the last time is long enough ago, or `at_once`."""
        if self._folder is None or self.counts.is_torn or (time.monotonic() < self._due and not at_once):
            return
        begun = time.monotonic()
        if self._saved != (reached := (self.counts.documents, self.counts.is_whole)):
            write_atomic(self._folder / _COUNTS, self._counts_file())
            self._saved = reached
        if self.merges:
            write_atomic(self._folder / _MERGES, sealed_json({"of": self._of, "merges": self.merges}, indent=None))
        ended = time.monotonic()
        self._due = ended + max(_SAVE_SECONDS, _SHARE * (ended - begun))

    def _counts_file(self) -> bytes:
        words = [word.encode("utf-8") for word in self.counts.counts]
        total = len(words)
        file = io.BytesIO()
        np.savez(
            file,
            of=np.frombuffer(self._of.encode(), dtype=np.uint8),
            read=np.array([self.counts.documents, self.counts.bytes, self.counts.is_whole], dtype=np.int64),
            text=np.frombuffer(b"".join(words), dtype=np.uint8),
            lengths=np.fromiter(map(len, words), dtype=np.int64, count=total),
            counts=np.fromiter(self.counts.counts.values(), dtype=np.int64, count=total),
        )
        return file.getvalue()

    def _read_counts(self, path: Path) -> TextCounts | None:
        """What `path` holds; None where it is of another training. Raises one of `_DAMAGE`."""
        with np.load(path, allow_pickle=False) as file:
            if file["of"].tobytes().decode("utf-8", errors="replace") != self._of:
                return None
            documents, size, whole = file["read"].tolist()
            text, lengths, counts = file["text"].tobytes(), file["lengths"], file["counts"]
        ends = np.cumsum(lengths).tolist()
        if len(lengths) != len(counts) or (ends or [0])[-1] != len(text) or (lengths < 1).any() or (counts < 1).any():
            raise ValueError("its counts do not fit together")
        words = [text[end - length : end].decode("utf-8") for end, length in zip(ends, lengths.tolist(), strict=True)]
        return TextCounts(Counter(dict(zip(words, counts.tolist(), strict=True))), documents, size, bool(whole))

    def _read_merges(self, path: Path) -> list[tuple[int, int]]:
        if not path.is_file():
            return []
        found = json.loads(path.read_text(encoding="utf-8"))
        if not unsealed(found):
            raise ValueError("it has no seal")
        return [(left, right) for left, right in found["merges"]] if found["of"] == self._of else []


_DAMAGE = (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile)


@contextlib.contextmanager
def kept_journal(folder: Path, identity: Any, what: str) -> Iterator[Journal]:
    """A journal in `folder`, for one process at a time: what is in it stays where training is stopped, and goes where
    it ends. `what`: the tokenizer's name.

    Raises BusyError where another process is training it.
    """
    journal = Journal(folder, identity)
    busy = BusyError(f"{what}: another process is training this tokenizer; wait for it to end")
    is_new = not folder.parent.exists()
    try:
        with exclusive(folder.with_suffix(".lock"), busy):
            try:
                yield journal
            except BaseException as error:
                if not isinstance(error, GptlabError | OSError):
                    journal.keep(at_once=True)
                    if journal.is_kept:
                        say(f"stopped (what was found is kept in {folder}: the same command goes on from there)")
                raise
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is wanted by now
                folder.parent.rmdir()
