"""Text to token shards, in parallel, so that a kill at any moment loses at most the shard being written.

The parent reads blocks (`sources.read_blocks`), worker processes turn each into ids, and the parent takes the results
back in order and writes them. What is written depends on the inputs and options alone, never on the number of workers.
Each document is written as [end of text] + ids: the separator comes first, as in llm.c and modded-nanogpt, and plays
the part of a beginning-of-text token.

Everything happens in a folder beside the target (`.NAME.partial`) that takes the target's place when it is whole. A
journal in it is rewritten after each shard: what is finished, and the cursor of the block where the shard ended. A new
run with the same inputs and options goes on from there; with others it starts over.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.console import say
from gptlab.data.dataset import MANIFEST, Manifest, Split, SplitEntry, TokenDataset, checked_shard
from gptlab.data.preparation.apart import Apart
from gptlab.data.preparation.engines import Engine, SubmittedError
from gptlab.data.preparation.ids import check_ids
from gptlab.data.preparation.overlap import shared_documents
from gptlab.data.preparation.plan import Pass, check_options, plan_fingerprint, plan_passes
from gptlab.data.preparation.screening import load_steps
from gptlab.data.preparation.steps import Questions
from gptlab.data.preparation.unit_files import DoneUnits
from gptlab.data.preparation.units import UNIT_BYTES
from gptlab.data.preparation.writer import JOURNAL, UNITS, DatasetWriter, remove
from gptlab.data.sources.base import Reading, Source
from gptlab.data.sources.resolve import block_bytes_for, names_of, resolve
from gptlab.data.sources.selection import Input
from gptlab.errors import BusyError, DataError, GptlabError, option
from gptlab.files import check_place, exclusive, replace_folder, settle, write_atomic
from gptlab.processes import usable_cores

if TYPE_CHECKING:
    from gptlab.tokenizer import Tokenizer

__all__ = ["Engine", "SubmittedError", "prepare"]


def prepare(
    inputs: Sequence[str | Input],
    out: Path | str,
    *,
    tokenizer: str | Path | Tokenizer,
    validation: Sequence[str | Input] | None = None,
    validation_fraction: float | None = None,
    validation_tokens: int | None = None,
    reading: Reading | None = None,
    shard_size: int = 100_000_000,
    num_shards: int | None = None,
    limit_bytes: int | None = None,
    workers: int | None = None,
    force: bool = False,
    cache: Path | None = None,
    steps: Sequence[Any] = (),
    engine: Engine | None = None,
    questions: Questions | None = None,
    unit_bytes: int = UNIT_BYTES,
) -> Manifest:
    """Tokenize `inputs` into a data set in folder `out`; see `sources.resolve.resolve` for what inputs can be, and
    `Input` for what of one is taken.

    Args:
        tokenizer: name, folder, or a loaded one; it is saved to `out/tokenizer`.
        validation: inputs of the validation split. At most one of these three; with none there is no such
            split.
        validation_fraction: share of the documents, the last ones, for validation; of a single plain text
            its last characters.
        validation_tokens: the first documents, as many as fit in so many tokens, for validation.
        reading: columns, separators and how to take what is no text.
        shard_size: tokens of a shard; only the last of a split is shorter.
        num_shards: stop after so many training shards; documents are whole, so the last may be a little short.
        limit_bytes: stop after the document (or piece of a long one) that reaches this many bytes of the inputs'
            text; `validation` inputs are read whole.
        workers: processes; default: one a CPU core. 1 works in this process.
        force: replace a finished data set in `out`.
        cache: folder of downloads.
        steps: before tokenizing: names, or mappings with `use` and arguments (`preparation.steps`). They change the
            data, so they are part of what `dataset.json` says of it, and so is what each did.
        engine: where the text is encoded in units; None: read and encoded here, in one stream where no step asks
            for units.
        questions: of evaluation tasks, for a step that asks for them.
        unit_bytes: of a unit, about; it changes nothing that is written.

    Returns what it wrote to `out/dataset.json`. Raises DataError for inputs, options and tokenizers that cannot give a
    data set. Finished shards are kept for the next try then; where there is none, nothing is left.
    """
    out, reading = Path(out), reading or Reading()
    check_options(validation, validation_fraction, validation_tokens, shard_size, num_shards, limit_bytes, workers)
    _check_target(out, force)
    block_bytes = block_bytes_for(limit_bytes)
    sources = resolve(inputs, cache=cache, block_bytes=block_bytes)
    checked = resolve(validation, cache=cache) if validation else None
    encoder = _load(tokenizer)
    check_ids((sources, checked or []), reading, encoder, limit_bytes, validation_fraction)
    apart = None
    if engine is not None or steps:
        where = engine or Engine(tasks=workers)
        apart = Apart(where, load_steps(steps), encoder, _saved(tokenizer), reading, questions, unit_bytes)
    limits: dict[str, Any] = {"shard_size": shard_size, "num_shards": num_shards, "limit_bytes": limit_bytes}
    options = {
        **limits,
        "validation_fraction": validation_fraction,
        "validation_tokens": validation_tokens,
        **reading.options(),
        **_selections(inputs, validation or ()),
        **({} if apart is None else apart.options()),
    }
    planned = (sources, checked, validation_fraction, validation_tokens, reading, limit_bytes)
    plan = functools.partial(plan_passes, *planned)
    passes = plan() if apart is None else []
    with _working_folder(out, force) as folder:
        done = None
        if apart is not None:
            passes, done = _encode_apart(apart, folder, sources, plan, limit_bytes)
        saved, processes = _saved(tokenizer), workers or usable_cores()
        writer = DatasetWriter(folder, passes, encoder, saved, reading, **limits, workers=processes, done=done)
        writer.run(plan_fingerprint(passes, encoder, options | ({} if done is None else {"units": done.digest})))
        return _finish(folder, out, writer, names_of([*sources, *(checked or [])]), options, apart)


def _encode_apart(
    apart: Apart, folder: Path, sources: list[Source], plan: Callable[..., list[Pass]], limit_bytes: int | None
) -> tuple[list[Pass], DoneUnits]:
    """The passes, and their text encoded. A share for validation is one of the documents that the steps leave."""
    done: list[DoneUnits] = []

    def count() -> int:
        done.append(apart.encoded(folder, [sources]))
        return done[0].count(limit_bytes)

    passes = plan(count, whole=bool(apart.steps))
    return passes, done[0] if done else apart.encoded(folder, [one.sources for one in passes])


def _selections(inputs: Sequence[str | Input], validation: Sequence[str | Input]) -> dict[str, Any]:
    """What `dataset.json` says of what was taken of the inputs; nothing where that is all."""
    chosen = [each.plain() for each in (*inputs, *validation) if isinstance(each, Input) and not each.is_plain]
    return {"inputs": chosen} if chosen else {}


def _check_target(out: Path, force: bool) -> None:
    check_place(out, option("out"))
    settle(out)
    if not out.exists():
        return
    if not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out}: exists and is no data set, so {option('force', True)} does not replace it; choose "
            f"another {option('out')}"
        )
    if not force:
        raise DataError(
            f"{out}: exists already; choose another {option('out')}, or replace it with {option('force', True)}"
        )


def _count_shared(folder: Path, splits: dict[str, SplitEntry], end_of_text: int) -> dict[str, int] | None:
    """`Manifest.shared_documents` of finished shards; says so where there are any."""
    if set(splits) != {"train", "validation"}:
        return None

    def opened(split: Split) -> TokenDataset:
        shards = [checked_shard(folder, entry) for entry in splits[split].shards]
        return TokenDataset(folder, split, shards, fingerprint="", end_of_text=end_of_text)

    shared = shared_documents(opened("train"), opened("validation"))
    if shared["validation"]:
        say(
            f"{shared['validation']:,} of {splits['validation'].documents:,} validation documents are training"
            " documents as well: what a run has seen is no measure of what it learned; leave them out of one split"
        )
    return shared


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


@contextlib.contextmanager
def _working_folder(out: Path, force: bool) -> Iterator[Path]:
    """`.NAME.partial` beside `out`, for one process at a time; after an error only finished shards keep it alive.

    Whether `out` may be written is asked again under the lock: another process may have finished it meanwhile.
    """
    folder = out.parent / f".{out.name}.partial"
    missing = [parent for parent in out.parents if not parent.exists()]
    busy = BusyError(f"{out}: another process is preparing this data set; wait for it to end")
    try:
        with _errors_of_the_disk(out), exclusive(out.parent / f".{out.name}.lock", busy):
            _check_target(out, force)
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            except BaseException as error:
                remove(folder.glob(".*.tmp"))
                if isinstance(error, SubmittedError):
                    raise
                if not (folder / JOURNAL).exists() and not any((folder / UNITS).glob("unit_*.npz")):
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                kept = f"what is finished is kept in {folder}: the same command goes on from there"
                if isinstance(error, GptlabError | OSError):
                    raise DataError(f"{_told(error, out)} ({kept})") from None
                say(f"stopped ({kept})")
                raise
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):  # not empty, or never made
                parent.rmdir()


@contextlib.contextmanager
def _errors_of_the_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(_told(error, out)) from None


def _told(error: GptlabError | OSError, out: Path) -> str:
    if isinstance(error, GptlabError):
        return str(error)
    return f"{out}: cannot be written ({error.strerror or error}); make room or choose another {option('out')}"


def _finish(
    folder: Path, out: Path, writer: DatasetWriter, names: list[str], options: dict[str, Any], apart: Apart | None
) -> Manifest:
    """Make the working folder the data set."""
    encoder, splits = writer.tokenizer, writer.state.splits
    manifest = Manifest(
        tokenizer={"name": encoder.name, "kind": encoder.kind, "hash": encoder.hash},
        vocab_size=encoder.vocab_size,
        end_of_text=encoder.end_of_text,
        splits=dict(sorted(splits.items())),
        shared_documents=_count_shared(folder, splits, encoder.end_of_text),
        sources=names,
        options=options if apart is None else apart.reported(options),
    )
    shutil.rmtree(folder / UNITS, ignore_errors=True)
    write_atomic(folder / MANIFEST, manifest.to_json())
    (folder / JOURNAL).unlink(missing_ok=True)
    replace_folder(folder, out)
    return manifest
