"""RACE: reading comprehension from English exams for pupils of 15 to 18 (Lai et al. 2017, arXiv:1704.04683)."""

from __future__ import annotations

import ast
from typing import Any

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question, evaluate_by_sum
from gptlab.evals.questions import QuestionTask, Row, columns, hub_file, shared, text, texts

GAP = "  _  ."


def question(row: Row, number: int) -> Question:
    """The last problem of an article, the others before it with their answers, as lm-evaluation-harness asks it."""
    problems: list[dict[str, Any]] = ast.literal_eval(text(row, "problems"))
    prompt = f"Article: {text(row, 'article')}\n\n"
    for problem in problems[:-1]:
        asked, answer = text(problem, "question"), texts(problem, "options")["ABCD".index(text(problem, "answer"))]
        # A sentence that ends in a gap is completed.
        completed = f"{asked.removesuffix(GAP)} {answer}\n" if asked.endswith(GAP) else None
        prompt += completed or f"Question: {asked}\nAnswer: {answer}\n"
    last = problems[-1]
    choices, gold = texts(last, "options")[:4], "ABCD".index(text(last, "answer"))
    return shared(prompt + text(last, "question"), choices, gold, number)


TASK = QuestionTask(
    "race",
    question,
    (QuestionFile("race.jsonl", hub_file("EleutherAI/race", "high", "test")),),
    score=evaluate_by_sum,
)

BENCHMARK = Benchmark("race", TASK.evaluate, columns("race", "acc"), files=TASK.files)
