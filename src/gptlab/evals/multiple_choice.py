"""Multiple choice: which of several continuations a model finds likeliest, as lm-evaluation-harness counts it.

Facts learnt from the harness (github.com/EleutherAI/lm-evaluation-harness, version 0.4: `TemplateLM._encode_pair`,
`HFLM._loglikelihood_tokens`, `ConfigurableTask.process_results`), which the tests run beside this on the same model:

- A choice is appended to its context after one space. Both are encoded as one text; the choice's tokens are those
  after as many as the context alone has. Blanks at the context's end go to the choice.
- What does not fit the model's context is cut on the left.
- `acc` takes the choice with the largest sum of log p, `acc_norm` that with the largest sum a *character* of the
  choice (without the space before it). The first wins among equals.

The end-of-text token stands before each context, as before each document in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gptlab.console import say, track
from gptlab.errors import DataError, GptlabError, option
from gptlab.evals.benchmark import Evaluation
from gptlab.files import sha256_file
from gptlab.hardware.precision import autocast
from gptlab.inference.scoring import target_nats
from gptlab.parallel import World
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer

DELIMITER = " "
"""What stands between a context and a choice."""

_BATCH_TOKENS = {"cpu": 2**12, "mps": 2**14, "cuda": 2**16}  # places of a batch, padding included


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: what its data set calls it.
        contexts, choices: a context and its continuation for each answer. HellaSwag's answers share their context;
            WinoGrande's share their continuation.
        gold: the number of the right answer, from 0.
    """

    id: int | str
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Answer:
    """What a model said to a question.

    Attributes:
        logprobs: for each choice the sum of log p of its tokens, nats.
        tokens: for each choice how many tokens that were.
        truncated: whether a context had to be cut on the left.
    """

    question: Question
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    truncated: bool

    @property
    def predicted(self) -> int:
        """The choice that `acc` takes."""
        return int(np.argmax(self.logprobs))

    @property
    def predicted_norm(self) -> int:
        """The choice that `acc_norm` takes."""
        return int(np.argmax(np.array(self.logprobs) / np.array([float(len(c)) for c in self.question.choices])))

    def record(self) -> dict[str, Any]:
        """The row that is kept of it."""
        gold = self.question.gold
        return {
            "id": self.question.id,
            "gold": gold,
            "predicted": self.predicted,
            "predicted_norm": self.predicted_norm,
            "acc": int(self.predicted == gold),
            "acc_norm": int(self.predicted_norm == gold),
            "logprobs": [round(value, 5) for value in self.logprobs],
            "tokens": list(self.tokens),
            "truncated": self.truncated,
        }


def answer_questions(
    run: Run, questions: Sequence[Question], *, description: str, world: World | None = None
) -> list[Answer]:
    """Let the run's model answer `questions`, in their order; `description` names the progress bar. The processes of
    `world` share the work, and all of them get all answers.

    Raises DataError where a choice has no tokens or does not fit the model's context, or the tokenizer cannot
    encode a text.
    """
    length: int = run.model.context_length
    world = world or World()
    listed = track(questions, f"{description}: encoding", total=len(questions), unit="questions", shown=world.is_main)
    encoded = [encode_question(run.tokenizer, question, length) for question in listed]
    every = [pair for pairs in encoded for pair in pairs]
    logprobs = log_likelihoods(run, every, description=description, world=world)
    answers, done = [], 0
    for question, pairs in zip(questions, encoded, strict=True):
        mine = tuple(logprobs[done : done + len(pairs)])
        done += len(pairs)
        tokens = tuple(pair.count for pair in pairs)
        answers.append(Answer(question, mine, tokens, any(pair.truncated for pair in pairs)))
    return answers


@dataclass(frozen=True)
class EncodedPair:
    """A context with its continuation as ids, cut on the left to fit; the last `count` ids are the continuation."""

    ids: list[int]
    count: int
    truncated: bool


def encode_question(tokenizer: Tokenizer, question: Question, context_length: int) -> list[EncodedPair]:
    """The ids of each answer of a question. Raises DataError as `answer_questions`."""
    pairs, sizes = [], {}
    for context, choice in zip(question.contexts, question.choices, strict=True):
        kept = context.rstrip()
        if kept not in sizes:
            sizes[kept] = len(tokenizer.encode(kept))
        whole = tokenizer.encode(context + DELIMITER + choice)
        count = len(whole) - sizes[kept]
        if count < 1 or not choice:
            raise DataError(f"question {question.id}: choice {choice!r} has no tokens of its own; mend the file")
        if count > context_length:
            raise DataError(
                f"question {question.id}: a choice of {count} tokens does not fit the model's context of "
                f"{context_length}; evaluate a model with a longer one"
            )
        ids = [tokenizer.end_of_text, *whole]
        kept_ids = ids[-(context_length + 1) :]  # one more than it sees: the last id is only predicted
        pairs.append(EncodedPair(kept_ids, count, len(kept_ids) < len(ids)))
    return pairs


@torch.inference_mode()
def log_likelihoods(
    run: Run, pairs: Sequence[EncodedPair], *, description: str, world: World | None = None
) -> list[float]:
    """log p of each continuation given its context, nats, in the order of `pairs`, on every process of `world`.

    Long ones are computed together with long ones, padded on the right, where causal attention never looks. Batches
    are dealt to the processes in turn, so that each gets long ones and short ones.
    """
    world = world or World()
    found = torch.zeros(len(pairs), dtype=torch.float64)
    mine = list(_batches(pairs, _BATCH_TOKENS[run.device.type]))[world.rank :: world.size]
    total = sum(map(len, mine))
    for batch in track(mine, description, total=total, unit="answers", size=len, shown=world.is_main):
        found[batch] = torch.tensor(_score(run, [pairs[i] for i in batch]), dtype=torch.float64)
    if world.size > 1:
        found = world.all_reduce(found.to(run.device))
    return [float(value) for value in found]


def _batches(pairs: Sequence[EncodedPair], places: int) -> Iterator[list[int]]:
    """Numbers of the pairs of each batch, the longest first: memory that suffices for the first suffices for all."""
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i].ids))
    while order:
        rows = max(1, places // len(pairs[order[0]].ids))
        yield order[:rows]
        order = order[rows:]


def _score(run: Run, pairs: Sequence[EncodedPair]) -> list[float]:
    """One forward pass; the head, which is most of a small model, only where a continuation is predicted."""
    width = max(len(pair.ids) for pair in pairs) - 1
    inputs = np.zeros((len(pairs), width), dtype=np.int64)  # the id of a padding place does not matter
    places, targets = [], []
    for row, pair in enumerate(pairs):
        inputs[row, : len(pair.ids) - 1] = pair.ids[:-1]
        end = row * width + len(pair.ids) - 1
        places.append(np.arange(end - pair.count, end))
        targets.extend(pair.ids[-pair.count :])
    model: nn.Module = run.model
    where = torch.from_numpy(np.concatenate(places)).to(run.device)
    with autocast(run.device, run.dtype):
        hidden = model(torch.from_numpy(inputs).to(run.device)).flatten(0, -2)[where]
        nats = target_nats(model, hidden, torch.tensor(targets, device=run.device))
    starts = np.cumsum([0, *(pair.count for pair in pairs[:-1])])
    sums = np.add.reduceat(nats.cpu().numpy().astype(np.float64), starts)
    return [-float(value) for value in sums]


def accuracy(correct: Sequence[int]) -> tuple[float, float | None]:
    """Share of ones, and its standard error √(p (1 − p) / (n − 1)), the harness's; None for a single question."""
    n, p = len(correct), sum(correct) / len(correct)
    return p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None


def evaluate_questions(
    run: Run, task: str, questions: Sequence[Question], path: Path, world: World | None = None
) -> Evaluation:
    """`acc` and `acc_norm` over `questions` of the benchmark `task`, with a record of each. `path`: their file;
    `world`: the processes that share the work.

    Raises GptlabError where a probability is not finite, DataError where a question does not fit the model.
    """
    try:
        answers = answer_questions(run, questions, description=f"{run.folder.name}: {task}", world=world)
    except DataError as error:
        raise DataError(f"{task} with {run.folder}: {error}") from None
    records = [answer.record() for answer in answers]
    if not all(math.isfinite(value) for answer in answers for value in answer.logprobs):
        raise GptlabError(f"{run.folder}: a probability is not finite; evaluate an earlier {option('checkpoint')}")
    results: dict[str, Any] = {}
    errors: dict[str, float | None] = {}
    for metric in ("acc", "acc_norm"):
        results[metric], errors[metric] = accuracy([record[metric] for record in records])
    results["questions"] = len(records)
    results["truncated"] = sum(record["truncated"] for record in records)
    if results["truncated"] and (world is None or world.is_main):
        cut = f"{results['truncated']} of {len(records)} questions"
        say(f"{task}: {cut} are longer than {run.model.context_length} tokens and were cut on the left")
    settings = {"file": path.name, "sha256": sha256_file(path), "context_length": run.model.context_length}
    return Evaluation(task, results, errors, settings, records)
