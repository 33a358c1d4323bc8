"""WinoGrande: which of two names belongs into a gap, by how well the rest of the sentence follows it (Sakaguchi et al.
2019, arXiv:1907.10641; scored by the rest as in Trinh and Le 2018, arXiv:1806.02847)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, QuestionFile
from gptlab.evals.multiple_choice import Question, evaluate_by_sum
from gptlab.evals.questions import QuestionTask, Row, columns, foundry_schema, hub_file, text


def question(row: Row, number: int) -> Question:
    """A question of WinoGrande's own file, or of LLM Foundry's."""
    if "context_options" in row:
        contexts, rest, gold = foundry_schema(row)
    else:
        before, gap, after = text(row, "sentence").partition("_")
        if not gap:
            raise ValueError("its sentence has no gap")
        contexts = (before + text(row, "option1"), before + text(row, "option2"))
        rest, gold = after.strip(), {"1": 0, "2": 1}[text(row, "answer")]
    return Question(number, contexts, (rest,) * 2, gold)


TASK = QuestionTask(
    "winogrande",
    question,
    (QuestionFile("winogrande.jsonl", hub_file("allenai/winogrande", "winogrande_xl", "validation")),),
    examples=(QuestionFile("winogrande_train.jsonl", hub_file("allenai/winogrande", "winogrande_xl", "train")),),
    spare=True,
    score=evaluate_by_sum,
)

BENCHMARK = Benchmark("winogrande", TASK.evaluate, columns("winogrande", "acc"), files=TASK.files)
