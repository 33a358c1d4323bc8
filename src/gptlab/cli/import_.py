"""`gptlab import`: weights from elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gptlab.console import say


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="a Hugging Face folder, a model of the hub (owner/name), a ckpt.pt of nanoGPT or llama2.c, "
            "a .bin of llama2.c, a .gguf, or templateGPT's trained/NAME"
        ),
    ],
    name: Annotated[str, typer.Option(help="the run's name: runs/NAME-HASH")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="name or folder of the tokenizer, nanoGPT's meta.pkl, llama2.c's tokenizer.bin or templateGPT's "
            ".model; by default what is beside the weights"
        ),
    ] = None,
    end_of_text: Annotated[
        str | None, typer.Option(help="the token that begins every document; by default as the tokenizer's files say")
    ] = None,
    document_end: Annotated[
        str | None, typer.Option(help="a token that stands after every document too; by default as the files say")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="one more token that ends a generated text; may be given several times")
    ] = None,
) -> None:
    """Make a run folder of weights from elsewhere.

    GPT-2, Llama and its kin and Gemma of transformers; models of nanoGPT, llama2.c and templateGPT; GGUF.
    """
    from gptlab.interop import import_run

    roles: dict[str, Any] = {"end_of_text": end_of_text, "document_end": document_end, "stop": stop or ()}
    folder = import_run(source, name=name, tokenizer=tokenizer, **roles)
    say(f"imported into {folder}")
    say(f"next: gptlab sample {folder}\n      a config with model: {{init_from: {folder}}} trains on from it")
