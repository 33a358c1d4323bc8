"""`gptlab export`: a run for other programs."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import Checkpoint
from gptlab.console import say
from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import check_place


class Format(StrEnum):
    """Who is to read what is written."""

    hf = "hf"
    hf_code = "hf-code"
    nanogpt = "nanogpt"
    gguf = "gguf"


def export(
    run: Annotated[Path, typer.Argument(help="a run folder (or a nanoGPT ckpt.pt)")],
    out: Annotated[Path, typer.Option(help="the folder to write, or a file that ends in .gguf")],
    format: Annotated[
        Format | None,
        typer.Option(
            help="who is to read it; by default as --out ends, and hf-code where transformers has no class for it",
            show_default="hf",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Write a run for others: a folder for transformers, a ckpt.pt for nanoGPT, a GGUF file for llama.cpp."""
    from gptlab.interop import export_run, load
    from gptlab.interop.huggingface import NoArchitecture

    is_file = out.suffix == ".gguf" and format in (None, Format.gguf)
    if is_file:
        check_place(out, "--out")
        if out.exists():
            raise ConfigError(f"--out {out} is there already; name another file, or delete it")
    chosen = Format.gguf if is_file else format or Format.hf
    loaded = load(run, device="cpu", dtype="float32", checkpoint=checkpoint)
    if not is_file:
        try:
            say(f"wrote {export_run(loaded, out, chosen.value)}")
        except NoArchitecture as obstacle:
            if format is not None:
                raise CheckpointError(f"{obstacle}; --format hf-code writes it for transformers, with code") from None
            say(f"wrote {export_run(loaded, out, 'hf-code')}, with code of its own: {str(obstacle).partition(': ')[2]}")
            say("load it where gptlab is installed: AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as aside:
        export_run(loaded, Path(aside) / "out", chosen.value).replace(out)
    say(f"wrote {out}")
