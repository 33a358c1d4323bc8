"""`gptlab serve`: runs behind HTTP, as OpenAI's clients expect it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import Checkpoint, Compile, Device
from gptlab.console import output, say
from gptlab.errors import GptlabError

_KINDS_OF_BATCH: tuple[tuple[tuple[int, ...], ...], ...] = (((0, 0),), ((0, 0), (0, 0)), ((0, 0), (0, 0, 0)))
"""For which a step is compiled: one text, several that are equally long, and several that are not."""


def serve(
    runs: Annotated[list[Path], typer.Argument(help="run folders; each is a model under its folder's name")],
    host: Annotated[str, typer.Option(help="address to listen at; by default nobody else can reach it")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="texts that a model continues at once")] = 32,
    max_waiting: Annotated[int, typer.Option(min=0, help="texts that may wait beside them; then: 429")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens of the longest answer")] = 4096,
    patience: Annotated[
        float, typer.Option(help="seconds for a client to send, or to go on reading; then its connection is closed")
    ] = 30.0,
    device: Device = "auto",
    checkpoint: Checkpoint = None,
    compiled: Compile = False,
) -> None:
    """Serve runs to OpenAI's clients: completions, chat, log-probabilities, streams."""
    try:
        from gptlab.serving.server import is_local, listen, make_server
    except ImportError as error:
        raise GptlabError(f"serve needs {error.name}; pip install 'gptlab[serve]'") from None
    from gptlab.interop import load
    from gptlab.serving.models import Limits, Served

    if not 0.1 <= patience < math.inf:
        raise GptlabError(f"--patience {patience}: must be at least 0.1 seconds, and not without end")
    names = [run.resolve().name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise GptlabError(f"{twice} is the name of two of the runs; rename a folder, or serve one of them")
    limits = Limits(max_batch, max_waiting, max_new_tokens, patience=patience)
    listening = listen(host, port)  # before the weights are read
    served: list[Served] = []
    try:
        for run, name in zip(runs, names, strict=True):
            loaded = load(run, device=device, checkpoint=checkpoint)
            if compiled:
                for texts in _KINDS_OF_BATCH:
                    loaded.compile_generator(texts, joining=True)
            served.append(Served(loaded, name, limits))
        shown = f"[{host}]" if ":" in host else host
        output().print(f"http://{shown}:{listening.getsockname()[1]}/v1", markup=False)
        say(f"serving {', '.join(names)}; Ctrl-C ends")
        if not is_local(host):
            say(f"careful: whoever reaches {host} may use it: there is no password")
        make_server(served, limits, local=is_local(host)).run(sockets=[listening])
    except KeyboardInterrupt:
        say("ended")
    finally:
        listening.close()
        for each in served:
            each.engine.close()
