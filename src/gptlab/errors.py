"""Errors meant for the person at the keyboard.

Everything a user can get wrong raises `GptlabError` (or a subclass): one line that says what is wrong, where, and
how to mend it. The command line prints that line and exits with the error's `exit_code`: 2, or 3 for a run that
diverged (a run that was stopped before its end, and saved, ends with `STOPPED`, 4). Anything else is a defect of gptlab
and keeps its traceback. What a program must know of an error is an attribute of it: nothing decides by the wording of a
message.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator

STOPPED = 4
"""The exit code of a training that was told to stop before its end: it saved, and `--resume` goes on."""


class GptlabError(Exception):
    """A mistake or a condition that the user can mend. `str(error)` is one line: cause, place, fix."""

    exit_code = 2


class ConfigError(GptlabError):
    """A configuration that cannot describe a run: unknown key, wrong type, impossible shape.

    `key`: the dotted key that it is about (`model.block.mlp`), where one key is to blame.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class BusyError(GptlabError):
    """Something that another process holds: a run that it trains, a data set that it writes."""


class DataError(GptlabError):
    """Data or a tokenizer that is missing, damaged, empty, or does not fit the run."""


class CheckpointError(GptlabError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class TrainingError(GptlabError):
    """Training that must stop: a step that does not fit in memory, a stream that ends."""


class DivergedError(TrainingError):
    """A loss or a gradient that is not finite, or a loss that jumped: trained again, the run would come to this again.

    `step`: the optimizer step at which it showed.
    """

    exit_code = 3

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


_COMMAND_LINE = "GPTLAB_COMMAND_LINE"  # in the environment, so that processes started for a command speak as it does
_ARGUMENTS = {"input": "inputs", "set": "overrides", "vocab_size": "vocab_sizes"}  # options that Python calls otherwise
_LISTS = ("overrides", "vocab_sizes")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|[\d.,e+-]+")


@contextlib.contextmanager
def speaking_of_options() -> Iterator[None]:
    """Within: who reads an error is at the command line, and gave options; elsewhere, they called a function."""
    os.environ[_COMMAND_LINE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_COMMAND_LINE, None)


def option(name: str, value: object = None, *, argument: str | None = None) -> str:
    """An option, in the words of those who will read of it: `--shard-size 100` at the command line, `shard_size=100` in
    Python. Every message outside `cli/` names options with it.

    `value`: what was given or is to be given, or a placeholder in capitals; True for a switch; None for the bare name.
    `argument`: what Python calls it, where that is another name.
    """
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if os.environ.get(_COMMAND_LINE):
        flag = f"--{name.replace('_', '-')}"
        return flag if value is None or value is True else f"{flag} {text}"
    argument = argument or _ARGUMENTS.get(name, name)
    if value is None:
        return argument
    shown = text if not isinstance(value, str | os.PathLike) or _PLACEHOLDER.fullmatch(text) else repr(text)
    return f"{argument}=[{shown}]" if argument in _LISTS else f"{argument}={shown}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A hint to append to an error: the closest valid name, or the list of them when nothing is close."""
    names = sorted(valid)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    return f"valid: {', '.join(names)}" if names else "nothing is valid here"
