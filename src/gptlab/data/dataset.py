"""Token data sets on disk: what a folder of shards holds, and reading any run of its tokens.

A folder that gptlab prepared describes itself in `dataset.json`. Folders of others are read as they are:
nanoGPT's `train.bin`/`val.bin`, llm.c's and modded-nanogpt's `*_train_*.bin`/`*_val_*.bin`; what such files
do not say (vocabulary size, end-of-text id) the caller may.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from typing_extensions import TypedDict

from gptlab.console import progress
from gptlab.data.shards import Shard, read_header
from gptlab.errors import DataError, option
from gptlab.files import not_a_folder, settle
from gptlab.seal import sealed_json

FORMAT = "gptlab-tokens"
FORMAT_VERSION = 1
MANIFEST = "dataset.json"

Split = Literal["train", "validation"]
Count = Annotated[int, Ge(0)]


class MadeWith(TypedDict):
    """The tokenizer of a data set."""

    name: str
    kind: str
    hash: str


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest knows it."""

    file: str
    tokens: Count
    sha256: str


@dataclass
class SplitEntry:
    """A split as the manifest knows it. `bytes` counts the UTF-8 bytes of the text, separators left out."""

    documents: Count = 0
    tokens: Count = 0
    bytes: Count = 0
    shards: list[ShardEntry] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """`dataset.json`: tokenizer, vocabulary, splits with their shards, and how the data was made.

    `shared_documents`: how many documents of each split are a document of the other, by split; None where that is not
    known (gptlab 0.3 did not count them), or there is one split.
    """

    tokenizer: MadeWith
    vocab_size: Count
    end_of_text: Count
    splits: dict[str, SplitEntry]
    sources: list[str]
    options: dict[str, Any]
    shared_documents: dict[str, Count] | None = None

    def to_json(self) -> str:
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        return sealed_json({**head, **asdict(self)}, indent=2)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder/dataset.json`. Raises DataError where it is damaged or of a later format."""
        from gptlab.config.jsonfile import (  # its package is slow to import: kept out of the workers
            parse_json,
            read_json,
        )

        path = folder / MANIFEST
        try:
            content = read_json(path, dict[str, Any], mend="prepare it again", error=DataError)
            head = content.pop("format", None), content.pop("format_version", None)
            if head != (FORMAT, FORMAT_VERSION):
                raise DataError(
                    f"{path}: format {head[0]!r} version {head[1]!r}; this gptlab reads {FORMAT!r} version "
                    f"{FORMAT_VERSION}, prepare the data again"
                )
            return parse_json(json.dumps(content), cls)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: is no gptlab data set description ({error}); prepare it again") from None


def load_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None for a folder of shards made by other programs.

    Raises DataError where the folder is missing.
    """
    settle(folder)
    if not folder.is_dir():
        from gptlab.data.preset import preset_names  # here alone: it needs all readers of text

        what = not_a_folder(folder, "a data set", MANIFEST)
        if not folder.exists() and folder.name in preset_names():
            command = f"gptlab data prepare {folder.name} --out {folder}"
            default = Path("data") / folder.name
            raise DataError(f"{what}; make it with: {command.partition(' --')[0] if folder == default else command}")
        place = "FOLDER" if folder.exists() else str(folder)
        raise DataError(f"{what}; make one with: gptlab data prepare --input FILES --tokenizer NAME --out {place}")
    return Manifest.load(folder) if (folder / MANIFEST).is_file() else None


class TokenDataset:
    """One split of a data set: its shards, concatenated, as one array of `tokens` ids.

    Attributes:
        path, split: where it is.
        shards: the files, in order.
        tokens: ids in all of them.
        vocab_size, end_of_text, tokenizer_hash: what the ids mean; None where neither files nor caller say.
        documents, bytes: documents, and UTF-8 bytes of their text; None for files of others.
        fingerprint: hex digest of what decides the ids: checksums, or sizes and both ends for files of
            others.
    """

    def __init__(
        self,
        path: Path,
        split: Split,
        shards: list[Shard],
        *,
        fingerprint: str,
        vocab_size: int | None = None,
        end_of_text: int | None = None,
        tokenizer_hash: str | None = None,
        documents: int | None = None,
        bytes: int | None = None,
    ) -> None:
        self.path, self.split, self.shards, self.fingerprint = path, split, shards, fingerprint
        self.vocab_size, self.end_of_text, self.tokenizer_hash = vocab_size, end_of_text, tokenizer_hash
        self.documents, self.bytes = documents, bytes
        self._ends = np.cumsum([shard.tokens for shard in shards])
        self._maps: list[NDArray[Any] | None] = [None] * len(shards)
        self.tokens = int(self._ends[-1])
        self.dtype = np.result_type(*{shard.dtype for shard in shards})

    @classmethod
    def open(
        cls,
        path: Path | str,
        split: Split,
        *,
        tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
        end_of_text: int | None = None,
    ) -> Self:
        """Open a split of the data set in folder `path`, checking every shard's header against its size.

        Args:
            tokenizer_hash: the tokenizer that the run uses; a data set made with another is refused.
            vocab_size, end_of_text: for files that do not say; a data set that says otherwise is refused.

        Raises DataError where the folder, the split or a shard is missing or damaged, or does not fit.
        """
        path = Path(path)
        manifest = load_manifest(path)
        if manifest is None:
            shards = [read_header(file) for file in _external_files(path, split)]
            fingerprint = hashlib.sha256(repr([_identify_shard(shard) for shard in shards]).encode()).hexdigest()
            return cls(path, split, shards, fingerprint=fingerprint, vocab_size=vocab_size, end_of_text=end_of_text)
        entry = manifest.splits.get(split)
        if entry is None or not entry.shards:
            raise DataError(
                f"{path}: has no {split} split; prepare it again with"
                + (
                    f" {option('validation', 'FILES')} or {option('validation_fraction', 0.1)}"
                    if split == "validation"
                    else " more text"
                )
            )
        _check_fits(path, manifest, tokenizer_hash, vocab_size, end_of_text)
        return cls(
            path,
            split,
            [checked_shard(path, shard) for shard in entry.shards],
            fingerprint=hashlib.sha256("".join(shard.sha256 for shard in entry.shards).encode()).hexdigest(),
            vocab_size=manifest.vocab_size,
            end_of_text=manifest.end_of_text,
            tokenizer_hash=manifest.tokenizer["hash"],
            documents=entry.documents,
            bytes=entry.bytes,
        )

    def targets(self, first: int | None = None) -> int:
        """How many tokens are predicted where the first so many are asked for (None: all): not the very first."""
        there = max(0, self.tokens - 1)
        return there if first is None else min(first, there)

    def read(self, start: int, length: int) -> NDArray[Any]:
        """A copy of ids `start` … `start + length - 1`, across shards: (length,).

        Raises IndexError outside of [0, tokens).
        """
        ids = np.empty(length, dtype=self.dtype)
        self.read_into(start, ids)
        return ids

    def read_into(self, start: int, ids: NDArray[Any]) -> None:
        """Fill `ids`, (length,), with the tokens from `start` on."""
        if start < 0 or start + len(ids) > self.tokens:
            raise IndexError(f"tokens {start}:{start + len(ids)} of a data set of {self.tokens}")
        number, done = self.shard_of(start), 0
        while done < len(ids):
            content = self._map(number)
            first = start + done - (int(self._ends[number]) - len(content))
            part = content[first : first + len(ids) - done]
            ids[done : done + len(part)] = part
            done += len(part)
            number += 1

    def shard_of(self, position: int) -> int:
        """Number of the shard that holds token `position`."""
        return int(np.searchsorted(self._ends, position, side="right"))

    def max_id(self) -> int:
        """The largest id in the split (reads all of it)."""
        step = 1 << 24
        largest = 0
        for number in range(len(self.shards)):
            content = self._map(number)
            largest = max(largest, *(int(content[i : i + step].max()) for i in range(0, len(content), step)))
        return largest

    def _map(self, number: int) -> NDArray[Any]:
        content = self._maps[number]
        if content is None:
            content = self._maps[number] = self.shards[number].map()
        return content


def checked_shard(folder: Path, entry: ShardEntry) -> Shard:
    """The shard that the manifest's `entry` names. Raises DataError where the file says something else."""
    if not isinstance(entry.file, str) or entry.file in ("", ".", "..") or {"/", "\\"} & set(entry.file):
        # a manifest comes with downloaded data; it must not lead to files elsewhere
        raise DataError(f"{folder / MANIFEST}: names {entry.file!r}, which is no file of this folder; prepare it again")
    shard = read_header(folder / entry.file)
    if shard.tokens != entry.tokens:
        raise DataError(
            f"{shard.path}: {shard.tokens} tokens where {MANIFEST} counts {entry.tokens}; prepare the data set again"
        )
    return shard


def _check_fits(
    path: Path,
    manifest: Manifest,
    tokenizer_hash: str | None,
    vocab_size: int | None,
    end_of_text: int | None,
) -> None:
    made_with = manifest.tokenizer
    if tokenizer_hash is not None and tokenizer_hash != made_with["hash"]:
        raise DataError(
            f"{path}: was made with tokenizer {made_with['name']} ({made_with['hash'][:12]}), the run uses another "
            f"({tokenizer_hash[:12]}); use {path / 'tokenizer'} or prepare the data again"
        )
    for name, asked, found in (
        ("vocab_size", vocab_size, manifest.vocab_size),
        ("end_of_text", end_of_text, manifest.end_of_text),
    ):
        if asked is not None and asked != found:
            raise DataError(f"{path}: {name} is {found} here, the run says {asked}; leave it out or mend it")


def external_splits(folder: Path) -> dict[Split, list[Path]]:
    """The shards of each split in a folder without `dataset.json`: those with `train` and with `val` in their names."""
    files = sorted(folder.glob("*.bin"))
    train = [file for file in files if "train" in file.stem]
    return {
        "train": train,
        "validation": [file for file in files if "val" in file.stem and file not in train],
    }


def _external_files(folder: Path, split: Split) -> list[Path]:
    found = external_splits(folder)[split]
    if not found:
        word = "train" if split == "train" else "val"
        raise DataError(
            f"{folder}: neither {MANIFEST} nor *{word}*.bin for the {split} split; make it with: gptlab data prepare"
        )
    return found


def _identify_shard(shard: Shard) -> tuple[str, int, str]:
    """Name, size and digest of the first and last 64 KiB: tells files apart without reading gigabytes."""
    size = shard.path.stat().st_size
    with open(shard.path, "rb") as file:
        digest = hashlib.sha256(file.read(1 << 16))
        file.seek(max(0, size - (1 << 16)))
        digest.update(file.read())
    return shard.path.name, size, digest.hexdigest()


@dataclass(frozen=True)
class Info:
    """What `gptlab data info` shows: the manifest where there is one, the splits, and how each begins."""

    path: Path
    manifest: Manifest | None
    splits: dict[Split, TokenDataset]

    def beginning(self, split: Split, tokens: int = 48) -> list[int]:
        """The first ids of a split."""
        dataset = self.splits[split]
        return [int(token) for token in dataset.read(0, min(tokens, dataset.tokens))]


def info(path: Path | str) -> Info:
    """Describe the data set in folder `path`. Raises DataError where it cannot be read."""
    path = Path(path)
    manifest = load_manifest(path)
    names: list[Split] = ["train", "validation"]
    if manifest is not None:
        names = [name for name in names if name in manifest.splits]
    else:
        found = external_splits(path)
        names = [name for name in names if found[name]] or ["train"]
    return Info(path, manifest, {name: TokenDataset.open(path, name) for name in names})


def verify(path: Path | str) -> Info:
    """Read every byte of the data set in folder `path` and compare it with `dataset.json`.

    Checks headers, sizes, SHA-256 of every shard, that every id is in the vocabulary, and the number of documents.
    Files of others carry no checksum: their headers and sizes are checked, and that they can be read.

    Raises DataError naming the first shard that is not as it was.
    """
    described = info(path)
    total = sum(shard.path.stat().st_size for split in described.splits.values() for shard in split.shards)
    with progress() as bar:
        task = bar.add_task("verifying", total=total)
        for name, dataset in described.splits.items():
            entries = described.manifest.splits[name].shards if described.manifest else [None] * len(dataset.shards)
            separators = 0
            for shard, entry in zip(dataset.shards, entries, strict=True):
                separators += _verify_shard(shard, entry, dataset.vocab_size, dataset.end_of_text)
                bar.advance(task, shard.path.stat().st_size)
            if dataset.documents is not None and separators != dataset.documents:
                raise DataError(
                    f"{path}: {separators} documents in the {name} split where {MANIFEST} counts {dataset.documents}"
                )
    return described


def _verify_shard(shard: Shard, entry: ShardEntry | None, vocab_size: int | None, end_of_text: int | None) -> int:
    """Check one shard in one pass over it; the number of end-of-text ids in it."""
    digest = hashlib.sha256()
    separators = largest = 0
    with open(shard.path, "rb") as file:
        digest.update(file.read(shard.offset))
        while content := file.read(1 << 23):
            digest.update(content)
            ids = np.frombuffer(content, dtype=shard.dtype)
            largest = max(largest, int(ids.max()))
            separators += int(np.count_nonzero(ids == end_of_text)) if end_of_text is not None else 0
    if entry is not None and digest.hexdigest() != entry.sha256:
        raise DataError(
            f"{shard.path}: its SHA-256 is not the one in {MANIFEST}; the shard is damaged, prepare it again"
        )
    if vocab_size is not None and largest >= vocab_size:
        raise DataError(f"{shard.path}: holds id {largest} where the vocabulary ends at {vocab_size - 1}")
    return separators
