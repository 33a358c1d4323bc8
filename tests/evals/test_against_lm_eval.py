"""HellaSwag row by row beside lm-evaluation-harness's own task, prompts, encoding and metrics, on the same model."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evals.harness import harness_model, harness_task
from foreign import foreign_tokenizer

from gptlab.evals.benchmark import Options, evaluate
from gptlab.evals.hellaswag import read_questions
from gptlab.interop import export_run
from gptlab.tokenizer import Tokenizer, import_tokenizer, load_tokenizer, train_bpe, train_char

QUESTIONS = 200


def hellaswag_task(rows: list[dict[str, Any]]) -> Any:
    return harness_task("hellaswag/hellaswag.yaml", rows)


def test_every_row_is_lm_evals(test_data: Path, make_run) -> None:
    path = test_data / "hellaswag" / "hellaswag_val.jsonl.gz"
    questions = read_questions(path, QUESTIONS)
    texts = [f"{q.contexts[0]} {choice}" for q in questions for choice in q.choices]
    run = make_run(train_bpe(texts, [1024], name="questions")[0], context=96)

    # These contexts are ready: the harness's own cleaning leaves them (and the test says so) as they are.
    rows = [
        {
            "activity_label": q.contexts[0].partition(": ")[0],
            "ctx_a": q.contexts[0].partition(": ")[2],
            "ctx_b": "",
            "endings": list(q.choices),
            "label": str(q.gold),
        }
        for q in questions
    ]
    task = hellaswag_task(rows)
    docs = list(task.validation_docs())
    assert [doc["query"] for doc in docs] == [q.contexts[0] for q in questions]
    requests = [
        task.construct_requests(doc, doc["query"], doc_id=i, metadata=("hellaswag", i, 1)) for i, doc in enumerate(docs)
    ]
    answers = harness_model(run).loglikelihood([r for four in requests for r in four], disable_tqdm=True)
    theirs = [task.process_results(doc, answers[4 * i : 4 * i + 4]) for i, doc in enumerate(docs)]

    found = evaluate(run, "hellaswag", Options(limit=QUESTIONS, task_data=test_data))
    ours = found.records
    assert [row["id"] for row in ours] == [q.id for q in questions]
    assert [(row["acc"], row["acc_norm"]) for row in ours] == [(row["acc"], row["acc_norm"]) for row in theirs]
    mine = [value for row in ours for value in row["logprobs"]]
    assert mine == pytest.approx([value for value, _ in answers], rel=1e-4)

    # The comparison is worth something only if rows differ, the two metrics differ, and some rows had to be cut.
    assert 20 < sum(row["acc"] for row in ours) < 180
    assert sum(row["predicted"] != row["predicted_norm"] for row in ours) > 20
    assert 10 < sum(row["truncated"] for row in ours) < 190
    from lm_eval.api.metrics import mean_stderr

    for metric in ("acc", "acc_norm"):
        assert found.results[metric] == sum(row[metric] for row in theirs) / QUESTIONS
        assert found.standard_errors[metric] == pytest.approx(mean_stderr([row[metric] for row in theirs]))


def test_the_authors_file_is_cleaned_as_lm_eval_does(test_data: Path, tmp_path: Path) -> None:
    """Real questions with the authors' fields put back: the subject apart, WikiHow's markup and stray blanks in it."""
    rows = []
    for number, question in enumerate(read_questions(test_data / "hellaswag" / "hellaswag_val.jsonl.gz", 4000)[::10]):
        label, _, context = question.contexts[0].partition(": ")
        first, _, rest = context.rpartition(". ")
        endings = list(question.choices)
        if number % 2:
            context = "[header] " + context.replace(". ", " [title] ", 1) + " [step] [substeps] "
            first, rest = context, ""
            endings = [f" {ending}   [substeps]  Then [see | saw] it." for ending in endings]
        rows.append(
            {"ind": number, "activity_label": label, "ctx_a": first + ".", "ctx_b": rest}
            | {"ctx": "unused", "endings": endings, "label": question.gold, "split_type": "indomain"}
        )
    path = tmp_path / "hellaswag_val.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    ours = read_questions(path)
    theirs = list(hellaswag_task(rows).validation_docs())
    assert [q.contexts[0] for q in ours] == [doc["query"] for doc in theirs]
    assert [list(q.choices) for q in ours] == [doc["choices"] for doc in theirs]
    assert [q.gold for q in ours] == [doc["gold"] for doc in theirs]
    assert not any(re.search(r"\[header|\[title|\[step", q.contexts[0]) for q in ours)
    assert any(
        q.contexts[0] != f"{r['activity_label']}: {r['ctx_a']} {r['ctx_b']}" for q, r in zip(ours, rows, strict=True)
    )


def kinds_of_tokenizers(folder: Path, questions: list[dict[str, Any]]) -> dict[str, Callable[[], Tokenizer]]:
    """One of each kind, by name; those of others are what a foreign tokenizer.json becomes."""

    def imported(kind: str) -> Tokenizer:
        (folder / kind).mkdir()
        foreign_tokenizer(kind).save(str(folder / kind / "tokenizer.json"))
        return import_tokenizer(str(folder / kind), name=kind, end_of_text="<s>")

    texts = [f"{row['ctx']} {ending}" for row in questions for ending in row["endings"]]
    return {
        "byte": lambda: load_tokenizer("byte"),
        "char": lambda: train_char([*texts, "Sitting: "], name="char"),
        "bpe": lambda: train_bpe([*texts, *texts], [290], name="bpe")[0],
        **{f"foreign-{kind}": functools.partial(imported, kind) for kind in ("bpe", "unigram", "sentencepiece")},
    }


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "foreign-bpe", "foreign-unigram", "foreign-sentencepiece"])
def test_an_export_with_add_bos_token_is_scored_as_ours(
    kind: str, make_run: Any, benchmarks: Path, tmp_path: Path
) -> None:
    """The harness's own HFLM, on the exported folder, with its own encoding: what a person does who publishes one."""
    from lm_eval.models.huggingface import HFLM

    lines = (benchmarks / "hellaswag" / "hellaswag_val.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    run = make_run(kinds_of_tokenizers(tmp_path, questions)[kind](), mlp="SwiGLU")
    export_run(run, tmp_path / "out")
    ours = evaluate(run, "hellaswag", Options(task_data=benchmarks)).records
    harness = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
    rows = [
        {"activity_label": row["activity_label"], "ctx_a": row["ctx"], "ctx_b": "", "endings": row["endings"]}
        | {"label": str(row["label"])}
        for row in questions
    ]
    task = hellaswag_task(rows)
    requests = [
        request
        for i, doc in enumerate(task.validation_docs())
        for request in task.construct_requests(doc, doc["query"], doc_id=i, metadata=("hellaswag", i, 1))
    ]
    theirs = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    assert [value for row in ours for value in row["logprobs"]] == pytest.approx(theirs, abs=1e-4)
