"""Errors meant for the person at the keyboard.

Everything a user can get wrong raises `GptlabError` (or a subclass): one line that says what is wrong, where, and
how to mend it. The command line prints that line and exits with code 2; anything else is a defect of gptlab
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GptlabError(Exception):
    """A mistake or a condition that the user can mend. `str(error)` is one line: cause, place, fix."""


class ConfigError(GptlabError):
    """A configuration that cannot describe a run: unknown key, wrong type, impossible shape."""


class DataError(GptlabError):
    """Data or a tokenizer that is missing, damaged, empty, or does not fit the run."""


class CheckpointError(GptlabError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class TrainingError(GptlabError):
    """Training that must stop: a loss that is not finite, a spike, a step that does not fit in memory."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A hint to append to an error: the closest valid name, or the list of them when nothing is close."""
    names = sorted(valid)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    return f"valid: {', '.join(names)}" if names else "nothing is valid here"
