"""MMLU: exam questions of 57 subjects, answered by a letter (Hendrycks et al. 2020, arXiv:2009.03300)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question, evaluate_by_sum
from gptlab.evals.questions import QuestionTask, Row, columns, hub_file, lettered, text, texts


def question(row: Row, number: int) -> Question:
    """A question of the file that holds all subjects."""
    asked, subject = text(row, "question").strip(), text(row, "subject")
    return lettered(asked, texts(row, "choices"), int(row["answer"]), number, subject=subject)


def opening(subject: str) -> str:
    """What the prompt begins with."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


TASK = QuestionTask(
    "mmlu",
    question,
    (QuestionFile("mmlu.jsonl", hub_file("cais/mmlu", "all", "test")),),
    examples=(QuestionFile("mmlu_dev.jsonl", hub_file("cais/mmlu", "all", "dev")),),
    describe=opening,
    score=evaluate_by_sum,
)

BENCHMARK = Benchmark("mmlu", TASK.evaluate, columns("mmlu", "acc"), files=TASK.files)
