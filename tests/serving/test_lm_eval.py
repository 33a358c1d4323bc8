"""lm-evaluation-harness through the server (`local-completions`) finds what it finds without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving.place import make_run, running

from gptlab.cli.lm_eval import GptlabLM
from gptlab.run import Run
from gptlab.tokenizer import train_bpe

WORDS = ["cat", "mat", "noon", "sat", "then", "until", "über", "and", "a"]


def questions(count: int = 24) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(rng.choice(WORDS, length))

    return [
        {"question": f"the {text(5)}", "choices": [text(2) for _ in range(4)], "gold": int(rng.integers(4))}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    texts = [f"{row['question']} {' '.join(row['choices'])}" for row in questions()]
    return make_run(tmp_path_factory.mktemp("lm_eval") / "asked", train_bpe(texts, [280], name="asked")[0])


def evaluate(model: Any, tmp_path: Path, kind: str, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = questions() if kind == "multiple_choice" else questions(5)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "made_up",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold" if kind == "multiple_choice" else "{{choices[gold]}}",
        "metadata": {"version": 1},
    }
    if kind == "multiple_choice":
        task |= {"doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    else:
        task |= {"metric_list": [{"metric": "exact_match"}]}
        task |= {"generation_kwargs": {"until": ["a", "\n"], "do_sample": False, "max_gen_toks": 20}}
    bare = TaskManager(include_defaults=False)  # to look through its thousands of tasks takes seconds
    found = simple_evaluate(model, tasks=[task], task_manager=bare, bootstrap_iters=0, **options)
    assert found is not None
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tokenized"), [("multiple_choice", True), ("multiple_choice", False), ("generate_until", False)]
)
def test_the_harness_finds_the_same(run: Run, tmp_path: Path, kind: str, tokenized: bool, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with running([run]) as place:
        options = f"model=asked,base_url={place.url}/completions,num_concurrent=4,max_length=96,max_gen_toks=20"
        options += f",tokenized_requests={tokenized}"
        theirs = evaluate("local-completions", tmp_path, kind, model_args=options)
    ours = evaluate(GptlabLM(str(run.folder), device="cpu", dtype="float32"), tmp_path, kind)

    def answers(found: dict[str, Any]) -> list[Any]:
        rows = sorted(found["samples"]["made_up"], key=lambda row: row["doc_id"])
        return [row["filtered_resps"] for row in rows]

    if kind == "generate_until":
        assert answers(theirs) == answers(ours)
        assert len({str(answer) for answer in answers(ours)}) > 2
        return
    mine, its = (np.array([[pair[0] for pair in row] for row in answers(found)], float) for found in (ours, theirs))
    assert len({row.argmax() for row in mine}) > 1
    if tokenized:  # ids are taken as they are: no separator, so the numbers are near and not the same
        assert not np.allclose(its, mine, atol=1e-3)
        return
    np.testing.assert_allclose(its, mine, atol=1e-3)
    for metric in ("acc,none", "acc_norm,none"):
        assert theirs["results"]["made_up"][metric] == ours["results"]["made_up"][metric]
    assert 0 < ours["results"]["made_up"]["acc,none"] < 1
