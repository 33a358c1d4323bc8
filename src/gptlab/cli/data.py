"""`gptlab data …`: prepare, info, verify, presets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptlab.cli.options import SpecialTokens, check_errors, parse_count
from gptlab.console import Place, output, place, say
from gptlab.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gptlab.config import RunConfig
    from gptlab.data.preparation import Engine
    from gptlab.data.preset import Preset
    from gptlab.data.sources import Input, Reading
    from gptlab.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Turn text into token shards, and check them.")

_SHARD = 100_000_000  # tokens, by default
_TOKENIZER_BYTES = 2 * 10**9  # of text that a preset's own tokenizer is trained on: more changes no merge to speak of

Without = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Leave out documents that hold this; repeatable.")
]
MinLength = Annotated[int, typer.Option(min=0, help="Leave out documents of fewer characters.")]
Keep = Annotated[
    str | None, typer.Option(metavar="./FILE.py:NAME", help="Leave out documents of which this function says False.")
]
IdsColumn = Annotated[str | None, typer.Option(help="Column or field that holds token ids, in place of text.")]
IdsRows = Annotated[
    str | None, typer.Option(metavar="documents|packed", help="Its rows: a document each, or parts of one packed run.")
]
Steps = Annotated[
    list[str] | None,
    typer.Option("--step", metavar="NAME|'{use: NAME, …}'", help="A step before tokenizing, like MinHash; repeatable."),
]
EngineName = Annotated[
    str | None, typer.Option("--engine", metavar="local|ray|slurm", help="Where text is tokenized, in units.")
]
Tasks = Annotated[int | None, typer.Option(help="Of the engine: processes, or tasks of the cluster.")]
Partition = Annotated[str | None, typer.Option(help="Of Slurm.")]
TimeLimit = Annotated[str, typer.Option(help="Of each of Slurm's tasks.")]
TaskData = Annotated[Path | None, typer.Option(help="Folder of evaluation questions, for the step Decontaminate.")]
Errors = Annotated[str, typer.Option(help="Invalid text: 'strict' refuses it, 'replace' puts U+FFFD.")]
DocumentStart = Annotated[
    str | None, typer.Option(help="Regular expression of rows, or lines of a text, that begin a document.")
]
ValidationTokens = Annotated[
    str | None, typer.Option(help="The first documents, as many as fit in so many tokens, for validation.")
]
ValidationFraction = Annotated[
    float | None, typer.Option(help="Share for validation: the last documents, or a single text's end.")
]


@app.command()
def prepare(
    preset: Annotated[
        str | None, typer.Argument(help="A known data set (see `gptlab data presets`), or a YAML file of your own.")
    ] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(help="File, folder, glob, URL, hf://NAME[:CONFIG][@SPLIT], text:WORDS, - for a pipe; repeatable."),
    ] = None,
    validation: Annotated[list[str] | None, typer.Option(help="The same, for the validation split.")] = None,
    validation_fraction: ValidationFraction = None,
    validation_tokens: ValidationTokens = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer: a name, OpenAI's, the hub's, a folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make; default: data/PRESET.")] = None,
    shard_size: Annotated[str, typer.Option(help="Tokens of a shard.")] = "100M",
    num_shards: Annotated[int | None, typer.Option(help="Stop after so many training shards.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a CPU core.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column or field that holds the text.")] = None,
    ids_column: IdsColumn = None,
    ids_rows: IdsRows = None,
    separator: Annotated[str | None, typer.Option(help="What stands between documents in text files.")] = None,
    document_start: DocumentStart = None,
    errors: Errors = "strict",
    special_tokens: SpecialTokens = None,
    without: Without = None,
    min_length: MinLength = 0,
    keep: Keep = None,
    step: Steps = None,
    task_data: TaskData = None,
    engine: EngineName = None,
    tasks: Tasks = None,
    partition: Partition = None,
    time_limit: TimeLimit = "04:00:00",
    limit_bytes: Annotated[str | None, typer.Option(help="Stop after so much text, like 20M.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a finished data set.")] = False,
) -> None:
    """Tokenize text into shards that training reads; goes on where a killed run stopped."""
    import functools

    from gptlab.data.preset import load_preset
    from gptlab.data.sources.selection import with_filters

    known = load_preset(preset) if preset is not None else None
    if known is None and not input:
        raise DataError("nothing to prepare; name a preset (gptlab data presets) or give files with --input")
    if out is None and preset is None:
        raise DataError("where to? give a folder with --out")
    filters = {"without": tuple(without or ()), "min_length": min_length, "keep": keep}
    inputs = with_filters(input or (known.inputs if known else []), **filters)
    tokens = parse_count(validation_tokens, "--validation-tokens")
    fraction = validation_fraction
    checked: Sequence[str | Input] | None = validation
    if known is not None and not validation and fraction is None and tokens is None:
        if input and known.validation:
            raise DataError(f"--input replaces the text of preset {preset}; give its validation text with --validation")
        checked, fraction, tokens = known.validation, known.validation_fraction, known.validation_tokens
        tokens = None if tokens is None else min(tokens, parse_count(shard_size, "--shard-size") or tokens)
    reading = _reading(known, text_column, separator, document_start, errors, special_tokens)
    reading = _with_ids(reading, text_column, ids_column, ids_rows)
    folder = out or Path("data") / Path(str(preset)).stem
    _prepare_and_show(
        inputs,
        folder,
        tokenizer=_tokenizer(tokenizer, known, str(preset), inputs, reading),
        validation=with_filters(checked, **filters) if checked else None,
        validation_fraction=fraction,
        validation_tokens=tokens,
        reading=reading,
        shard_size=parse_count(shard_size, "--shard-size") or 0,
        num_shards=num_shards,
        limit_bytes=parse_count(limit_bytes, "--limit-bytes"),
        workers=workers,
        force=force,
        steps=[*(known.steps if known else ()), *_steps(step or ())],
        engine=_engine(engine, tasks, workers, partition, time_limit),
        questions=functools.partial(_questions, folder=task_data),
    )


def _prepare_and_show(inputs: Sequence[str | Input], folder: Path, **arguments: Any) -> None:
    """Prepare, and show what was made, and what each step did."""
    from gptlab.data import prepare as prepare_data
    from gptlab.data.preparation import SubmittedError

    try:
        manifest = prepare_data(inputs, folder, **arguments)
    except SubmittedError as submitted:
        say(str(submitted))
        return
    if steps := manifest.options.get("steps"):
        from rich.table import Table

        table = Table()
        table.add_column("step")
        for heading in ("documents", "removed", "MB", "removed", "changed"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in steps:
            did = one["did"]
            megabytes = (f"{did[key] / 1e6:,.1f}" for key in ("bytes", "removed_bytes"))
            table.add_row(one["use"], f"{did['documents']:,}", f"{did['removed']:,}", *megabytes, f"{did['changed']:,}")
        output().print(table)
    for name, split in manifest.splits.items():
        output().print(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {len(split.shards)} shard(s) in {folder}",
            markup=False,
        )
    if "validation" not in manifest.splits:
        say("no validation split; training needs one: add --validation FILES or --validation-fraction 0.1")


def _steps(given: Sequence[str]) -> list[Any]:
    """Steps as the command line writes them: NAME, or a mapping of YAML."""
    import yaml

    found = []
    for each in given:
        try:
            found.append(yaml.safe_load(each))
        except yaml.YAMLError:
            raise DataError(f"--step {each!r}: is no YAML; write NAME or '{{use: NAME, argument: value}}'") from None
    return found


def _engine(
    name: str | None, tasks: int | None, workers: int | None, partition: str | None, time_limit: str
) -> Engine | None:
    from gptlab.data.preparation import Engine

    if name is None:
        for option, value in (("--tasks", tasks), ("--partition", partition)):
            if value is not None:
                raise DataError(f"{option} is of an engine; name one with --engine local, ray or slurm")
        return None
    if workers is not None:
        raise DataError("--workers and --engine both say who tokenizes; with an engine it is --tasks")
    return Engine(name, tasks, partition, time_limit)


def _questions(task: str, folder: Path | None) -> list[tuple[str, str]]:
    from gptlab.evals.passages import passages

    return passages(task, folder)


def _reading(
    known: Preset | None,
    text_column: str | None,
    separator: str | None,
    document_start: str | None,
    errors: str,
    special_tokens: list[str] | None,
) -> Reading:
    import dataclasses
    import re

    from gptlab.data.sources import Reading

    check_errors(errors)
    if separator == "":
        raise DataError("--separator: must not be empty; leave it out to take each text file as one document")
    try:
        re.compile(document_start or "")
    except re.error as error:
        raise DataError(f"--document-start {document_start!r}: is no regular expression ({error})") from None
    base = known.reading() if known else Reading()
    given: dict[str, Any] = {
        "text_column": text_column,
        "separator": separator,
        "document_start": document_start,
        "errors": errors,
        "special_tokens": None if special_tokens in (None, ["none"]) else tuple(sorted(special_tokens or ())),
    }
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def _with_ids(reading: Reading, text_column: str | None, ids_column: str | None, ids_rows: str | None) -> Reading:
    """`reading` where a column of ids takes the place of one of text."""
    import dataclasses

    if ids_rows not in (None, "documents", "packed"):
        raise DataError(f"--ids-rows {ids_rows!r}: is neither documents nor packed")
    if ids_column is None and ids_rows is None:
        return reading
    if ids_column is None and reading.ids is None:
        raise DataError("--ids-rows says how the rows of --ids-column are meant; give that too")
    if text_column is not None:
        raise DataError("--text-column and --ids-column both say what is read; give one of them")
    rows: Any = ids_rows or reading.ids or "documents"
    return dataclasses.replace(reading, text_column=ids_column or reading.text_column, ids=rows)


def _tokenizer(
    asked: str | None, known: Preset | None, preset: str, inputs: Sequence[str | Input], reading: Reading
) -> str | Tokenizer:
    if asked is not None:
        return asked
    if known is not None and known.tokenizer is not None:
        return known.tokenizer
    if known is not None and (known.train_tokenizer or known.vocab_size):
        return _train_tokenizer(known, Path(preset).stem, inputs, reading)
    raise DataError(
        "no tokenizer; name one with --tokenizer, like byte, gpt2 or cl100k_base, or train one: gptlab tokenizer train"
    )


def _train_tokenizer(known: Preset, name: str, inputs: list[str], reading: Reading) -> Tokenizer:
    """The tokenizer that a preset has of its own text."""
    from gptlab.console import track
    from gptlab.data import iter_documents
    from gptlab.processes import usable_cores
    from gptlab.tokenizer import train_bpe, train_char

    documents = iter_documents(inputs, reading=reading)
    texts = _first_bytes((document.text for document in documents), _TOKENIZER_BYTES)
    read = track(texts, f"tokenizer {name}: reading", total=None, unit="B", size=len)
    if known.vocab_size is None:
        return train_char(read, name=name)
    (made,) = train_bpe(read, [known.vocab_size], name=name, workers=usable_cores())
    return made


def _first_bytes(texts: Iterable[str], most: int) -> Iterator[str]:
    for text in texts:
        yield text
        most -= len(text)
        if most <= 0:
            return


def bring_data(configs: Sequence[RunConfig], prepare: bool) -> None:
    """Prepare what data of presets are missing where that is asked for, or a person in a terminal says so."""
    from gptlab.parallel.world import find_world

    in_terminal = sys.stdin is not None and sys.stdin.isatty() and place() is Place.TERMINAL
    if (prepare or in_terminal) and find_world().size == 1:
        for config in configs:
            prepare_missing(config, ask=not prepare)


def prepare_missing(config: RunConfig, *, ask: bool) -> None:
    """Prepare the presets that `config` reads and that are not here, as much of each as the run needs.

    `ask`: ask before each, where somebody can answer; else each is prepared. What is no preset is left to whoever
    opens it, who says what to do.
    """
    from gptlab.data.preset import load_preset, preset_names

    for folder in [*filter(None, [config.data.path]), *(config.data.sources or {}).values()]:
        name = Path(folder).name
        if Path(folder).exists() or name not in preset_names():
            continue
        known = load_preset(name)
        if ask and not typer.confirm(
            f"{folder} is not here: {known.description}.\nPrepare it now?", default=True, err=True
        ):
            return
        part = None
        if known.tokens is not None and config.train.tokens < known.tokens:
            part = -(-config.train.tokens // _SHARD)
        say(f"$ gptlab data prepare {name} --out {folder}{f' --num-shards {part}' if part else ''}")
        prepare(preset=name, out=Path(folder), num_shards=part)


@app.command()
def info(folder: Annotated[Path, typer.Argument(help="A data set.")]) -> None:
    """What a data set holds: counts, bytes per token, shards, and how each split begins."""
    import functools

    from rich.table import Table

    from gptlab.data import info as describe

    described = describe(folder)
    manifest = described.manifest
    table = Table(title=str(folder), title_justify="left")
    table.add_column("split")
    for name in described.splits:  # a column a split: numbers of any size fit into the narrowest terminal
        table.add_column(name, justify="right", no_wrap=True)
    splits = described.splits.values()
    table.add_row("documents", *(f"{d.documents:,}" if d.documents is not None else "?" for d in splits))
    table.add_row("tokens", *(f"{d.tokens:,}" for d in splits))
    table.add_row("text bytes", *(f"{d.bytes:,}" if d.bytes is not None else "?" for d in splits))
    table.add_row("bytes per token", *(f"{d.bytes / d.tokens:.3f}" if d.bytes is not None else "?" for d in splits))
    table.add_row("shards", *(str(len(d.shards)) for d in splits))
    table.add_row("ids", *(str(d.dtype) for d in splits))
    output().print(table)
    show = functools.partial(output().print, markup=False)
    if manifest is None:
        show("no dataset.json: shards made elsewhere; tokenizer and vocabulary are not known")
    else:
        made_with = manifest.tokenizer
        show(f"tokenizer: {made_with['name']} ({made_with['kind']}, hash {made_with['hash']})")
        show(f"vocabulary: {manifest.vocab_size:,} ids, end of text {manifest.end_of_text}")
        if shared := manifest.shared_documents:
            show(f"in both splits: {shared['validation']:,} validation and {shared['train']:,} training documents")
        elif len(manifest.splits) > 1:
            show("in both splits: not known, it was prepared by gptlab 0.3")
        sources = manifest.sources
        show(f"sources: {', '.join(sources[:8])}{f' and {len(sources) - 8} more' if len(sources) > 8 else ''}")
    for name in described.splits:
        show(f"{name} begins: {_beginning(folder, described.beginning(name))}")


def _beginning(folder: Path, ids: list[int]) -> str:
    """The first ids as text where the data set has its tokenizer, else as numbers."""
    if not (folder / "tokenizer").is_dir():
        return " ".join(map(str, ids[:16]))
    from gptlab.tokenizer import load_tokenizer

    return repr(load_tokenizer(folder / "tokenizer").decode(ids))


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="A data set.")]) -> None:
    """Read every byte of a data set and compare it with the checksums and counts in dataset.json."""
    from gptlab.data import verify as check

    described = check(folder)
    shards = sum(len(data.shards) for data in described.splits.values())
    tokens = sum(data.tokens for data in described.splits.values())
    how = "checksums, ids and documents agree" if described.manifest else "sizes agree; no checksums to compare with"
    output().print(f"{folder}: {shards} shard(s), {tokens:,} tokens: {how}", markup=False)


@app.command()
def presets() -> None:
    """The data sets that `gptlab data prepare NAME` knows."""
    from rich.table import Table

    from gptlab.data.preset import load_preset, preset_names

    table = Table.grid("preset", "what", padding=(0, 2))
    for name in preset_names():
        known = load_preset(name)
        own = known.train_tokenizer or (f"{known.vocab_size:,} ids" if known.vocab_size else None)
        tokenizer = known.tokenizer or (f"its own ({own})" if own else "to name")
        table.add_row(name, f"{known.description}; tokenizer: {tokenizer}")
    output().print(table)
