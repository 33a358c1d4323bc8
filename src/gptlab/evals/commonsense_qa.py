"""CommonsenseQA: which of five concepts answers a question of common sense, by its letter (Talmor et al. 2019,
arXiv:1811.00937)."""

from __future__ import annotations

import re

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question, evaluate_by_sum
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_row, hub_file, labelled, lettered, text


def question(row: Row, number: int) -> Question:
    """A question of CommonsenseQA's own file, or of LLM Foundry's, which has four of the five choices."""
    if "query" in row:
        query, letters, gold = foundry_row(row, "Question: ", (4, 5))
        asked, _, rest = query.partition("\nChoices:\n")
        choices = tuple(re.findall(r"^[A-Z]\. (.*)$", rest, re.M))
        if len(choices) != len(letters):
            raise ValueError("its choices are not listed by letters")
    else:
        asked, (choices, gold) = text(row, "question"), labelled(row)
    return lettered(f"Question: {asked.strip()}", choices, gold, row.get("id", number))


TASK = QuestionTask(
    "commonsense_qa",
    question,
    (QuestionFile("commonsense_qa.jsonl", hub_file("tau/commonsense_qa", "default", "validation")),),
    examples=(QuestionFile("commonsense_qa_train.jsonl", hub_file("tau/commonsense_qa", "default", "train")),),
    spare=True,
    score=evaluate_by_sum,
)

BENCHMARK = Benchmark("commonsense_qa", TASK.evaluate, columns("commonsense_qa", "acc"), files=TASK.files)
