"""How `gptlab sample` shows text: streamed where one prompt is continued in a terminal, in turn otherwise."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from rich.text import Text

from gptlab.console import output
from gptlab.errors import GptlabError
from gptlab.inference.generate import Sampling, stream_tokens
from gptlab.run import Run

_COLOURS = ("on #3b4252", "on #5b3a52")


def show_samples(run: Run, prompts: Sequence[str], sampling: Sampling, *, show_tokens: bool) -> None:
    """Continue all prompts together and print each with its continuation."""
    screen = output()
    ids = [run.encode_prompt(prompt) for prompt in prompts]
    live = len(prompts) == 1 and not show_tokens
    try:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        rows: list[list[int]] = [[] for _ in prompts]
        if live:
            screen.print(Text(prompts[0], style="bold"), end="")
        for tokens in stream_tokens(
            run.generator, ids, sampling, end_of_text=run.tokenizer.end_of_text, device=run.device
        ):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    row.append(token)
                    if live:
                        screen.print(Text(decoder.decode(run.tokenizer.decode_bytes([token]))), end="")
        if live:
            screen.print(Text(decoder.decode(b"", final=True)))
            return
    except UnicodeEncodeError:
        raise GptlabError("the terminal cannot show these characters; set PYTHONIOENCODING=utf-8") from None
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        if number:
            screen.rule(style="dim")
        body = _coloured(run, row) if show_tokens else Text(run.tokenizer.decode(row))
        screen.print(Text.assemble((prompt, "bold"), body))


def _coloured(run: Run, row: list[int]) -> Text:
    """Tokens in two alternating colours; one that is not whole text by itself shows its bytes."""
    text = Text()
    for position, token in enumerate(row):
        piece = run.tokenizer.decode_bytes([token])
        try:
            shown = piece.decode("utf-8")
        except UnicodeDecodeError:
            shown = "".join(f"\\x{byte:02x}" for byte in piece)
        text.append(shown.replace("\n", "⏎\n"), style=_COLOURS[position % 2])
    return text
