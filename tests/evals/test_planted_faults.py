"""Faults planted into copies of the scorer, each caught by the check that is named beside it.

A fault is a few characters of a module of `gptlab.evals`. The module is run again with them, in place of what others
hold of it, and the named check has to fail; without faults all checks pass.
"""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from evals.test_core import told_again

from gptlab.evals import completion, core, generation, multiple_choice, perplexity, questions
from gptlab.evals.benchmark import Options, QuestionFile
from gptlab.evals.multiple_choice import Question
from gptlab.run import Run
from gptlab.tokenizer import train_bpe

CONTEXT = 96
LONG = "The old man who lived by the sea went out in his boat every day and came home with nothing at all. "
OTHER = "A woman in town had a boat of stone, and nobody who saw it would ever say where it came from or why. "

ASKED = [
    Question("long", (LONG + "So he",) * 4, ("was sad.", "ate stones and called it a day", "é" * 6, "slept"), 0),
    Question("other", (OTHER + "But she",) * 3, ("sang.", "wept for the sea", "slept"), 2),
    Question("short", ("He",) * 2, ("ran.", "was a boat"), 1),
    Question("blank", ("He went out \n",) * 2, ("again.", "never"), 0),
    Question("schema", (LONG + "the man", LONG + "the sea", LONG + "a boat"), ("was old.",) * 3, 0),
    Question("cut", (LONG * 9 + "So it",) * 2, ("ended.", "went on and on"), 1),
    Question("nothing", ("",) * 2, ("He sees it.", "He see it."), 0),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from evals.conftest import wild_model

    from gptlab.config import config_from

    texts = [context + choice for q in ASKED for context, choice in zip(q.contexts, q.choices, strict=True)]
    tokenizer = train_bpe([*texts, json.dumps(CORE_ROWS)], [400], name="faults")[0]
    config = config_from(
        {"name": "faults", "data": {"path": None}, "model": {"dim": 48, "layers": 2, "heads": 4}}
        | {"train": {"sequence_length": CONTEXT, "batch_tokens": CONTEXT, "tokens": 10 * CONTEXT}}
        | {"system": {"device": "cpu"}}
    )
    model = wild_model(config, tokenizer.vocab_size)
    folder = tmp_path_factory.mktemp("faults")
    return Run(folder, config, model, tokenizer, torch.device("cpu"), torch.float32, 10)


# ---------------------------------------------------------------- the checks, each a second telling


def logprobs_of(run: Run, context: str, continuation: str) -> tuple[list[float], bool, bool]:
    """log p of each token of a continuation, alone in its batch; whether all are the likeliest; whether it was cut."""
    stripped = context.rstrip()
    whole = run.tokenizer.encode(context + continuation)
    count = len(whole) - len(run.tokenizer.encode(stripped))
    ids = [run.tokenizer.end_of_text, *whole]
    cut = len(ids) > CONTEXT + 1
    ids = ids[-CONTEXT - 1 :]
    with torch.no_grad():
        logp = run.model(torch.tensor([ids[:-1]]), return_logits=True)[0].double().log_softmax(-1)
    chosen = [logp[place - 1, ids[place]].item() for place in range(len(ids) - count, len(ids))]
    greedy = all(int(logp[place - 1].argmax()) == ids[place] for place in range(len(ids) - count, len(ids)))
    return chosen, greedy, cut


def scores(run: Run) -> None:
    """log p, tokens, cuts and greedy hits of every choice."""
    answers = multiple_choice.answer_questions(run, ASKED, description="test")
    for question, answer in zip(ASKED, answers, strict=True):
        told = [
            logprobs_of(run, c, " " + choice) for c, choice in zip(question.contexts, question.choices, strict=True)
        ]
        assert answer.question is question
        assert answer.logprobs == pytest.approx([sum(one) for one, _, _ in told], rel=1e-4)
        assert answer.tokens == tuple(len(one) for one, _, _ in told)
        assert answer.truncated == any(cut for _, _, cut in told)


def marks(run: Run) -> None:
    """What is made of the scores: accuracies, cousins, errors."""
    found = multiple_choice.evaluate_questions(run, "test", ASKED, Path(__file__))
    sums = [[sum(logprobs_of(run, c, " " + t)[0]) for c, t in zip(q.contexts, q.choices, strict=True)] for q in ASKED]
    right, right_norm, bits, share, margin = [], [], [], [], []
    for question, values in zip(ASKED, sums, strict=True):
        each = [value / len(choice) for value, choice in zip(values, question.choices, strict=True)]
        right.append(int(values.index(max(values)) == question.gold))
        right_norm.append(int(each.index(max(each)) == question.gold))
        bits.append(-values[question.gold] / math.log(2) / len(question.choices[question.gold].encode()))
        share.append(math.exp(each[question.gold]) / sum(map(math.exp, each)))
        margin.append(each[question.gold] - max(v for n, v in enumerate(each) if n != question.gold))
    results, n = found.results, len(ASKED)
    assert [row["acc"] for row in found.records] == right
    assert [row["acc_norm"] for row in found.records] == right_norm
    assert results["acc"] == sum(right) / n
    assert results["bits_per_byte"] == pytest.approx(sum(bits) / n, rel=1e-4)
    assert results["probability"] == pytest.approx(sum(share) / n, abs=1e-4)
    assert results["margin"] == pytest.approx(sum(margin) / n, abs=1e-4)
    assert results["truncated"] == 1
    assert results["chance"] == pytest.approx(sum(1 / len(q.choices) for q in ASKED) / n)
    p = results["acc"]
    assert found.standard_errors["acc"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def accented(run: Run) -> None:
    """A right answer of two bytes a character, which bytes and characters count unlike."""
    question = replace(ASKED[0], gold=2)
    found = multiple_choice.evaluate_questions(run, "test", [question, ASKED[1]], Path(__file__)).records[0]
    assert found["bits_per_byte"] == pytest.approx(-found["logprobs"][2] / math.log(2) / 12, rel=1e-4)
    each = [v / len(c) for v, c in zip(found["logprobs"], question.choices, strict=True)]
    assert found["predicted_norm"] == each.index(max(each))


def lengths(run: Run) -> None:
    """A tie by character that bytes, tokens or the blank before would break: a choice said twice over."""
    answer = multiple_choice.Answer(
        Question("q", ("",) * 3, ("ab", "éé", "abcd"), 1), (-2.0, -2.0, -3.9), (1, 9, 2), False
    )
    assert answer.predicted_norm == 2
    assert answer.per_character.tolist() == pytest.approx([-1.0, -1.0, -0.975])
    assert answer.predicted == 0


def completions(run: Run) -> None:
    """Greedy hits and perplexity of single continuations, of which one is what the model itself says."""
    said = run.generate(LONG, max_new_tokens=3, temperature=0)
    asked = [
        Question("own", (LONG.rstrip(),), (said if said.startswith(" ") else " " + said,), 0, delimiter=""),
        Question("part", (LONG.rstrip(),), (f" {said.split()[0]} zebras",), 0, delimiter=""),
        Question("two", (LONG + "But she",), (" sang.",), 0, delimiter=""),
    ]
    found = completion.evaluate_completions(run, "test", asked, Path(__file__))
    told = [logprobs_of(run, q.contexts[0], q.choices[0]) for q in asked]
    assert [row["acc"] for row in found.records] == [int(greedy) for _, greedy, _ in told]
    nats = -sum(sum(one) for one, _, _ in told) / len(told)
    assert found.results["perplexity"] == pytest.approx(math.exp(nats), rel=1e-3)


def pages(run: Run) -> None:
    """Perplexity by token, by published word and byte, window by window."""
    texts = [(f"= A @-@ {n} =\n{LONG * 4 * n}é", f"= A-{n} =\n{LONG * 4 * n}é") for n in range(1, 4)]
    made = [perplexity.Page(*text) for text in texts]
    found = perplexity.evaluate_pages(run, "test", made, Path(__file__), Options())
    nats, tokens = 0.0, 0
    for page in made:
        ids = [run.tokenizer.end_of_text, *run.tokenizer.encode(page.plain)]
        for start in range(0, len(ids) - 1, CONTEXT):
            window = ids[start : start + CONTEXT + 1]
            with torch.no_grad():
                logp = run.model(torch.tensor([window[:-1]]), return_logits=True)[0].double().log_softmax(-1)
            nats -= logp.gather(-1, torch.tensor(window[1:])[:, None]).sum().item()
            tokens += len(window) - 1
    words = sum(len(page.published.split()) for page in made)
    size = sum(len(page.published.encode()) for page in made)
    assert found.results["tokens"] == tokens
    assert found.results["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found.results["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-3)
    assert found.results["byte_perplexity"] == pytest.approx(math.exp(nats / size), rel=1e-4)
    assert found.results["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


ROWS = [{"q": f"Is {n} odd?", "a": ["no", "yes"], "gold": n % 2} for n in range(12)]


def examples(run: Run) -> None:
    """Examples drawn from the questions themselves: as many as asked for, by the seed, never the question."""

    def question(row: dict[str, Any], number: int) -> Question:
        return Question(number, (row["q"],) * 2, tuple(row["a"]), row["gold"])

    file = run.folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    task = questions.QuestionTask("rows", question, (QuestionFile("rows.jsonl", "http://nowhere"),))
    asked, _, noted = task.ask(Options(task_data=run.folder, shots=3))
    generator = random.Random(1234)
    assert noted["shots"] == 3
    own = 0
    for number, found in enumerate(asked):
        drawn = generator.sample(range(12), 3)
        shown = [f"{ROWS[n]['q']} {ROWS[n]['a'][ROWS[n]['gold']]}" for n in drawn]
        parts = found.contexts[0].split("\n\n")
        assert parts[-1] == ROWS[number]["q"]
        assert len(parts) == 4
        own += number in drawn
        if number not in drawn:
            assert parts[:3] == shown
        assert all(ROWS[number]["q"] not in part for part in parts[:3])
    assert own  # or it would not be known


CORE_ROWS: dict[str, list[dict[str, Any]]] = {
    "choice": [
        {"query": f"Is {n} odd?", "choices": ["no", "yes", f"no, never, {n}"], "gold": n % 3} for n in range(14)
    ],
    "schema": [
        {
            "context_options": [f"Ann {n} saw Bob as Ann", f"Ann {n} saw Bob as Bob"],
            "continuation": "ran.",
            "gold": n % 2,
        }
        for n in range(14)
    ],
    "completion": [{"context": f" Count to {n}: ", "continuation": str(n)} for n in range(14)],
}


def core_rules(run: Run) -> None:
    """CORE question by question, and its mean."""
    wide = replace(run, model=run.model)
    names = {"choice": "piqa", "schema": "winograd", "completion": "bigbench_operators"}
    for kind, name in names.items():
        task = replace(next(task for task in core.TASKS if task.name == name), shots=0 if kind == "schema" else 2)
        file = run.folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, CORE_ROWS[kind])), encoding="utf-8")
        shuffled = list(CORE_ROWS[kind])
        random.Random(1337).shuffle(shuffled)
        found = core._records(wide, task, file, Options())
        expected = [int(told_again(task, shuffled, number, run)) for number in range(len(shuffled))]
        assert [row["acc"] for row in found] == expected
        if task.shots:
            numbers = random.Random(1234 + 5).sample([n for n in range(len(shuffled)) if n != 5], 2)
            shown = core.prompts(task, shuffled, 5)[0][0].split("\n\n")[:-1]
            key = "query" if kind == "choice" else "context"
            assert [text.startswith(shuffled[n][key].strip()) for n, text in zip(numbers, shown, strict=True)] == [
                True
            ] * 2
    for task in core.TASKS:
        (run.folder / task.file.name).write_text("\n".join(map(json.dumps, CORE_ROWS[task.kind])), encoding="utf-8")
    found = core.evaluate_core(run, Options(task_data=run.folder, limit=3))
    shares = {task: [row["acc"] for row in found.records if row["task"] == task.name] for task in core.TASKS}
    centred = [(np.mean(right) - task.guess) / (1 - task.guess) for task, right in shares.items()]
    assert found.results["core"] == pytest.approx(float(np.mean(centred)))


def generated(run: Run) -> None:
    """What is said up to the first stop, marked without case and punctuation."""
    first = run.generate("Is 3 odd?", max_new_tokens=generation.NEW_TOKENS, temperature=0)
    said = first
    for stop in ("\n", ".", ","):
        said = said.split(stop)[0]
    asked = [
        Question(0, ("Is 3 odd?",) * 2, ("never this", said.strip().upper() + "!"), 0),
        Question(1, ("Is 3 odd?",), ("never this",), 0),
    ]
    found = generation.evaluate_generations(run, "test", asked, Path(__file__))
    assert [row["said"] for row in found.records] == [said.strip()] * 2
    assert [row["acc"] for row in found.records] == [1, 0]
    assert generation.until(" a b. c", generation.STOPS) == " a b"
    assert generation.until("\nmore", generation.STOPS) == ""
    assert generation.plain("St. John's") == "st johns"


CHECKS: dict[str, Callable[[Run], None]] = {
    check.__name__: check
    for check in (scores, marks, accented, lengths, completions, pages, examples, core_rules, generated)
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_scorer_passes(name: str, run: Run) -> None:
    CHECKS[name](run)


# ---------------------------------------------------------------- the faults

FAULTS = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def planted(request: pytest.FixtureRequest) -> Iterator[None]:
    """The module with its fault, and its functions and classes in place of what other modules hold of it."""
    text, fault = request.param["text"], request.param["becomes"]
    module = importlib.import_module(f"gptlab.evals.{request.param['module']}")
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.count(text) >= 1, "the fault's place is gone; plant it anew"
    before = dict(vars(module))
    exec(compile(source.replace(text, fault, 1), str(module.__file__), "exec"), vars(module))
    changed = {id(old): vars(module)[key] for key, old in before.items() if vars(module).get(key) is not old}
    others = [m for n, m in sys.modules.items() if n.startswith("gptlab.evals.") or n == __name__]
    held = [
        (m, key, value) for m in others if m is not module for key, value in vars(m).items() if id(value) in changed
    ]
    for other, key, value in held:
        setattr(other, key, changed[id(value)])
    try:
        yield
    finally:
        vars(module).clear()
        vars(module).update(before)
        for other, key, value in held:
            setattr(other, key, value)


@pytest.mark.parametrize("planted", FAULTS, ids=[fault["fault"] for fault in FAULTS], indirect=True)
@pytest.mark.usefixtures("planted")
def test_a_planted_fault_is_caught(request: pytest.FixtureRequest, run: Run) -> None:
    check = request.node.callspec.params["planted"]["check"]
    with pytest.raises((AssertionError, ValueError, IndexError, RuntimeError)):
        CHECKS[check](run)


def test_there_are_thirty() -> None:
    assert len({fault["fault"] for fault in FAULTS}) >= 30
    assert {fault["check"] for fault in FAULTS} == set(CHECKS)
