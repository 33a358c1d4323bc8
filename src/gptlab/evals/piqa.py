"""PIQA: which of two ways reaches a goal of daily life (Bisk et al. 2019, arXiv:1911.11641)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_row, hub_file, shared, text


def question(row: Row, number: int) -> Question:
    """A question of PIQA's own file, or of LLM Foundry's."""
    if "query" in row:
        goal, choices, gold = foundry_row(row, "Question: ", (2,))
        goal = goal.removesuffix("\n")
    else:
        goal, choices, gold = text(row, "goal"), (text(row, "sol1"), text(row, "sol2")), int(row["label"])
    return shared(f"Question: {goal}\nAnswer:", choices, gold, number)


TASK = QuestionTask(
    "piqa",
    question,
    (QuestionFile("piqa.jsonl", hub_file("baber/piqa", "default", "validation")),),
    examples=(QuestionFile("piqa_train.jsonl", hub_file("baber/piqa", "default", "train")),),
    spare=True,
)

BENCHMARK = Benchmark("piqa", TASK.evaluate, columns("piqa"), files=TASK.files)
