"""What runs made of the prompts: taken from the book, and written where it is not there yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptlab.console import track
from gptlab.lab.judge.book import Answer, Book
from gptlab.lab.judge.study import Study
from gptlab.record.runfolder import digest_of_weights

Writer = Callable[[Path, Sequence[str]], Iterator[str]]
"""Continues prompts with the run in a folder, each text as soon as it is there: the lab itself has no models."""


def gather_texts(
    book: Book, study: Study, prompts: Sequence[str], sampling: Mapping[str, Any], write: Writer
) -> dict[tuple[Path, str], str]:
    """The text of every run for every prompt. What is not in the book is written by `write`, and kept one by one.

    `sampling`: what a text depends on beside weights and prompt.
    """
    missing = {run: [p for p in prompts if _key(run, p, sampling) not in book.answers.by_key] for run in study.runs}

    def written() -> Iterator[Answer]:
        for run, left in missing.items():
            if left:
                name = run.resolve().name
                for prompt, text in zip(left, write(run, left), strict=True):
                    yield Answer(_key(run, prompt, sampling), name, prompt, text)

    total = sum(map(len, missing.values()))
    for answer in track(written(), "writing", total=total, unit="texts", shown=total > 0):
        book.answers.append(answer)
    return {(run, p): book.answers.by_key[_key(run, p, sampling)][0].text for run in study.runs for p in prompts}


def _key(run: Path, prompt: str, sampling: Mapping[str, Any]) -> str:
    """24 digits of SHA-256 of weights, prompt and sampling."""
    text = json.dumps([digest_of_weights(run), prompt, dict(sampling)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
