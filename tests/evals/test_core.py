"""CORE against a plain second telling of its rules, on real questions, one forward pass a text."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.errors import DataError, GptlabError
from gptlab.evals import core
from gptlab.evals.benchmark import Options, evaluate
from gptlab.tokenizer import train_bpe

LIMIT = 6


@pytest.fixture
def folder(test_data: Path, tmp_path: Path) -> Path:
    """The first 40 real questions of each task that has some here."""
    place = tmp_path / "core"
    place.mkdir()
    for file in (test_data / "tasks").glob("*.jsonl.gz"):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            kept = [line for line, _ in zip(lines, range(40), strict=False)]
        (place / file.name.removesuffix(".gz")).write_text("".join(kept), encoding="utf-8")
    return place


def told_again(task: core.CoreTask, rows: list[dict[str, Any]], number: int, run: Any) -> bool:
    """One question of nanochat's CORE, the slow way."""
    shots = random.Random(1234 + number).sample([n for n in range(len(rows)) if n != number], task.shots)
    before = ""
    for shot in shots:
        row = rows[shot]
        if task.kind == "choice":
            before += row["query"] + task.delimiter + row["choices"][row["gold"]] + "\n\n"
        else:
            before += row["context"].strip() + task.delimiter + row["continuation"] + "\n\n"
    row = rows[number]
    if task.kind == "choice":
        texts = [before + row["query"] + task.delimiter + choice for choice in row["choices"]]
    elif task.kind == "schema":
        texts = [before + one + task.delimiter + row["continuation"] for one in row["context_options"]]
    else:
        stem = before + row["context"].strip() + task.delimiter
        texts = [stem.strip(), stem + row["continuation"]]
    tokens = [[run.tokenizer.end_of_text, *run.tokenizer.encode(text)] for text in texts]
    shortest = min(map(len, tokens))
    if task.kind == "completion":
        start, row_ids = len(tokens[0]), tokens[1]
        assert row_ids[:start] == tokens[0]
        with torch.no_grad():
            logits = run.model(torch.tensor([row_ids]), return_logits=True)[0]
        return logits[start - 1 : -1].argmax(-1).tolist() == row_ids[start:]
    if task.kind == "choice":
        same = next((n for n in range(shortest) if len({ids[n] for ids in tokens}) > 1), shortest)
        starts = [same] * len(tokens)
    else:
        same = next((n for n in range(shortest) if len({ids[-1 - n] for ids in tokens}) > 1), shortest)
        starts = [len(ids) - same for ids in tokens]
    losses = []
    for ids, start in zip(tokens, starts, strict=True):
        with torch.no_grad():
            logp = run.model(torch.tensor([ids]), return_logits=True)[0].log_softmax(-1)
        losses.append(-torch.stack([logp[n - 1, ids[n]] for n in range(start, len(ids))]).mean().item())
    return losses.index(min(losses)) == row["gold"]


def test_every_question_is_answered_as_by_the_rules(folder: Path, make_run: Any) -> None:
    rows = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in folder.iterdir()}
    texts = [json.dumps(one) for many in rows.values() for one in many]
    run = make_run(train_bpe(texts, [1000], name="q")[0], context=6000)
    found = evaluate(run, "core", Options(task_data=folder.parent, limit=LIMIT))
    here = [task for task in core.TASKS if task.file.name.removesuffix(".jsonl") in rows]
    assert len(here) == 10
    right = {task.name: 0 for task in here}
    for task in here:
        shuffled = list(rows[task.file.name.removesuffix(".jsonl")])
        random.Random(1337).shuffle(shuffled)
        expected = [int(told_again(task, shuffled, number, run)) for number in range(LIMIT)]
        assert [row["acc"] for row in found.records if row["task"] == task.name] == expected, task.name
        right[task.name] = sum(expected)
        centred = (sum(expected) / LIMIT - task.guess) / (1 - task.guess)
        assert found.results["tasks"][task.name]["centred"] == pytest.approx(centred)
    assert 5 < sum(right.values()) < 50
    mean = sum(one["centred"] for one in found.results["tasks"].values()) / 10
    assert found.results["mean_of_present"] == pytest.approx(mean)
    # Twelve are missing, and nobody may take the mean of ten for CORE.
    assert found.results["core"] is None
    assert len(found.results["missing"]) == 12
    assert {"jeopardy", "squad", "coqa"} <= set(found.results["missing"])


def test_core_is_the_mean_of_all_22(tmp_path: Path, make_run: Any) -> None:
    rows = {
        "choice": [{"query": f"Is {n} odd?", "choices": ["no", "yes", f"no {n}"], "gold": n % 2} for n in range(12)],
        "schema": [
            {"context_options": [f"A{n} saw B as A{n}", f"A{n} saw B as B"], "continuation": "ran.", "gold": n % 2}
            for n in range(12)
        ],
        "completion": [{"context": f"Count to {n}: ", "continuation": str(n)} for n in range(12)],
    }
    for task in core.TASKS:
        (tmp_path / task.file.name).write_text("\n".join(map(json.dumps, rows[task.kind])), encoding="utf-8")
    text = json.dumps(rows)
    run = make_run(train_bpe([text, text], [290], name="q")[0], context=700)
    found = evaluate(run, "core", Options(task_data=tmp_path))
    assert found.results["missing"] == []
    assert found.results["of"] == found.results["present"] == len(core.TASKS) == 22
    assert found.results["core"] == pytest.approx(sum(t["centred"] for t in found.results["tasks"].values()) / 22)
    assert found.standard_errors["core"] is not None
    # A short context cuts the examples on the left, and says so.
    cut = evaluate(make_run(run.tokenizer, name="short", context=40), "core", Options(task_data=tmp_path))
    assert cut.results["truncated"] > 100


def test_refusals(tmp_path: Path, make_run: Any, tokenizer: Any) -> None:
    run = make_run(tokenizer)
    with pytest.raises(GptlabError, match="their own numbers of examples"):
        evaluate(run, "core", Options(task_data=tmp_path, shots=3))
    with pytest.raises(DataError, match="none of core's tasks has data"):
        evaluate(run, "core", Options(task_data=tmp_path))
    (tmp_path / "copa.jsonl").write_text('{"query": "a", "choices": ["b"]}\n', encoding="utf-8")
    with pytest.raises(DataError, match="holds no copa question"):
        evaluate(run, "core", Options(task_data=tmp_path))
    (tmp_path / "copa.jsonl").unlink()
    (tmp_path / "piqa.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n' * 5, encoding="utf-8")
    with pytest.raises(DataError, match="takes 10 examples, and there are 5"):
        evaluate(run, "core", Options(task_data=tmp_path))
