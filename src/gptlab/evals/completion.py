"""Completion: whether a model says the right words by itself, token by token, and how likely it finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptlab.evals.benchmark import Evaluation
from gptlab.evals.multiple_choice import (
    Answer,
    Question,
    mean,
    question_settings,
    say_truncated,
    sound_answers,
    summary,
)
from gptlab.parallel import World
from gptlab.run import Run


def evaluate_completions(
    run: Run, task: str, questions: Sequence[Question], path: Path | Sequence[Path], world: World | None = None
) -> Evaluation:
    """`acc`, the share of questions whose only choice is what greedy decoding says, and the choice's perplexity, as
    lm-evaluation-harness counts both (`loglikelihood` tasks): exp of the mean of −log p a *question*. Arguments and
    errors as of `evaluate_questions`.
    """
    answers = sound_answers(run, task, questions, world, greedy=True)
    records = [_record(answer) for answer in answers]
    results, errors = summary(records, ("acc",))
    nats, error = mean([-answer.logprobs[0] for answer in answers])
    results["perplexity"] = math.exp(min(nats, 700.0))
    errors["perplexity"] = None if error is None else results["perplexity"] * error
    results["bits_per_byte"], errors["bits_per_byte"] = mean([answer.bits_per_byte for answer in answers])
    results["chance"] = 0.0
    say_truncated(results, run, task, world)
    return Evaluation(task, results, errors, question_settings(path, run), records)


def _record(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.question.id,
        "acc": int(bool(answer.greedy[0])),
        "bits_per_byte": round(answer.bits_per_byte, 5),
        "logprobs": [round(answer.logprobs[0], 5)],
        "tokens": list(answer.tokens),
        "truncated": answer.truncated,
        **({} if answer.question.group is None else {"group": answer.question.group}),
    }
