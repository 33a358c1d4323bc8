"""COPA: which of two sentences is the cause or the effect of a third (Roemmele et al. 2011), as in SuperGLUE (Wang et
al. 2019, arXiv:1905.00537)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question, evaluate_by_sum
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_row, hub_file, shared, text

CONNECTORS = {"cause": "because", "effect": "therefore"}


def question(row: Row, number: int) -> Question:
    """A question of SuperGLUE's file, or of LLM Foundry's: the premise without its full stop, then because or
    therefore. Each choice begins with a blank of its own, as the harness has it."""
    if "query" in row:
        query, choices, gold = foundry_row(row, "", (2,))
        premise, connector = query.rsplit(maxsplit=1)
        if connector not in CONNECTORS.values():
            raise ValueError(f"ends in {connector!r}, neither because nor therefore")
        premise = premise.removesuffix(",")
    else:
        premise, connector = text(row, "premise").strip()[:-1], CONNECTORS[text(row, "question")]
        choices, gold = (text(row, "choice1"), text(row, "choice2")), int(row["label"])
    small = tuple(f" {choice[0].lower()}{choice[1:]}" for choice in choices)
    return shared(f"{premise} {connector}", small, gold, row.get("idx", number))


TASK = QuestionTask(
    "copa",
    question,
    (QuestionFile("copa.jsonl", hub_file("aps/super_glue", "copa", "validation")),),
    examples=(QuestionFile("copa_train.jsonl", hub_file("aps/super_glue", "copa", "train")),),
    spare=True,
    score=evaluate_by_sum,
)

BENCHMARK = Benchmark("copa", TASK.evaluate, columns("copa", "acc"), files=TASK.files)
