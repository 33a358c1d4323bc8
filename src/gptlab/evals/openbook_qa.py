"""OpenBookQA: elementary science that takes a fact and common sense (Mihaylov et al. 2018, arXiv:1809.02789)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_row, hub_file, labelled, shared, text


def question(row: Row, number: int) -> Question:
    """A question of OpenBookQA's own file, or of LLM Foundry's; its stem is all of the prompt."""
    if "query" in row:
        stem, choices, gold = foundry_row(row, "", (4,))
    else:
        stem, (choices, gold) = text(row, "question_stem"), labelled(row)
    return shared(stem, choices, gold, row.get("id", number))


TASK = QuestionTask(
    "openbook_qa",
    question,
    (QuestionFile("openbook_qa.jsonl", hub_file("allenai/openbookqa", "main", "test")),),
    examples=(QuestionFile("openbook_qa_train.jsonl", hub_file("allenai/openbookqa", "main", "train")),),
)

BENCHMARK = Benchmark("openbook_qa", TASK.evaluate, columns("openbook_qa"), files=TASK.files)
