"""HellaSwag (Zellers et al. 2019, arXiv:1905.07830): which of four endings continues a scene."""

from __future__ import annotations

import re
from pathlib import Path

from gptlab.evals import questions
from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question
from gptlab.evals.questions import QuestionTask, Row, columns, hub_file, shared, text, texts

FILE = "hellaswag_val.jsonl"
URL = f"https://raw.githubusercontent.com/rowanz/hellaswag/master/data/{FILE}"
QUESTIONS = QuestionFile(FILE, URL)
"""The validation questions as their authors publish them; the test questions have no public answers."""


def clean(scene: str) -> str:
    """Text without WikiHow's markup: ` [title]` ends a sentence, other brackets go, then double blanks are halved."""
    scene = scene.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", scene).replace("  ", " ")


def question(row: Row, number: int) -> Question:
    """A question of the authors' file, cleaned as lm-evaluation-harness does it: `ctx_a`, then `ctx_b` with its first
    letter large and all others small, WikiHow's markup removed. A row without those two has a `ctx` that is taken as it
    is."""
    raw = "ctx_a" in row
    context = f"{text(row, 'ctx_a')} {text(row, 'ctx_b').capitalize()}" if raw else text(row, "ctx")
    query, endings = f"{text(row, 'activity_label')}: {context}", texts(row, "endings")
    if raw:
        query, endings = clean(query), tuple(clean(ending) for ending in endings)
    return shared(query, endings, int(row["label"]), row.get("ind", number))


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The first `limit` questions (all for None) of the authors' file, or one like it. Raises DataError where it is
    missing, damaged, or holds something else."""
    return questions.read_questions(path, "hellaswag", question, URL, limit)


TASK = QuestionTask(
    "hellaswag",
    question,
    (QUESTIONS,),
    examples=(QuestionFile("hellaswag_train.jsonl", hub_file("Rowan/hellaswag", "default", "train")),),
    spare=True,
)

BENCHMARK = Benchmark("hellaswag", TASK.evaluate, columns("hellaswag"), files=TASK.files)
