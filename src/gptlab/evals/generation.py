"""Generation: whether what a model says, by itself and to the end of a phrase, is the answer.

As lm-evaluation-harness counts it (version 0.4: `generate_until`, `exact_match` with case and punctuation left out):
greedy, up to the first stop, blanks around it taken off; right where it is one of the names that the answer goes by.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptlab.console import track
from gptlab.evals.benchmark import Evaluation
from gptlab.evals.journal import Part
from gptlab.evals.multiple_choice import Question, question_settings, say_truncated, summary
from gptlab.inference.generate import Sampling, stream_tokens
from gptlab.parallel import World
from gptlab.run import Run

STOPS = ("\n", ".", ",")
NEW_TOKENS = 48
"""A longer answer is none of those that are asked for here."""

ROWS = {"cpu": 8, "mps": 16, "cuda": 64}  # of a batch


def evaluate_generations(
    run: Run, task: str, questions: Sequence[Question], path: Path | Sequence[Path], world: World | None = None
) -> Evaluation:
    """`acc`: the share of questions of which the model says one of the choices (exact match). Arguments as of
    `evaluate_questions`. A prompt that leaves no room for an answer in the model's context is cut on the left.

    Raises DataError where the tokenizer cannot encode a prompt.
    """
    world = world or World()
    room = max(1, run.model.context_length - NEW_TOKENS)
    whole = [run.encode_prompt(question.contexts[0]) for question in questions]
    prompts = [ids[-room:] for ids in whole]
    said = say_all(run, prompts, f"{run.folder.name}: {task}", world, stops=STOPS, new_tokens=NEW_TOKENS)
    records = [_record(question, answer.strip()) for question, answer in zip(questions, said, strict=True)]
    for record, ids in zip(records, whole, strict=True):
        record["truncated"] = len(ids) > room
    results, errors = summary(records, ("acc",))
    results["chance"] = 0.0
    say_truncated(results, run, task, world)
    return Evaluation(task, results, errors, question_settings(path, run), records)


def say_all(
    run: Run,
    prompts: Sequence[Sequence[int]],
    description: str,
    world: World | None = None,
    *,
    stops: Sequence[str],
    new_tokens: int,
) -> list[str]:
    """What the model says to each prompt in ids, greedily, on every process of `world`: up to the first of `stops`, to
    its own end, or to `new_tokens`."""
    world = world or World()
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    rows = ROWS[run.device.type]
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    ids = torch.zeros(len(prompts), new_tokens, dtype=torch.int64)  # 1 more than the token's id; 0 where there is none
    part = Part("generations", list(stops), new_tokens, rows, list(map(list, prompts)))
    if world.is_main:  # the others' zeros are added to it
        for number, values in part.known.items():
            ids[batches[number]] = torch.tensor(values, dtype=torch.int64)
    mine = [number for number in range(len(batches)) if number not in part.known][world.rank :: world.size]
    size = lambda number: len(batches[number])  # noqa: E731
    greedy = Sampling(max_new_tokens=new_tokens, temperature=0)
    for number in track(mine, description, total=sum(map(size, mine)), unit="answers", size=size, shown=world.is_main):
        said = say_until(run, [prompts[n] for n in batches[number]], stops, greedy)
        for row, tokens in zip(batches[number], said, strict=True):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64) + 1
        part.keep(number, ids[batches[number]].tolist())
    if world.size > 1:
        ids = world.all_reduce(ids.to(run.device)).cpu()
    return [until(_text(run, [token - 1 for token in row if token]), stops) for row in ids.tolist()]


def say_until(run: Run, prompts: Sequence[Sequence[int]], stops: Sequence[str], sampling: Sampling) -> list[list[int]]:
    """The ids of what follows prompts in ids, until each text has one of `stops`, which it may go beyond."""
    said: list[list[int]] = [[] for _ in prompts]
    steps = stream_tokens(run.generator, prompts, sampling, stop_ids=run.tokenizer.stop_ids, device=run.device)
    for step in steps:
        for row, token in zip(said, step, strict=True):
            if token is not None:
                row.append(token)
        if stops and all(any(stop in _text(run, row) for stop in stops) for row in said):
            break
    return said


def _text(run: Run, tokens: list[int]) -> str:
    return run.tokenizer.decode_continuation(tokens, begins=False)


def until(said: str, stops: Sequence[str]) -> str:
    """What was said before the first stop."""
    for stop in stops:
        said = said.partition(stop)[0]
    return said


def plain(answer: str) -> str:
    """An answer without case and punctuation."""
    return answer.lower().translate(str.maketrans("", "", string.punctuation))


def _record(question: Question, said: str) -> dict[str, Any]:
    right = any(plain(said) == plain(choice) for choice in question.choices)
    group = {} if question.group is None else {"group": question.group}
    return {"id": question.id, "acc": int(right), "said": said, **group}
