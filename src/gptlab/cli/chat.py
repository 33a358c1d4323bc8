"""`gptlab chat`: a conversation with a run, in a terminal or through a pipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import Checkpoint, Compile, Device
from gptlab.console import output, say
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from gptlab.inference.generate import Sampling
    from gptlab.run import Run


def chat(
    run: Annotated[Path, typer.Argument(help="a run folder (or a nanoGPT ckpt.pt)")],
    system: Annotated[str | None, typer.Option(help="what the model is told before the conversation")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="go on with the text, whatever template there is")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of the longest answer")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="keep the k likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="keep the fewest tokens that reach probability p")] = None,
    min_p: Annotated[float | None, typer.Option(help="keep tokens at least min_p times as likely as the best")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="above 1: less of what was said already")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="make the draws repeatable")] = None,
    device: Device = "auto",
    checkpoint: Checkpoint = None,
    compiled: Compile = False,
) -> None:
    """Talk to a trained model; /reset forgets, /quit ends, Ctrl-C stops an answer."""
    from gptlab.inference.generate import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, seed, repetition_penalty=repetition_penalty)
    from gptlab.interop import load

    loaded = load(run, device=device, checkpoint=checkpoint)
    plain = plain or loaded.tokenizer.chat_template is None
    if plain and system is not None:
        raise GptlabError("--system needs a chat template, and there is none here; begin with the text itself")
    if plain:
        say("no conversation: the model goes on with all that was written so far, yours and its own")
    if compiled:
        loaded.compile_generator()
    say("/reset forgets everything, /quit ends, Ctrl-C stops an answer")
    talk = _Talk(loaded, sampling, None if plain else _opening(system))
    try:
        _converse(talk)
    except UnicodeEncodeError:
        raise GptlabError("the terminal cannot show these characters; set PYTHONIOENCODING=utf-8") from None


def _opening(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


@dataclass
class _Talk:
    """What was said so far. `opening`: the turns of a conversation before the first; None: one text that goes on."""

    run: Run
    sampling: Sampling
    opening: list[dict[str, str]] | None
    turns: list[dict[str, str]] = field(default_factory=list)
    text: str = ""
    answers: int = 0

    def reset(self) -> None:
        """Forget what was said."""
        self.turns, self.text = [], ""

    def answer(self, said: str) -> None:
        """Print what the model says to it; Ctrl-C stops that, and keeps what was said."""
        import dataclasses

        from gptlab.inference.generate import stream_tokens

        tokenizer, sampling = self.run.tokenizer, self.sampling
        ids = self._prompt(said)
        if len(ids) > (seen := self.run.model.context_length):
            say(f"careful: {len(ids):,} tokens by now, and the model sees the last of them, {seen:,} at most")
        if sampling.seed is not None:  # an answer draws other numbers than the one before it
            sampling = dataclasses.replace(sampling, seed=(sampling.seed + self.answers + 2**63) % 2**64 - 2**63)
        self.answers += 1
        stream, parts = tokenizer.text_stream(begins=self.opening is not None), []
        try:
            steps = stream_tokens(
                self.run.generator, [ids], sampling, stop_ids=tokenizer.stop_ids, device=self.run.device
            )
            for (token,) in steps:
                if token is not None:
                    parts.append(stream.feed(token))
                    _write(parts[-1])
        except KeyboardInterrupt:
            say("")
            say("stopped")
        parts.append(stream.end())
        _write(f"{parts[-1]}\n")
        found = "".join(parts)
        self.turns.append({"role": "assistant", "content": found})
        self.text += found

    def _prompt(self, said: str) -> list[int]:
        from gptlab.inference.chat import render_chat

        if self.opening is None:
            self.text += said
            return self.run.encode_prompt(self.text)
        self.turns.append({"role": "user", "content": said})
        try:
            written = render_chat(self.run.tokenizer, [*self.opening, *self.turns])
        except GptlabError:
            self.turns.pop()
            raise
        return self.run.tokenizer.encode(written, allow_special=True)


def _converse(talk: _Talk) -> None:
    """Until /quit or the end of the input."""
    asks = sys.stdin is not None and sys.stdin.isatty() and output().is_terminal
    while True:
        try:
            said = _read(asks)
        except KeyboardInterrupt:  # while nothing is being said, it clears the line
            if not asks:
                raise
            say("")
            continue
        match None if said is None else said.strip():
            case None | "/quit":
                return
            case "/reset":
                talk.reset()
                say("forgotten")
            case "":
                continue
            case text if text.startswith("/") and " " not in text and talk.opening is not None:
                say(f"there is no {text}; /reset forgets everything, /quit ends")
            case _:
                try:
                    talk.answer(said or "")
                except GptlabError as error:
                    if not asks:
                        raise
                    say(f"error: {error}")


def _read(asks: bool) -> str | None:
    """A line, None where there is no more. In a terminal it can be edited, and earlier ones come back."""
    if asks:
        import contextlib

        with contextlib.suppress(ImportError):  # not on every machine
            import readline  # noqa: F401 - input() edits with it
        try:
            return input("> ")
        except EOFError:
            _write("\n")
            return None
    if sys.stdin is None:
        raise GptlabError("standard input is closed, and a chat reads it; use gptlab sample")
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise GptlabError(f"standard input is not UTF-8: byte {error.start:,}; convert it first") from None
    return line.removesuffix("\n") if line else None


def _write(text: str) -> None:
    """To a terminal without what would ring its bell or move about in it; elsewhere as it is."""
    from rich.text import Text

    screen = output()
    if screen.is_terminal:
        screen.print(Text(text), end="")
    else:
        screen.file.write(text)
    screen.file.flush()
