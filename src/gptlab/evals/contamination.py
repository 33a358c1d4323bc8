"""Contamination: which questions a model may have read in training.

A question is seen where N tokens of it in a row, with its right answer, stand in the training data (13 words in Brown
et al. 2020, arXiv:2005.14165, appendix C; here tokens of the run's own tokenizer, which the data are made of). The
questions' N-grams are few, so they are kept, and the data are read past them once: nothing has to be built when they
are prepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptlab.console import say, track
from gptlab.data.ngrams import ngrams
from gptlab.evals.benchmark import Evaluation
from gptlab.evals.multiple_choice import Question, summary
from gptlab.evals.validation import data_sets
from gptlab.run import Run

N = 13
"""Tokens in a row."""

_CHUNK = 2**20  # tokens that are hashed at once
_BITS = 24
_SHIFT = np.uint64(64 - _BITS)


def mark_seen(run: Run, found: Evaluation, questions: Sequence[Question], *, shown: bool) -> dict[str, Any]:
    """Mark the records of questions that the run was trained on, add what the others alone come to, say it where
    `shown`, and return what it was read from. Raises as `seen_questions`."""
    seen, read = seen_questions(run, questions)
    for record, one in zip(found.records, seen, strict=True):
        record["seen"] = one
    unseen = [record for record in found.records if not record["seen"]]
    found.results["seen"], found.results["too_short_to_tell"] = sum(map(bool, seen)), seen.count(None)
    metrics = [metric for metric in ("acc", "acc_norm") if metric in found.results]
    without, errors = summary(unseen, metrics) if unseen else ({}, {})
    for metric in metrics:
        found.results[f"{metric}_unseen"] = without.get(metric)
        found.standard_errors[f"{metric}_unseen"] = errors.get(metric)
    if shown:
        less = "".join(f"; {metric} {without[metric]:.4f} without them" for metric in metrics if unseen)
        short = f" ({seen.count(None)} are too short to tell)" if None in seen else ""
        count = f"{found.results['seen']} of {len(seen)} questions"
        say(f"{found.task}: {count} are in the training data{short}{less}")
    return read


def seen_questions(run: Run, questions: Sequence[Question]) -> tuple[list[bool | None], dict[str, Any]]:
    """Whether each question is in the run's training data, None for one of fewer than N tokens; and what was read.

    Raises DataError where the run names no data, or they are gone or were made with another tokenizer.
    """
    sets = data_sets(run.folder, run.config.data, run.tokenizer, None, "train")
    asked = [np.array(run.tokenizer.encode(question_text(question)), dtype=np.uint64) for question in questions]
    grams = [ngrams(ids, N) for ids in asked]
    known = np.unique(np.concatenate([*grams, np.zeros(0, dtype=np.uint64)]))
    found = np.zeros(len(known), dtype=bool)
    maybe = np.zeros(1 << _BITS, dtype=bool)  # nearly all N-grams of the data end here, at one reading
    maybe[known >> _SHIFT] = True
    for name, dataset in sets.items():
        starts = range(0, max(0, dataset.tokens - N + 1), _CHUNK)
        title = f"{run.folder.name}: looking for questions in {'the training data' if name == 'data' else name}"
        for start in track(starts, title, total=len(starts), unit="M tokens"):
            ids = dataset.read(start, min(_CHUNK + N - 1, dataset.tokens - start)).astype(np.uint64)
            likely = ngrams(ids, N)
            likely = likely[maybe[likely >> _SHIFT]]
            places = np.searchsorted(known, likely).clip(max=max(0, len(known) - 1))
            found[places[known[places] == likely]] = True
    seen = [bool(found[np.searchsorted(known, gram)].any()) if len(gram) else None for gram in grams]
    read = {name: dataset.fingerprint for name, dataset in sets.items()}
    return seen, {"tokens_in_a_row": N, "training_data": read}


def question_text(question: Question) -> str:
    """A question with its right answer."""
    return question.contexts[question.gold] + question.delimiter + question.choices[question.gold]
