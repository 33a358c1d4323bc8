"""`gptlab sample`: text from a run; streamed where one prompt is continued in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.marks import mark_tokens
from gptlab.cli.options import Checkpoint, Compile, Device, Quantize, SpecialTokens, TextFile, read_texts
from gptlab.console import output, say, track
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gptlab.inference.generate import Sampling
    from gptlab.run import Run
    from gptlab.tokenizer import SpecialPolicy


def sample(
    run: Annotated[Path, typer.Argument(help="a run folder (or a nanoGPT ckpt.pt)")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="one or more prompts; - reads standard input; none: from nothing")
    ] = None,
    file: TextFile = None,
    samples: Annotated[int, typer.Option(min=1, max=256, help="texts for each prompt")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate for each prompt")] = 100,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token", show_default="0.8")
    ] = None,  # with --beams 0
    top_k: Annotated[int | None, typer.Option(help="keep the k likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="keep the fewest tokens that reach probability p")] = None,
    min_p: Annotated[float | None, typer.Option(help="keep tokens at least min_p times as likely as the best")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="above 1: less of what the text has already")] = 1.0,
    beams: Annotated[int, typer.Option(help="draw nothing: the likeliest text by so many beams")] = 1,
    seed: Annotated[int | None, typer.Option(help="make the draw repeatable")] = None,
    show_tokens: Annotated[bool, typer.Option(help="show where tokens end, by colours or by │")] = False,
    special: Annotated[bool, typer.Option("--special", help="the same as --special-tokens all")] = False,
    special_tokens: SpecialTokens = None,
    chat: Annotated[bool, typer.Option("--chat", help="put each prompt into the model's chat template")] = False,
    ignore_end: Annotated[bool, typer.Option(help="go on after end of text")] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help="a text ends before this; repeatable", show_default=False)
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="another run, which continues the same prompts beside it", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="a .jsonl that keeps prompts and texts, instead of showing them")
    ] = None,
    device: Device = "auto",
    checkpoint: Checkpoint = None,
    quantize: Quantize = None,
    compiled: Compile = False,
) -> None:
    """Continue prompts with a trained model."""
    from gptlab.inference.generate import Sampling

    warmth = temperature if temperature is not None else 0.8 if beams == 1 else 0.0
    sampling = Sampling(max_new_tokens, warmth, top_k, top_p, min_p, seed, not ignore_end, repetition_penalty, beams)
    from gptlab.files import check_place
    from gptlab.interop import load

    if out is not None:
        if out.suffix != ".jsonl":
            raise GptlabError(f"--out {out}: texts are kept as JSON lines; name a file that ends in .jsonl")
        check_place(out, "--out")
    _check_stops(stop or [], beams)
    if (out is not None or compare is not None) and show_tokens:
        raise GptlabError("--show-tokens shows the tokens of one run; leave out --out and --compare")
    if compare is not None and compare.resolve() == run.resolve():
        raise GptlabError(f"--compare {compare}: the run itself; name another")
    given = read_texts(prompts or [], file)
    loaded = load(run, device=device, checkpoint=checkpoint, quantize=quantize)
    if "" in given and not chat:
        say(f"an empty prompt: its text begins from nothing, after {loaded.tokenizer.end_of_text_token}")
    policy = special_tokens or special
    texts = [prompt for prompt in given or [""] for _ in range(samples)]
    if compiled:
        _compile(loaded, texts, sampling, special=policy, chat=chat)
    if out is None and compare is None and not stop:
        _show_samples(loaded, texts, sampling, show_tokens=show_tokens, special=policy, chat=chat)
        return
    if show_tokens:
        raise GptlabError("--show-tokens shows whole texts; leave out --stop")
    written = {run: _continued(loaded, texts, sampling, stop or [], special=policy, chat=chat)}
    if compare is not None:
        other = load(compare, device=device, checkpoint=checkpoint, quantize=quantize)
        if compiled:
            _compile(other, texts, sampling, special=policy, chat=chat)
        written[compare] = _continued(other, texts, sampling, stop or [], special=policy, chat=chat)
    if out is not None:
        _keep(out, texts, written, sampling)
    else:
        _show_beside(texts, written, between="\n" if chat else "")


def _compile(run: Run, prompts: Sequence[str], sampling: Sampling, *, special: SpecialPolicy, chat: bool) -> None:
    """Compile the run's steps for so many prompts, as often as there are beams."""
    ids = [run.encode_prompt(prompt, special=special, chat=chat) for prompt in prompts]
    run.compile_generator([text for text in ids for _ in range(sampling.beams)])


def _check_stops(stops: Sequence[str], beams: int) -> None:
    if any(not one for one in stops):
        raise GptlabError("--stop: an empty text stands everywhere; give one that has characters")
    if beams > 1 and stops:
        raise GptlabError("--beams looks for the likeliest text as a whole, --stop cuts it; leave one of them out")


def _continued(
    run: Run, prompts: Sequence[str], sampling: Sampling, stops: Sequence[str], *, special: SpecialPolicy, chat: bool
) -> list[str]:
    """What the run makes of each prompt, up to the first of `stops`."""
    from gptlab.console import waiting
    from gptlab.evals.generation import say_until, until

    ids = [run.encode_prompt(prompt, special=special, chat=chat) for prompt in prompts]
    with waiting(f"{run.folder.name}: sampling"):
        rows = say_until(run, ids, stops, sampling) if sampling.beams == 1 else _by_beams(run, ids, sampling)
    texts = [
        run.tokenizer.decode_continuation(row, begins=chat or not prompt)
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    return [until(text, stops) for text in texts]


def _by_beams(run: Run, ids: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    """The ids of what follows prompts in ids: known at the end alone."""
    from gptlab.inference.generate import generate

    return generate(run.generator, ids, sampling, stop_ids=run.tokenizer.stop_ids, device=run.device)


def _keep(out: Path, prompts: Sequence[str], written: dict[Path, list[str]], sampling: Sampling) -> None:
    """A line a text: its prompt, itself, the run, and how it was drawn."""
    import dataclasses
    import json

    from gptlab.files import write_atomic

    drawn = {key: value for key, value in dataclasses.asdict(sampling).items() if value is not None}
    rows = [
        {"prompt": prompt, "text": text, "run": run.resolve().name, **drawn}
        for run, texts in written.items()
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    try:
        write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise GptlabError(f"cannot write {out}: {error.strerror}; free some space or mend its rights") from None
    say(f"wrote {len(rows)} texts to {out}")


def _show_beside(prompts: Sequence[str], written: dict[Path, list[str]], *, between: str) -> None:
    """Each prompt, and what each run made of it; two runs in two columns."""
    from rich.table import Table
    from rich.text import Text

    screen, names = output(), [run.resolve().name for run in written]
    for number, (prompt, *texts) in enumerate(zip(prompts, *written.values(), strict=True)):
        if number:
            screen.rule(style="dim")
        if len(texts) == 1:
            screen.print(Text.assemble((prompt + between, "bold"), texts[0]))
            continue
        screen.print(Text(prompt, style="bold"))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for name in names:
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text in texts))
        screen.print(table)


def _show_samples(
    run: Run,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    show_tokens: bool,
    special: SpecialPolicy = False,
    chat: bool = False,
) -> None:
    """Continue all prompts together, and print each with its continuation (of a chat, on a line of its own)."""
    from rich.text import Text

    from gptlab.console import waiting
    from gptlab.inference.generate import stream_tokens

    screen = output()
    ids = [run.encode_prompt(prompt, special=special, chat=chat) for prompt in prompts]
    between = "\n" if chat else ""
    live = len(prompts) == 1 and not show_tokens and sampling.beams == 1
    try:
        stream = run.tokenizer.text_stream(begins=chat or not prompts[0])
        rows: list[list[int]] = [[] for _ in prompts]
        if live:
            screen.print(Text(prompts[0] + between, style="bold"), end="")
        taken: Iterable[list[int | None]] = ()
        if sampling.beams > 1:
            with waiting(f"{run.folder.name}: {sampling.beams} beams"):
                rows = _by_beams(run, ids, sampling)
        else:
            taken = stream_tokens(run.generator, ids, sampling, stop_ids=run.tokenizer.stop_ids, device=run.device)
        shown = not live and sampling.beams == 1
        for tokens in track(taken, "sampling", total=sampling.max_new_tokens, unit="tokens", shown=shown):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    row.append(token)
                    if live:
                        screen.print(Text(stream.feed(token)), end="")
        if live:
            screen.print(Text(stream.end()))
            return
    except UnicodeEncodeError:
        raise GptlabError("the terminal cannot show these characters; set PYTHONIOENCODING=utf-8") from None
    for number, (prompt, given, row) in enumerate(zip(prompts, ids, rows, strict=True)):
        if number:
            screen.rule(style="dim")
        begins = chat or not prompt
        if show_tokens:
            own = given if chat else given[1:]  # without what begins every document
            screen.print(mark_tokens(screen, run.tokenizer, own, row))
            continue
        body = run.tokenizer.decode_continuation(row, begins=begins)
        screen.print(Text.assemble((prompt + between, "bold"), body))
