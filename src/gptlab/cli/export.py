"""`gptlab export`: a run for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import Checkpoint
from gptlab.console import say


class Format(StrEnum):
    """Who is to read what is written."""

    hf = "hf"
    nanogpt = "nanogpt"
    gguf = "gguf"


def export(
    run: Annotated[Path, typer.Argument(help="a run folder (or a nanoGPT ckpt.pt)")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    format: Annotated[Format, typer.Option(help="who is to read it")] = Format.hf,
    checkpoint: Checkpoint = None,
) -> None:
    """Write a run for others: a folder for transformers, a ckpt.pt for nanoGPT, a GGUF file for llama.cpp."""
    from gptlab.interop import export_run, load

    written = export_run(load(run, device="cpu", dtype="float32", checkpoint=checkpoint), out, format.value)
    say(f"wrote {written}")
