"""ARC, easy: science questions of grades 3 to 9 that a search engine answers (Clark et al. 2018, arXiv:1803.05457)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_row, hub_file, labelled, shared, text


def question(row: Row, number: int) -> Question:
    """A question of ARC's own file, or of LLM Foundry's."""
    if "query" in row:
        asked, choices, gold = foundry_row(row, "Question: ", (3, 4, 5))
    else:
        asked, (choices, gold) = text(row, "question"), labelled(row)
    return shared(f"Question: {asked}\nAnswer:", choices, gold, row.get("id", number))


TASK = QuestionTask(
    "arc_easy",
    question,
    (QuestionFile("arc_easy.jsonl", hub_file("allenai/ai2_arc", "ARC-Easy", "test")),),
    examples=(QuestionFile("arc_easy_train.jsonl", hub_file("allenai/ai2_arc", "ARC-Easy", "train")),),
)

BENCHMARK = Benchmark("arc_easy", TASK.evaluate, columns("arc_easy"), files=TASK.files)
