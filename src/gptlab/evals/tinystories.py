"""TinyStories: how stories for children go on, from a sentence's end near their middle (Eldan and Li 2023,
arXiv:2305.07759).

The paper lets a large model grade such continuations (`gptlab judge` does). What can be counted without one is counted
here: bits per byte of how the story truly went on, and how much the model repeats itself when it goes on greedily:
seq-rep-4 (Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", arXiv:1908.04319, section 6), the
share of 4-grams that were there before, and distinct-2 (Li et al. 2016, arXiv:1510.03055), the share of different
2-grams. Both are by words, not by tokens, so that models with unlike tokenizers compare, and both are counted of the
true continuations too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlab.errors import DataError, GptlabError, option
from gptlab.evals.benchmark import Benchmark, Column, Evaluation, Options, QuestionFile, find_questions
from gptlab.evals.generation import say_all
from gptlab.evals.likelihood import EncodedPair, log_likelihoods
from gptlab.evals.multiple_choice import mean, question_settings, say_truncated
from gptlab.evals.perplexity import read_text
from gptlab.evals.questions import read_rows, text
from gptlab.evals.validation import ratio_error
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer

FILE = QuestionFile(
    "TinyStories-valid.txt",
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStories-valid.txt",
)
BETWEEN = "<|endoftext|>"
"""What stands between two stories of the file."""

NEW_TOKENS = 200
"""A continuation ends here at the latest; the file's stories have some 200 tokens in all."""

_SENTENCE = re.compile(r"[.!?][\"'”’)]*(?=\s)")


@dataclass(frozen=True)
class Story:
    """A story, cut in two at the end of a sentence; what follows begins with its blank."""

    beginning: str
    rest: str


def cut(story: str) -> Story | None:
    """A story, cut at the sentence's end that is nearest its middle, the first of two; None where it has none before
    its last."""
    story = story.strip()
    ends = [match.end() for match in _SENTENCE.finditer(story)]
    if not ends:
        return None
    end = min(ends, key=lambda place: abs(2 * place - len(story)))
    return Story(story[:end], story[end:])


def stories(path: Path, limit: int | None) -> list[Story]:
    """The first `limit` stories of a file that can be cut, of the authors' text or of Parquet, a story a row.

    Raises DataError where it cannot be read, or holds none.
    """
    if path.suffix == ".parquet":
        rows = read_rows(path, "tinystories", FILE.url)
        try:
            every = [text(row, "text") for _, row in rows]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: holds no stories (no text in its rows: {error}); get it: {FILE.url}") from None
    else:
        every = read_text(path, FILE.url).split(BETWEEN)
    found = [story for one in every if (story := cut(one)) is not None]
    if not found:
        raise DataError(f"{path}: holds no story of two sentences; get the file again: {FILE.url}")
    return found[:limit]


def repeated(words: Sequence[str], n: int = 4) -> float | None:
    """seq-rep-n: 1 less the share of different ones among all n-grams of words; None where there is no n-gram."""
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def encode(tokenizer: Tokenizer, story: Story, context_length: int) -> list[EncodedPair]:
    """What follows, in pieces of half a context at most, each after as much of the story as fits.

    Raises DataError where what follows has no tokens of its own.
    """
    ids = [tokenizer.end_of_text, *tokenizer.encode(story.beginning + story.rest)]
    begin, size = 1 + len(tokenizer.encode(story.beginning)), max(1, context_length // 2)
    if begin >= len(ids):
        raise DataError(f"tinystories: {story.rest[:40]!r} has no tokens of its own; mend the file")
    pairs = []
    for start in range(begin, len(ids), size):
        end = min(len(ids), start + size)
        first = max(0, end - context_length - 1)
        pairs.append(EncodedPair(ids[first:end], end - start, first > 0))
    return pairs


def evaluate_tinystories(run: Run, options: Options) -> Evaluation:
    """Bits per byte of true continuations, and repetition in the run's own, with a record of each story.

    Raises GptlabError where a probability is not finite, DataError where there are no stories, or the tokenizer cannot
    encode one.
    """
    path = find_questions("tinystories", FILE, options.task_data)
    asked, length = stories(path, options.limit), run.model.context_length
    name = f"{run.folder.name}: tinystories"
    encoded = [encode(run.tokenizer, story, length) for story in asked]
    pairs = [pair for own in encoded for pair in own]
    found = iter(log_likelihoods(run, pairs, description=name, world=options.world))
    nats = torch.tensor([-sum(next(found).logprob for _ in own) for own in encoded], dtype=torch.float64)
    if not nats.isfinite().all():
        raise GptlabError(f"{run.folder}: a probability is not finite; evaluate an earlier {option('checkpoint')}")
    new = min(NEW_TOKENS, max(1, length // 2))
    whole = [run.encode_prompt(story.beginning) for story in asked]
    prompts = [ids[-max(1, length - new) :] for ids in whole]
    said = say_all(run, prompts, f"{name}: writing", options.world, stops=(), new_tokens=new)
    records = [
        _record(number, story, cost, words)
        for number, (story, cost, words) in enumerate(zip(asked, nats.tolist(), said, strict=True))
    ]
    for record, ids, kept in zip(records, whole, prompts, strict=True):
        record["truncated"] = len(kept) < len(ids)
    results, errors = _numbers(nats, records)
    say_truncated(results, run, "tinystories", options.world)
    settings = {**question_settings(path, run), "new_tokens": new, "temperature": 0}
    return Evaluation("tinystories", results, errors, settings, records)


def _record(number: int, story: Story, nats: float, said: str) -> dict[str, Any]:
    """The row that is kept of a story."""
    size = len(story.rest.encode("utf-8"))
    counted = {"": said.split(), "_true": story.rest.split()}
    four = {f"seq_rep_4{of}": repeated(words) for of, words in counted.items()}
    two = {of: repeated(words, 2) for of, words in counted.items()}
    pairs = {f"distinct_2{of}": None if value is None else 1 - value for of, value in two.items()}
    numbers = {"bits_per_byte": nats / math.log(2) / size, **four, **pairs}
    rounded = {key: None if value is None else round(value, 5) for key, value in numbers.items()}
    return {"id": number, **rounded, "bytes": size, "prompt": story.beginning, "said": said, "true": story.rest}


def _numbers(nats: torch.Tensor, records: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Over all stories, with standard errors: bits per byte a ratio of sums, the others means over the stories in which
    so many words follow that there is something to count."""
    sizes = torch.tensor([float(record["bytes"]) for record in records], dtype=torch.float64)
    error = ratio_error(nats, sizes)
    results: dict[str, Any] = {"bits_per_byte": float(nats.sum() / sizes.sum()) / math.log(2)}
    errors: dict[str, float | None] = {"bits_per_byte": None if error is None else error / math.log(2)}
    for key in ("seq_rep_4", "seq_rep_4_true", "distinct_2", "distinct_2_true"):
        values = [record[key] for record in records if record[key] is not None]
        results[key], errors[key] = mean(values) if values else (None, None)
    results["questions"] = len(records)
    results["truncated"] = sum(record["truncated"] for record in records)
    return results, errors


BENCHMARK = Benchmark(
    "tinystories",
    evaluate_tinystories,
    (
        Column("tinystories bits/byte", "bits_per_byte"),
        Column("seq-rep-4", "seq_rep_4"),
        Column("distinct-2", "distinct_2"),
    ),
    files=(FILE,),
    accuracy=False,
)
