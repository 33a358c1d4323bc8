"""`gptlab import`, `export` and `soup`: weights that come from elsewhere, that go there, and averages of them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """Who is to read what is written."""

    hf = "hf"
    nanogpt = "nanogpt"
    gguf = "gguf"


def import_(
    source: Annotated[
        str, typer.Argument(help="a Hugging Face folder, a model of the hub (owner/name), or a nanoGPT ckpt.pt")
    ],
    name: Annotated[str, typer.Option(help="the run's name: runs/NAME-HASH")],
    tokenizer: Annotated[
        str | None, typer.Option(help="name or folder of the tokenizer; by default the one beside the weights")
    ] = None,
    end_of_text: Annotated[
        str | None, typer.Option(help="the token between documents; by default tokenizer_config.json's eos_token")
    ] = None,
) -> None:
    """Make a run folder of weights from elsewhere: GPT-2, Llama 2 and 3, Qwen3, OLMo 2, nanoGPT."""
    from gptlab.console import say
    from gptlab.interop import import_run

    folder = import_run(source, name=name, tokenizer=tokenizer, end_of_text=end_of_text)
    say(f"imported into {folder}")
    say(f"next: gptlab sample {folder}\n      a config with model: {{init_from: {folder}}} trains on from it")


def export(
    run: Annotated[Path, typer.Argument(help="a run folder (or a nanoGPT ckpt.pt)")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    format: Annotated[Format, typer.Option(help="who is to read it")] = Format.hf,
    checkpoint: Annotated[
        str | None, typer.Option(help="a folder of RUN/checkpoints; by default the final weights")
    ] = None,
) -> None:
    """Write a run for others: a folder for transformers, a ckpt.pt for nanoGPT, a GGUF file for llama.cpp."""
    from gptlab.console import say
    from gptlab.interop import export_run, load

    written = export_run(load(run, device="cpu", dtype="float32", checkpoint=checkpoint), out, format.value)
    say(f"wrote {written}")


def soup(
    runs: Annotated[list[Path], typer.Argument(help="run folders, two or more")],
    out: Annotated[str, typer.Option(help="the soup's name: runs/NAME-HASH")],
    weights: Annotated[
        str | None,
        typer.Option(help="comma-separated shares in the order of the runs, scaled to sum to 1; equal if absent"),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="from the best run to the worst, keep those that do not make it worse")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="a folder of each RUN/checkpoints; by default the final weights")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="data set to evaluate on; by default the runs' own")] = None,
    limit: Annotated[
        int | None, typer.Option(help="validation sequences; by default what the first run's eval.tokens makes")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Average the weights of runs into a run of its own, and evaluate all of them on the same tokens."""
    from gptlab.cli.staging import show_soup
    from gptlab.console import say
    from gptlab.errors import ConfigError
    from gptlab.training.soup import soup as make_soup

    try:
        shares = [float(share) for share in weights.split(",")] if weights is not None else None
    except ValueError:
        raise ConfigError(f"--weights {weights}: write numbers with commas between them, as 0.5,0.3,0.2") from None
    options = {"checkpoint": checkpoint, "data": data, "limit": limit, "device": device}
    made = make_soup(runs, out, weights=shares, greedy=greedy, **options)
    show_soup(made)
    say(f"wrote {made.folder}; what it is made of is in soup.yaml")
