"""BoolQ: a passage, and a question that yes or no answers (Clark et al. 2019, arXiv:1905.10044), as in SuperGLUE."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question, evaluate_by_sum
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_row, hub_file, passage_group, shared, text


def question(row: Row, number: int) -> Question:
    """A question of SuperGLUE's file, or of LLM Foundry's; those on one passage are one group."""
    if "query" in row:
        query, choices, gold = foundry_row(row, "Passage: ", (2,))
        if choices != ("no", "yes"):
            raise ValueError(f"its choices are {', '.join(choices)}, not no and yes")
        passage, _, asked = query.rpartition("\nQuestion: ")
        asked = asked.strip().removesuffix("?")
    else:
        passage, asked, gold = text(row, "passage"), text(row, "question"), int(row["label"])
    prompt = f"{passage}\nQuestion: {asked}?\nAnswer:"
    return shared(prompt, ("no", "yes"), gold, row.get("idx", number), group=passage_group(passage))


TASK = QuestionTask(
    "boolq",
    question,
    (QuestionFile("boolq.jsonl", hub_file("aps/super_glue", "boolq", "validation")),),
    examples=(QuestionFile("boolq_train.jsonl", hub_file("aps/super_glue", "boolq", "train")),),
    spare=True,
    score=evaluate_by_sum,
)

BENCHMARK = Benchmark("boolq", TASK.evaluate, columns("boolq", "acc"), files=TASK.files)
