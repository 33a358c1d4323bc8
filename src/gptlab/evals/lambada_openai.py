"""LAMBADA: the last word of a passage, which takes the whole passage to know (Paperno et al. 2016, arXiv:1606.06031),
in the form of OpenAI's GPT-2 evaluations."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, Column, QuestionFile
from gptlab.evals.completion import evaluate_completions
from gptlab.evals.multiple_choice import Question
from gptlab.evals.questions import QuestionTask, Row, hub_file, text


def question(row: Row, number: int) -> Question:
    """A passage of OpenAI's file, or of LLM Foundry's. The word begins with its blank; as an example it stands after
    two, the harness's way."""
    if "continuation" in row:
        context, word = text(row, "context"), text(row, "continuation")
    else:
        context, _, word = text(row, "text").rpartition(" ")
    return Question(number, (context,), (f" {word}",), 0, delimiter="", example=f"{context}  {word}")


TASK = QuestionTask(
    "lambada_openai",
    question,
    (QuestionFile("lambada_openai.jsonl", hub_file("EleutherAI/lambada_openai", "default", "test")),),
    score=evaluate_completions,
)

BENCHMARK = Benchmark(
    "lambada_openai",
    TASK.evaluate,
    (Column("lambada_openai acc", "acc"), Column("perplexity", "perplexity", 2)),
    files=TASK.files,
)
