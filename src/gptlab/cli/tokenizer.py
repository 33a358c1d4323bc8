"""`gptlab tokenizer …`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptlab.cli.marks import CUT, SPECIAL_STYLE, STYLES, is_coloured
from gptlab.cli.options import SpecialTokens, TextFile, check_errors, parse_count, read_texts
from gptlab.console import output, progress, say, waiting
from gptlab.errors import ConfigError, DataError, did_you_mean
from gptlab.files import check_place, settle

if TYPE_CHECKING:
    from gptlab.data.sources import Document, Input, Reading
    from gptlab.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Train, import, inspect and grow tokenizers.")

ROOT = Path("tokenizers")
_UPDATE_BYTES = 1 << 20

Name = Annotated[
    str,
    typer.Argument(help="NAME under tokenizers/, byte, gpt2, cl100k_base, …, owner/name of the hub, or a folder."),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="File, folder, glob, URL, hf://NAME, text:WORDS, - or a preset; repeatable.",
        show_default=False,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="Column or field that holds the text; `text` if not given.", show_default=False),
]
Errors = Annotated[str, typer.Option(help="Invalid text: 'strict' refuses it, 'replace' puts U+FFFD.")]
LimitBytes = Annotated[
    str | None, typer.Option(metavar="N", help="Read this many bytes of text, e.g. 500M.", show_default=False)
]


@app.command()
def train(
    name: Annotated[str, typer.Option(help="Name; the tokenizer goes to tokenizers/NAME.", show_default=False)],
    input: Input = None,
    vocab_size: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N…]",
            help="Ids in all, e.g. 8192 or 32K (=32,000); several give NAME-N, each a prefix of the next.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[str, typer.Option(metavar="bpe|byte|char", help="Kind of tokenizer.")] = "bpe",
    pattern: Annotated[
        str | None,
        typer.Option(metavar="gpt4|gpt2|o200k|REGEX", help="How text is cut before merging; gpt4 if not given."),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option(help="A special token besides <|endoftext|>; repeatable.", show_default=False),
    ] = None,
    grow: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Add merges to this tokenizer; its ids keep their meaning."),
    ] = None,
    limit_bytes: LimitBytes = None,
    text_column: TextColumn = None,
    errors: Errors = "strict",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that count; default: one a CPU core.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a tokenizer of this name.")] = False,
) -> None:
    """Train a tokenizer on text: gptlab tokenizer train --input 'books/*.txt' --vocab-size 8192 --name books8k

    One that was stopped goes on where it was when the same command is given again.
    """
    import time

    from gptlab import tokenizer as tok
    from gptlab.processes import usable_cores
    from gptlab.tokenizer.journal import kept_journal

    given = {
        "--input": input,
        "--vocab-size": vocab_size,
        "--pattern": pattern,
        "--grow": grow,
        "--limit-bytes": limit_bytes,
    }
    _check_kind(kind, given)
    sizes = _sizes(vocab_size)
    names = [f"{name}-{size}" for size in sizes] if len(sizes) > 1 else [name]
    for each in names:
        _check_free(each, force, trained=True)

    specials = special or []
    started = time.perf_counter()
    with ExitStack() as kept:  # of a training, until what it made is saved
        if kind == "byte":
            made = [tok.byte_tokenizer(name=name, special_tokens=specials)]
        elif kind == "char":
            with _texts(_source(input or [], text_column, errors, limit_bytes)) as texts:
                made = [tok.train_char(texts, name=name, special_tokens=specials)]
        else:
            source = _source(input or [], text_column, errors, limit_bytes)
            base = tok.load_tokenizer(grow, root=ROOT) if grow is not None else None
            options: dict[str, Any] = {"name": name, "special_tokens": specials}
            options["workers"] = workers or usable_cores()
            options["journal"] = kept.enter_context(kept_journal(ROOT / f".{name}.partial", source.identity(), name))
            with _texts(source) as texts:
                if base is not None:
                    made = tok.grow_bpe(base, texts, sizes, **options)
                else:
                    made = tok.train_bpe(texts, sizes, pattern=pattern or "gpt4", **options)
        _save(made, kind, input, time.perf_counter() - started)
    _say_next(made[-1].name, input)


def _save(made: Sequence[Tokenizer], kind: str, inputs: Sequence[str] | None, seconds: float) -> None:
    """Write what was trained, and say what of and how long it took."""
    for tokenizer in made:
        if inputs:
            tokenizer.trained_on["inputs"] = list(inputs)
        tokenizer.save(ROOT / tokenizer.name)
        say(f"wrote {ROOT / tokenizer.name}: {kind}, {tokenizer.vocab_size:,} ids, hash {tokenizer.hash}")
    if read := made[-1].trained_on.get("bytes"):
        say(f"from {read / 1e6:,.1f} MB of text in {seconds:.1f} s")


def _check_kind(kind: str, given: Mapping[str, object]) -> None:
    """Raise ConfigError for an unknown kind, an option (`given`, by name) that it does not read, or that it lacks."""
    if kind not in _UNREAD:
        raise ConfigError(f"--kind {kind!r} is unknown: {did_you_mean(kind, tuple(_UNREAD))}")
    growing = kind == "bpe" and given["--grow"] is not None
    what = "--grow" if given["--grow"] is not None else f"--kind {kind}"
    unread = ("--pattern",) if growing else _UNREAD[kind]
    for option in unread:
        if given[option]:
            raise ConfigError(f"{option} means nothing with {what}; leave it out")
    for option in ("--input", "--vocab-size"):
        if not given[option] and option not in unread:
            raise ConfigError(f"{what} needs {option}")


_UNREAD: dict[str, tuple[str, ...]] = {
    "bpe": (),
    "byte": ("--input", "--vocab-size", "--pattern", "--grow", "--limit-bytes"),
    "char": ("--vocab-size", "--pattern", "--grow"),
}
"""Options of `train` that a kind of tokenizer does not read."""


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="An OpenAI encoding (gpt2, cl100k_base, o200k_base, …), a name of the hub (owner/name), a folder with"
            " encoder.json + vocab.bpe, a tokenizer.json or its folder."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name here; it goes to tokenizers/NAME. An encoding and the hub's bring one."),
    ] = None,
    end_of_text: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="Which special token begins every document.", show_default=False),
    ] = None,
    document_end: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="Which one stands after every document, too.", show_default=False),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN", help="One more that ends a generated text.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a tokenizer of this name.")] = False,
) -> None:
    """Bring in OpenAI's vocabularies, those of the Hugging Face hub, or any tokenizer.json."""
    from gptlab.tokenizer import import_tokenizer
    from gptlab.tokenizer.published import OPENAI

    if name is None:
        if source not in OPENAI and Path(source).exists():
            raise ConfigError(f"what is {source} to be called here? add --name NAME")
        name = source.rpartition("/")[2] or source
    _check_free(name, force)
    roles: dict[str, Any] = {"end_of_text": end_of_text, "document_end": document_end, "stop": stop or ()}
    with waiting(f"importing {source}"):
        tokenizer = import_tokenizer(source, name=name, **roles)
        tokenizer.save(ROOT / name)
    say(
        f"wrote {ROOT / name}: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, documents begin with"
        f" {tokenizer.end_of_text_token} ({tokenizer.end_of_text}), hash {tokenizer.hash}"
    )
    _say_next(name, None)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(help="NAME under tokenizers/, byte, gpt2, cl100k_base, …, owner/name of the hub, or a folder."),
    ],
    text: Annotated[str | None, typer.Argument(help="Text to cut into tokens; - reads standard input.")] = None,
    file: TextFile = None,
    allow_special: Annotated[bool, typer.Option("--allow-special", help="The same as --special-tokens all.")] = False,
    special_tokens: SpecialTokens = None,
    ids: Annotated[bool, typer.Option("--ids", help="A table with the ids.")] = False,
) -> None:
    """Colour the pieces that a text is cut into."""
    from rich.table import Table
    from rich.text import Text

    from gptlab.tokenizer import load_tokenizer
    from gptlab.tokenizer.byte_level import readable

    texts = read_texts([] if text is None else [text], file)
    if not texts:
        raise DataError("no text to cut; give it, - for standard input, or --file FILE")
    text = "".join(texts)
    tokenizer = load_tokenizer(name, root=ROOT)
    encoded = tokenizer.encode(text, allow_special=special_tokens or allow_special)
    table = tokenizer.token_bytes()
    specials = {index: token for token, index in tokenizer.special_tokens.items()}
    console = output()
    if ids:
        grid = Table(box=None, pad_edge=False)
        for heading, side in (("#", "right"), ("id", "right"), ("piece", "left"), ("bytes", "right")):
            grid.add_column(heading, justify=side)  # type: ignore[arg-type]
        for position, token in enumerate(encoded):
            piece = readable(table[token]) if token not in specials else specials[token]
            style = STYLES[position % len(STYLES)] if token not in specials else SPECIAL_STYLE
            size = len(table[token]) if token not in specials else 0
            grid.add_row(str(position), str(token), Text(piece, style=style), str(size))
        console.print(grid)
    else:
        line = Text()
        for position, token in enumerate(encoded):
            if position and not is_coloured(console):
                line.append(CUT)
            if token in specials:
                line.append(specials[token], style=SPECIAL_STYLE)
            else:
                line.append(readable(table[token], wrap=True), style=STYLES[position % len(STYLES)])
        console.print(line)
    size = len(text.encode("utf-8"))
    ratio = f", {size / len(encoded):.2f} bytes per token" if encoded else ""
    say(f"{len(encoded):,} tokens, {len(text):,} characters, {size:,} bytes{ratio}")


@app.command()
def stats(
    name: Annotated[
        str,
        typer.Argument(help="NAME under tokenizers/, byte, gpt2, cl100k_base, …, owner/name of the hub, or a folder."),
    ],
    input: Input = None,
    limit_bytes: LimitBytes = None,
    text_column: TextColumn = None,
    errors: Errors = "strict",
) -> None:
    """Bytes per token of a tokenizer on text, source by source."""
    import numpy as np
    from rich.table import Table

    from gptlab.tokenizer import load_tokenizer

    if not input:
        raise ConfigError("stats needs text to measure on: add --input FILE")
    tokenizer = load_tokenizer(name, root=ROOT)
    used = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    rows: dict[str, list[int]] = {}
    source = _source(input, text_column, errors, limit_bytes)
    with _bar(source, "encoding") as advance:
        for document in source.documents():
            (encoded,) = tokenizer.encode_documents([document.text])
            size = len(document.text.encode("utf-8"))
            measured = (int(not document.continues), size, len(document.text), len(encoded))
            row = rows.setdefault(document.source, [0, 0, 0, 0])
            row[:] = [total + new for total, new in zip(row, measured, strict=True)]
            ids, times = np.unique(encoded, return_counts=True)
            used[ids] += times
            advance(size)

    console = output()
    grid = Table(box=None, pad_edge=False)
    grid.add_column("source", no_wrap=True)
    headings = ("documents", "MB", "tokens", "bytes/token", "chars/token", "bytes/char")
    for heading in headings:
        grid.add_column(heading.replace("/", "/\n") if console.width < 100 else heading, justify="right")
    if len(rows) > 1:
        rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    room = max(16, console.width - (74 if console.width >= 100 else 58))
    for origin, (count, size, characters, tokens) in rows.items():
        cells = (f"{count:,}", f"{size / 1e6:,.1f}", f"{tokens:,}")
        ratios = (size / tokens, characters / tokens, size / characters)
        style = "bold" if origin == "all" else None
        grid.add_row(_short(origin, room), *cells, *(f"{ratio:.3f}" for ratio in ratios), style=style)
    console.print(grid)
    ordinary = np.ones(tokenizer.vocab_size, dtype=bool)
    ordinary[list(tokenizer.special_tokens.values())] = False
    unused = int(((used == 0) & ordinary).sum())
    whole = int(ordinary.sum())
    console.print(
        f"{unused:,} of {whole:,} ordinary tokens ({unused / whole:.1%}) do not occur in this text",
        markup=False,
    )


# What the commands share


def _short(source: str, width: int) -> str:
    return source if len(source) <= width else "…" + source[1 - width :]


def _check_free(name: str, force: bool, *, trained: bool = False) -> None:
    from gptlab.tokenizer.formats import check_name

    check_name(name, trained=trained)
    folder = ROOT / name
    check_place(folder, "--name")
    settle(folder)
    if folder.exists() and not (folder / "meta.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is no tokenizer, so --force does not replace it; choose another --name")
    if folder.exists() and not force:
        raise DataError(f"{folder} exists; choose another --name, or replace it with --force")


def _sizes(text: str | None) -> list[int]:
    from gptlab.config.numbers import parse_number

    sizes = []
    for part in (text or "").split(",") if text else []:
        try:
            size = parse_number(part)
        except ValueError as error:
            raise ConfigError(f"--vocab-size {text}: {error}") from None
        if not isinstance(size, int):
            raise ConfigError(f"--vocab-size {text}: {part.strip()} is no whole number")
        sizes.append(size)
    return sorted(set(sizes))


@dataclass(frozen=True)
class _Source:
    """Text as the options describe it."""

    inputs: Sequence[str | Input]
    reading: Reading
    limit: int | None

    def documents(self) -> Iterator[Document]:
        from gptlab.data.sources import iter_documents

        return iter_documents(self.inputs, limit_bytes=self.limit, reading=self.reading)

    def identity(self) -> list[Any]:
        """What changes when the text does, as JSON values."""
        from gptlab.data.sources.resolve import resolve

        read = [source.identity() for source in resolve(self.inputs)]
        return [read, self.reading.options(), self.limit]

    def size(self) -> int | None:
        """Bytes of text, about; None where one cannot tell."""
        from gptlab.data.sources.resolve import resolve, total_size

        total = total_size(resolve(self.inputs), self.reading)
        return total if self.limit is None else min(self.limit, total or self.limit)


def _source(inputs: Sequence[str], text_column: str | None, errors: str, limit_bytes: str | None) -> _Source:
    """The text of `inputs`; the name of a preset stands for its inputs, read as the preset says."""
    import dataclasses

    from gptlab.data.preset import is_own, load_preset, preset_names
    from gptlab.data.sources import Reading

    check_errors(errors)
    named = [each for each in inputs if is_own(each) or (each in preset_names() and not Path(each).exists())]
    if named and len(inputs) > 1:
        raise ConfigError(f"--input {named[0]} is a preset; give it alone, presets are read in ways of their own")
    preset = load_preset(named[0]) if named else None
    invalid: Literal["strict", "replace"] = "replace" if errors == "replace" else "strict"
    reading = preset.reading(invalid) if preset else Reading(errors=invalid)
    reading = dataclasses.replace(reading, text_column=text_column or reading.text_column)
    return _Source(
        preset.inputs if preset else list(inputs), reading, parse_count(limit_bytes, "--limit-bytes", least=1)
    )


@contextmanager
def _bar(source: _Source, description: str) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of `source`; yields the function that advances it."""
    with progress(transient=True) as bar:
        task = bar.add_task(description, total=source.size())
        read = 0

        def advance(size: int) -> None:
            nonlocal read
            read += size
            if read >= _UPDATE_BYTES:  # a bar redrawn for each of a million lines costs more than the lines
                bar.advance(task, read)
                read = 0

        yield advance


@contextmanager
def _texts(source: _Source) -> Iterator[Iterator[str]]:
    """The texts of `source`; a progress bar for as long as they are read."""
    with ExitStack() as signs:

        def texts() -> Iterator[str]:
            advance = signs.enter_context(_bar(source, "reading"))
            for document in source.documents():
                yield document.text
                advance(len(document.text))
            signs.close()

        yield texts()


def _say_next(name: str, inputs: Sequence[str] | None) -> None:
    from gptlab.cli.advice import preparation

    say(f'look at it:    gptlab tokenizer show {name} "Some text of yours"')
    say(f"prepare data:  {preparation(name, inputs or ['FILES'])}")
