"""HellaSwag (Zellers et al. 2019, arXiv:1905.07830): which of four endings continues a scene."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from gptlab.errors import DataError
from gptlab.evals.benchmark import Benchmark, Column, Evaluation, Options, QuestionFile, find_questions
from gptlab.evals.multiple_choice import Question, evaluate_questions
from gptlab.run import Run

FILE = "hellaswag_val.jsonl"
URL = f"https://raw.githubusercontent.com/rowanz/hellaswag/master/data/{FILE}"
QUESTIONS = QuestionFile(FILE, URL)
"""The validation questions as their authors publish them; the test questions have no public answers."""


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The first `limit` questions (all for None) of a JSON-lines file, plain or gzipped.

    The authors' file is cleaned as lm-evaluation-harness does it: `ctx_a`, then `ctx_b` with its first letter
    large and all others small, WikiHow's markup removed. A file without those two fields has a `ctx` that is
    taken as it is. Raises DataError where the file is missing, damaged, or holds something else.
    """
    questions: list[Question] = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(questions) == limit:
                    break
                if line.strip():
                    questions.append(_question(line, f"{path}, line {number}", len(questions)))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file again: {URL}") from None
    if not questions:
        raise DataError(f"{path}: holds no questions; get the file again: {URL}")
    return questions


def clean(text: str) -> str:
    """Text without WikiHow's markup: ` [title]` ends a sentence, other brackets go, then double blanks are halved."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _question(line: str, place: str, index: int) -> Question:
    try:
        row = json.loads(line)
        raw = "ctx_a" in row
        context = f"{_text(row, 'ctx_a')} {_text(row, 'ctx_b').capitalize()}" if raw else _text(row, "ctx")
        query = f"{_text(row, 'activity_label')}: {context}"
        endings = [_text(row["endings"], number) for number in range(len(row["endings"]))]
        gold = int(row["label"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{place}: is no HellaSwag question ({what}); get the file again: {URL}") from None
    if not 0 <= gold < len(endings):
        raise DataError(f"{place}: label {gold} is not one of the {len(endings)} endings; get the file again: {URL}")
    if raw:
        query, endings = clean(query), [clean(ending) for ending in endings]
    if not all(endings):
        raise DataError(f"{place}: an ending is empty; get the file again: {URL}")
    return Question(row.get("ind", index), (query,) * len(endings), tuple(endings), gold)


def _text(holder: Any, key: str | int) -> str:
    value = holder[key]
    if not isinstance(value, str) or isinstance(holder, str):
        raise TypeError(f"{key} is {type(value).__name__}, not text")
    return value


def evaluate_hellaswag(run: Run, options: Options) -> Evaluation:
    """HellaSwag's `acc` and `acc_norm`, with a record of each question."""
    path = find_questions("hellaswag", QUESTIONS, options.task_data)
    questions = read_questions(path, options.limit)
    return evaluate_questions(run, "hellaswag", questions, path, options.world)


BENCHMARK = Benchmark(
    "hellaswag",
    evaluate_hellaswag,
    (Column("hellaswag acc", "acc"), Column("acc_norm", "acc_norm")),
    files=(QUESTIONS,),
)
