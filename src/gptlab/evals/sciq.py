"""SciQ: science questions from classrooms, each with a paragraph that holds the answer (Welbl et al. 2017,
arXiv:1707.06209)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question
from gptlab.evals.questions import QuestionTask, Row, columns, hub_file, shared, text


def question(row: Row, number: int) -> Question:
    """A question of SciQ's own file; its right answer stands last."""
    prompt = f"{text(row, 'support').lstrip()}\nQuestion: {text(row, 'question')}\nAnswer:"
    wrong = [text(row, f"distractor{place}") for place in (1, 2, 3)]
    return shared(prompt, (*wrong, text(row, "correct_answer")), 3, number)


TASK = QuestionTask(
    "sciq",
    question,
    (QuestionFile("sciq.jsonl", hub_file("allenai/sciq", "default", "test")),),
    examples=(QuestionFile("sciq_train.jsonl", hub_file("allenai/sciq", "default", "train")),),
)

BENCHMARK = Benchmark("sciq", TASK.evaluate, columns("sciq"), files=TASK.files)
