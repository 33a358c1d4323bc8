"""Multiple choice: which of several continuations a model finds likeliest, as lm-evaluation-harness counts it.

Facts learnt from the harness (github.com/EleutherAI/lm-evaluation-harness, version 0.4:
`ConfigurableTask.process_results`), which the tests run beside this on the same model:

- A choice is appended to its context after one space, and scored as `likelihood` says.
- `acc` takes the choice with the largest sum of log p, `acc_norm` that with the largest sum a *character* of the
  choice (without the space before it). The first wins among equals.

Beside them stand their continuous cousins, which say more of a small model, whose accuracy is near chance (Schaeffer
et al. 2023, arXiv:2304.15004; Heineman et al. 2025, arXiv:2508.13144).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.console import say, track
from gptlab.errors import DataError, GptlabError, option
from gptlab.evals.benchmark import Evaluation
from gptlab.evals.intervals import groups_of, wilson
from gptlab.evals.likelihood import EncodedPair, PairEncoder, log_likelihoods
from gptlab.files import sha256_files
from gptlab.parallel import World
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer

DELIMITER = " "
"""What stands between a context and a choice."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: what its data set calls it.
        contexts, choices: a context and its continuation for each answer. HellaSwag's answers share their context;
            WinoGrande's share their continuation.
        gold: the number of the right answer, from 0.
        delimiter: what stands between context and choice.
        group: what it shares with other questions, such as a passage; None where it stands alone.
        subject: questions of one subject are examples for each other only.
        example: its text with the right answer, as an example for others; None: context, delimiter and choice.
    """

    id: int | str = field(compare=False)
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    delimiter: str = DELIMITER
    group: str | int | None = None
    subject: str = ""
    example: str | None = None

    @property
    def answered(self) -> str:
        """Its text with the right answer."""
        return self.example or self.contexts[self.gold] + self.delimiter + self.choices[self.gold]


@dataclass(frozen=True)
class Answer:
    """What a model said to a question.

    Attributes:
        logprobs: for each choice the sum of log p of its tokens, nats.
        tokens: for each choice how many tokens that were.
        truncated: whether a context had to be cut on the left.
        greedy: for each choice whether each of its tokens was the likeliest; None where that was not asked.
    """

    question: Question
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    truncated: bool
    greedy: tuple[bool | None, ...] = ()

    @property
    def predicted(self) -> int:
        """The choice that `acc` takes."""
        return int(np.argmax(self.logprobs))

    @property
    def per_character(self) -> np.ndarray:
        """log p a character of each choice, nats."""
        return np.array(self.logprobs) / np.array([float(len(choice)) for choice in self.question.choices])

    @property
    def predicted_norm(self) -> int:
        """The choice that `acc_norm` takes."""
        return int(np.argmax(self.per_character))

    @property
    def bits_per_byte(self) -> float:
        """−log₂ p of the right answer, by its UTF-8 bytes."""
        right = self.question.choices[self.question.gold]
        return -self.logprobs[self.question.gold] / math.log(2) / len(right.encode("utf-8"))

    @property
    def probability(self) -> float:
        """Of the right answer among the choices, each taken as exp(log p a character)."""
        scores = self.per_character
        weights = np.exp(scores - scores.max())
        return float(weights[self.question.gold] / weights.sum())

    @property
    def margin(self) -> float | None:
        """log p a character of the right answer less that of the best wrong one, nats; None where it is alone."""
        scores, gold = self.per_character, self.question.gold
        wrong = np.delete(scores, gold)
        return float(scores[gold] - wrong.max()) if len(wrong) else None

    def record(self) -> dict[str, Any]:
        """The row that is kept of it."""
        gold = self.question.gold
        margin = self.margin
        return {
            "id": self.question.id,
            "gold": gold,
            "predicted": self.predicted,
            "predicted_norm": self.predicted_norm,
            "acc": int(self.predicted == gold),
            "acc_norm": int(self.predicted_norm == gold),
            "bits_per_byte": round(self.bits_per_byte, 5),
            "probability": round(self.probability, 5),
            "margin": None if margin is None else round(margin, 5),
            "logprobs": [round(value, 5) for value in self.logprobs],
            "tokens": list(self.tokens),
            "truncated": self.truncated,
            **({} if self.question.group is None else {"group": self.question.group}),
        }


def answer_questions(
    run: Run, questions: Sequence[Question], *, description: str, world: World | None = None, greedy: bool = False
) -> list[Answer]:
    """Let the run's model answer `questions`, in their order; `description` names the progress bar. The processes of
    `world` share the work, and all of them get all answers. `greedy` as of `log_likelihoods`.

    Raises DataError where a choice has no tokens or does not fit the model's context, or the tokenizer cannot
    encode a text.
    """
    length: int = run.model.context_length
    world = world or World()
    listed = track(questions, f"{description}: encoding", total=len(questions), unit="questions", shown=world.is_main)
    encoded = [encode_question(run.tokenizer, question, length) for question in listed]
    every = [pair for pairs in encoded for pair in pairs]
    found = log_likelihoods(run, every, description=description, world=world, greedy=greedy)
    answers, done = [], 0
    for question, pairs in zip(questions, encoded, strict=True):
        own = found[done : done + len(pairs)]
        done += len(pairs)
        answers.append(
            Answer(
                question,
                tuple(one.logprob for one in own),
                tuple(pair.count for pair in pairs),
                any(pair.truncated for pair in pairs),
                tuple(one.greedy for one in own),
            )
        )
    return answers


def encode_question(tokenizer: Tokenizer, question: Question, context_length: int) -> list[EncodedPair]:
    """The ids of each answer of a question. Raises DataError as `answer_questions`."""
    encode = PairEncoder(tokenizer, context_length)
    try:
        return [
            encode(context, question.delimiter + choice)
            for context, choice in zip(question.contexts, question.choices, strict=True)
        ]
    except DataError as error:
        raise DataError(f"question {question.id}: {error}") from None


def accuracy(correct: Sequence[int]) -> tuple[float, float | None]:
    """Share of ones, and its standard error √(p (1 − p) / (n − 1)), the harness's; None for a single question."""
    n, p = len(correct), sum(correct) / len(correct)
    return p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None


def evaluate_questions(
    run: Run,
    task: str,
    questions: Sequence[Question],
    path: Path | Sequence[Path],
    world: World | None = None,
    metrics: Sequence[str] = ("acc", "acc_norm"),
) -> Evaluation:
    """`acc`, `acc_norm` and their cousins over `questions` of the benchmark `task`, with a record of each. `path`:
    their file, or files; `world`: the processes that share the work; `metrics`: the accuracies that count.

    Raises GptlabError where a probability is not finite, DataError where a question does not fit the model.
    """
    answers = sound_answers(run, task, questions, world)
    records = [answer.record() for answer in answers]
    results, errors = summary(records, metrics)
    for key in ("bits_per_byte", "probability", "margin"):
        values = [record[key] for record in records]
        if None not in values:
            results[key], errors[key] = mean(values)
    results["chance"] = sum(1 / len(question.choices) for question in questions) / len(questions)
    say_truncated(results, run, task, world)
    return Evaluation(task, results, errors, question_settings(path, run), records)


evaluate_by_sum = functools.partial(evaluate_questions, metrics=("acc",))
"""Of benchmarks that are marked by the likeliest choice, whatever its length."""


def sound_answers(
    run: Run, task: str, questions: Sequence[Question], world: World | None = None, *, greedy: bool = False
) -> list[Answer]:
    """As `answer_questions`, for the benchmark `task`. Raises GptlabError where a probability is not finite."""
    try:
        answers = answer_questions(run, questions, description=f"{run.folder.name}: {task}", world=world, greedy=greedy)
    except DataError as error:
        raise DataError(f"{task} with {run.folder}: {error}") from None
    if not all(math.isfinite(value) for answer in answers for value in answer.logprobs):
        raise GptlabError(f"{run.folder}: a probability is not finite; evaluate an earlier {option('checkpoint')}")
    return answers


def summary(
    records: Sequence[dict[str, Any]], metrics: Sequence[str]
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Accuracies over records with their intervals and standard errors, how many questions, and how many were cut."""
    results: dict[str, Any] = {}
    errors: dict[str, float | None] = {}
    groups = groups_of(records)
    for metric in metrics:
        results[metric], errors[metric] = accuracy([record[metric] for record in records])
    results["questions"] = len(records)
    results["truncated"] = sum(record["truncated"] for record in records)
    results["intervals"] = {
        metric: [round(end, 6) for end in wilson([record[metric] for record in records], groups)] for metric in metrics
    }
    return results, errors


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of values, and its standard error; None for a single one."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None


def question_settings(path: Path | Sequence[Path], run: Run) -> dict[str, Any]:
    """What the numbers of questions depend on beside the run: their files, and how much of one fits."""
    paths = [path] if isinstance(path, Path) else list(path)
    name = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
    return {"file": name, "sha256": sha256_files(paths), "context_length": run.model.context_length}


def say_truncated(results: dict[str, Any], run: Run, task: str, world: World | None) -> None:
    """Say how many questions had to be cut."""
    if results["truncated"] and (world is None or world.is_main):
        cut = f"{results['truncated']} of {results['questions']} questions"
        say(f"{task}: {cut} are longer than {run.model.context_length} tokens and were cut on the left")
