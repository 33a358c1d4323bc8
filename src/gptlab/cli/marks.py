"""Tokens made visible: by the colours that every terminal has (of 256 or 16 as well), else by a line between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gptlab.tokenizer import Tokenizer

STYLES = ("black on cyan", "black on green", "black on yellow", "white on blue", "black on white")
SPECIAL_STYLE = "bold white on red"
CUT = "│"
END_OF_PROMPT = "║"


def is_coloured(console: Console) -> bool:
    """Whether colours show the tokens: not in a pipe, under NO_COLOR or in a terminal that has none."""
    return console.color_system is not None and not console.no_color


def mark_tokens(console: Console, tokenizer: Tokenizer, prompt: Sequence[int], generated: Sequence[int]) -> Text:
    """The text of both, token by token: the prompt bold, or with END_OF_PROMPT behind it where there are no colours.

    A character of several tokens is shown with the last of them.
    """
    from rich.text import Text

    stream, text, coloured = tokenizer.text_stream(begins=True), Text(), is_coloured(console)
    specials = set(tokenizer.special_tokens.values())
    shown, in_prompt = 0, True
    for position, token in enumerate([*prompt, *generated]):
        piece = stream.feed(token)
        if not piece:
            continue
        if shown and not coloured:
            text.append(END_OF_PROMPT if in_prompt and position >= len(prompt) else CUT)
        in_prompt = position < len(prompt)
        style = SPECIAL_STYLE if token in specials else STYLES[shown % len(STYLES)]
        text.append(piece.replace("\n", "⏎\n"), style=f"bold {style}" if in_prompt else style)
        shown += 1
    return text.append(stream.end())
