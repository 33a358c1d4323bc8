"""The questions of benchmarks as texts, for who must not train on them."""

from __future__ import annotations

from pathlib import Path

from gptlab.errors import GptlabError, did_you_mean, option
from gptlab.evals import benchmark_names
from gptlab.evals.benchmark import Options, find_benchmark
from gptlab.evals.contamination import question_text
from gptlab.evals.questions import QuestionTask


def passages(name: str, folder: Path | None = None) -> list[tuple[str, str]]:
    """Each question of the benchmark `name`: what its data set calls it, and its text with the right answer.

    `folder`: of questions; None: as `find_questions` says. Raises GptlabError where there is no such benchmark, or none
    of questions, and where they are not to be had.
    """
    task = getattr(find_benchmark(name).run, "__self__", None)
    if not isinstance(task, QuestionTask):
        known = [each for each in benchmark_names() if _asks(each)]
        raise GptlabError(f"{option('tasks')}: {name!r} has no questions; {did_you_mean(name, known)}")
    questions, _, _ = task.ask(Options(task_data=folder))
    return [(str(question.id), question_text(question)) for question in questions]


def _asks(name: str) -> bool:
    return isinstance(getattr(find_benchmark(name).run, "__self__", None), QuestionTask)
