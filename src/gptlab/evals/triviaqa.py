"""TriviaQA: trivia answered in one's own words, without anything to look it up in (Joshi et al. 2017,
arXiv:1705.03551)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, Column, QuestionFile
from gptlab.evals.generation import evaluate_generations
from gptlab.evals.multiple_choice import Question
from gptlab.evals.questions import QuestionTask, Row, hub_file, shared, text, texts


def question(row: Row, number: int) -> Question:
    """A question and all names that its answer goes by."""
    prompt = f"Question: {text(row, 'question')}?\nAnswer:"
    return shared(prompt, texts(row["answer"], "aliases"), 0, row.get("question_id", number))


TASK = QuestionTask(
    "triviaqa",
    question,
    (QuestionFile("triviaqa.jsonl", hub_file("mandarjoshi/trivia_qa", "rc.nocontext", "validation")),),
    examples=(QuestionFile("triviaqa_train.jsonl", hub_file("mandarjoshi/trivia_qa", "rc.nocontext", "train")),),
    spare=True,
    score=evaluate_generations,
)

BENCHMARK = Benchmark("triviaqa", TASK.evaluate, (Column("triviaqa exact match", "acc"),), files=TASK.files)
