"""Every benchmark of questions row by row beside lm-evaluation-harness's own task: prompts to the letter, examples too,
and the answers of the same model."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evals.harness import Rows, harness_model, harness_requests, harness_task

from gptlab.evals import blimp, generation, mmlu
from gptlab.evals.benchmark import Options, evaluate, find_benchmark
from gptlab.evals.questions import QuestionTask
from gptlab.tokenizer import train_bpe, train_char

QUESTIONS, EXAMPLES = 100, 40

YAML = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "openbook_qa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "winograd_wsc": "wsc273/default.yaml",
    "winogrande": "winogrande/default.yaml",
}
WITHOUT_TRAINING = {"lambada_openai", "winograd_wsc"}


def _letters(choices: list[str]) -> dict[str, list[str]]:
    return {"text": choices, "label": [chr(65 + n) for n in range(len(choices))]}


def _schema(row: dict[str, Any]) -> tuple[str, list[str]]:
    """What two contexts begin with, and how they go on."""
    first, second = row["context_options"]
    alike = next((n for n, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), len(first))
    before = first[: first.rfind(" ", 0, alike) + 1]
    return before, [context[len(before) :] for context in row["context_options"]]


def _arc(row: dict[str, Any], number: int) -> dict[str, Any]:
    question = row["query"].removeprefix("Question: ")
    return {"id": f"q{number}", "question": question, "choices": _letters(row["choices"])} | {
        "answerKey": chr(65 + row["gold"])
    }


def _commonsense_qa(row: dict[str, Any], number: int) -> dict[str, Any]:
    question, _, listed = row["query"].removeprefix("Question: ").partition("\nChoices:\n")
    choices = [line[3:] for line in listed.splitlines()[:-1]]
    fifth = [f"{choices[0]} number {number}"]  # LLM Foundry leaves one of the five out
    return {"id": f"q{number}", "question": question, "choices": _letters(choices + fifth)} | {
        "answerKey": chr(65 + row["gold"])
    }


def _copa(row: dict[str, Any], number: int) -> dict[str, Any]:
    premise, connector = row["query"].rsplit(", " if ", " in row["query"] else " ", 1)
    first, second = (choice[0].upper() + choice[1:] for choice in row["choices"])
    kind = {"because": "cause", "therefore": "effect"}[connector]
    return {"premise": f"{premise}.", "choice1": first, "choice2": second, "question": kind} | {
        "idx": number,
        "label": row["gold"],
    }


def _boolq(row: dict[str, Any], number: int) -> dict[str, Any]:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    return {"passage": passage, "question": question.strip().removesuffix("?"), "idx": number, "label": row["gold"]}


def _winogrande(row: dict[str, Any], number: int) -> dict[str, Any]:
    before, (first, second) = _schema(row)
    sentence = f"{before}_ {row['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(row["gold"] + 1)}


def _winograd(row: dict[str, Any], number: int) -> dict[str, Any]:
    """With an article that has to become small, and an owner that has to get his 's back."""
    before, names = _schema(row)
    owned = all(name.endswith("'s") for name in names)
    names = [name.removesuffix("'s") if owned else name for name in names]
    names = [name.replace("the ", "The ", 1) if name.startswith("the ") else name for name in names]
    pronoun = "his" if owned else "it"
    return {"text": f"{before}{pronoun} {row['continuation']}", "pronoun": pronoun, "pronoun_loc": len(before)} | {
        "options": names,
        "label": row["gold"],
    }


def _hellaswag(row: dict[str, Any], number: int) -> dict[str, Any]:
    context = {"ctx_a": row["ctx"], "ctx_b": ""}
    return {"ind": number, "activity_label": row["activity_label"], **context, "endings": row["endings"]} | {
        "label": str(row["label"])
    }


AUTHORS: dict[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    "arc_challenge": _arc,
    "arc_easy": _arc,
    "boolq": _boolq,
    "commonsense_qa": _commonsense_qa,
    "copa": _copa,
    "hellaswag": _hellaswag,
    "lambada_openai": lambda row, number: {"text": f"{row['context']} {row['continuation']}"},
    "openbook_qa": lambda row, number: (
        {"id": f"q{number}", "question_stem": row["query"]}
        | {"choices": _letters(row["choices"]), "answerKey": chr(65 + row["gold"])}
    ),
    "piqa": lambda row, number: (
        {"goal": row["query"].removeprefix("Question: ").removesuffix("\n")}
        | {"sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}
    ),
    "winograd_wsc": _winograd,
    "winogrande": _winogrande,
}
"""Rows of LLM Foundry's files put back into the form of the data sets' authors, which the harness reads."""


def real_rows(test_data: Path, name: str, count: int) -> Rows:
    file = "hellaswag/hellaswag_val.jsonl.gz" if name == "hellaswag" else f"tasks/{name}.jsonl.gz"
    with gzip.open(test_data / file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def authors_files(test_data: Path, folder: Path, name: str) -> tuple[Rows, Rows | None]:
    """Real questions in the form of their authors, and examples, as files in `folder` and as rows."""
    known = real_rows(test_data, name, QUESTIONS + EXAMPLES)
    rows = [AUTHORS[name](row, number) for number, row in enumerate(known)]
    asked, examples = rows[: min(QUESTIONS, len(rows) - EXAMPLES)], rows[-EXAMPLES:]  # COPA has a hundred in all
    if name in WITHOUT_TRAINING:
        examples = None
    task = task_of(name)
    for file, content in zip((*task.files, *task.examples), (asked, examples), strict=False):
        text = "\n".join(json.dumps(row) for row in content or [])
        (folder / file.name).write_text(text, encoding="utf-8")
    return asked, examples


def task_of(name: str) -> QuestionTask:
    found = getattr(find_benchmark(name).run, "__self__", None)
    assert isinstance(found, QuestionTask)
    return found


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("name", YAML)
def test_prompts_and_answers_are_lm_evals(
    test_data: Path, tmp_path: Path, make_run: Any, name: str, shots: int
) -> None:
    rows, examples = authors_files(test_data, tmp_path, name)
    task = harness_task(YAML[name], rows, examples)
    docs, requests = harness_requests(task, shots)
    options = Options(task_data=tmp_path, shots=shots)
    ours, _, _ = task_of(name).ask(options)
    leaks = 0
    for question, asked in zip(ours, requests, strict=True):
        mine = [(c, question.delimiter + choice) for c, choice in zip(question.contexts, question.choices, strict=True)]
        if mine != [request.arguments for request in asked]:
            # Without a training split the harness may show the very question with its answer; ours never does.
            (context, rest), leaks = mine[question.gold], leaks + 1
            assert name in WITHOUT_TRAINING
            assert question.answered[len(context) - len(question.contexts[0]) :] not in context
            assert asked[question.gold].arguments[0].count(rest) > context.count(rest)
    if leaks:
        assert leaks < 20
        return

    texts = [context + choice for asked in requests for context, choice in (asked[0].arguments,)]
    run = make_run(train_bpe(texts, [800], name="questions")[0], context=300)
    answers = harness_model(run).loglikelihood([r for asked in requests for r in asked], disable_tqdm=True)
    found = evaluate(run, name, options)
    per = len(requests[0])
    theirs = [task.process_results(doc, answers[per * i : per * i + per]) for i, doc in enumerate(docs)]
    for metric in {"acc", "acc_norm"} & set(theirs[0]):
        assert [row[metric] for row in found.records] == [row[metric] for row in theirs]
        assert found.results[metric] == sum(row[metric] for row in theirs) / len(docs)
    mine = [value for row in found.records for value in row["logprobs"]]
    assert mine == pytest.approx([value for value, _ in answers], rel=1e-4, abs=1e-3)
    if name == "lambada_openai":
        from lm_eval.api.metrics import perplexity

        assert found.results["perplexity"] == pytest.approx(perplexity([row["perplexity"] for row in theirs]))
    assert found.settings["shots"] == shots
    assert found.identity.get("shots") == (str(shots) if shots else None)


# ---------------------------------------------------------------- those of which no real questions are at hand


def made_up(name: str, count: int) -> Rows:
    """Rows in the form of the authors' files, made up."""
    animals = ["cat", "dog", "emu", "bee", "ant", "hen", "yak"]
    rows = []
    for n in range(count):
        a, b, c, d = (animals[(n * k + k) % 7] + str(n) for k in (1, 2, 3, 5))
        rows.append(
            {
                "sciq": {"support": f" The {a} eats." if n % 3 else "", "question": f"Who is {b}?"}
                | {f"distractor{k}": f"{word}." for k, word in enumerate((a, b, c), 1)}
                | {"correct_answer": f"the {d}"},
                "race": {
                    "article": f"A {a} met a {b}.\nThey left.",
                    "problems": str(
                        [
                            {"question": f"The {a} met  _  .", "answer": "B", "options": [a, b, c, d]},
                            {"question": "Who left?", "answer": "D", "options": [a, b, c, "both"]},
                            {"question": f"Why did the {b} leave?", "answer": "ABCD"[n % 4], "options": [a, b, c, d]},
                        ]
                    ),
                },
                "mmlu": {"question": f" Is a {a} a {b}? ", "subject": "us_foreign_policy", "choices": [a, b, c, d]}
                | {"answer": n % 4},
                "blimp": {"sentence_good": f"The {a} sees itself.", "sentence_bad": f"The {a} see itself."}
                | {"UID": "anaphor_gender_agreement"},
            }[name]
        )
    return rows


@pytest.mark.parametrize(
    ("name", "file", "shots"),
    [
        ("sciq", "sciq/sciq.yaml", 0),
        ("sciq", "sciq/sciq.yaml", 2),
        ("race", "race/race.yaml", 0),
        ("mmlu", "mmlu/default/mmlu_us_foreign_policy.yaml", 0),
        ("mmlu", "mmlu/default/mmlu_us_foreign_policy.yaml", 5),
        ("blimp", "blimp/anaphor_gender_agreement.yaml", 0),
    ],
)
def test_made_up_rows_are_asked_as_the_harness_asks_them(
    tmp_path: Path, make_run: Any, name: str, file: str, shots: int
) -> None:
    rows = made_up(name, 60)
    asked, examples = rows[:30], rows[30:] if task_of(name).examples else None
    task = task_of(name)
    files = task.files if name != "blimp" else [one for one in task.files if "anaphor_gender" in one.name]
    for one, content in zip((*files, *task.examples), (asked, examples), strict=False):
        (tmp_path / one.name).write_text("\n".join(json.dumps(row) for row in content or []), encoding="utf-8")
    if name == "blimp":
        for one in set(task.files) - set(files):
            (tmp_path / one.name).write_text(json.dumps(rows[0] | {"UID": one.name[:-6]}), encoding="utf-8")
    theirs = harness_task(file, asked, examples, fewshot_split="dev" if name == "mmlu" else None)
    docs, requests = harness_requests(theirs, shots)
    options = Options(task_data=tmp_path, shots=shots or None)
    ours = [q for q in task.ask(options)[0] if name != "blimp" or q.subject == "anaphor_gender_agreement"]
    for question, pairs in zip(ours, requests, strict=True):
        mine = [(c, question.delimiter + choice) for c, choice in zip(question.contexts, question.choices, strict=True)]
        assert mine == [request.arguments for request in pairs]

    texts = [context + choice for pairs in requests for context, choice in (pairs[0].arguments,)]
    run = make_run(train_bpe(texts, [300], name="questions")[0], context=400)
    answers = harness_model(run).loglikelihood([r for pairs in requests for r in pairs], disable_tqdm=True)
    per = len(requests[0])
    found = [theirs.process_results(doc, answers[per * i : per * i + per]) for i, doc in enumerate(docs)]
    records = evaluate(run, name, options).records
    if name == "blimp":
        records = [row for row in records if str(row["id"]).startswith("anaphor_gender_agreement ")]
    assert [row["acc"] for row in records] == [row["acc"] for row in found]


@pytest.mark.parametrize("shots", [0, 2])
def test_triviaqa_is_asked_and_marked_as_the_harness_does(tmp_path: Path, make_run: Any, shots: int) -> None:
    words = ["Rome", "St. John's", "the U.S.", "red, white", "O'Neil", "Bath"]
    rows = [
        {"question_id": f"t{n}", "question": f"Which town is number {n}"}
        | {"answer": {"aliases": [words[n % 6], f"{words[n % 6]} {n}".upper()], "value": words[n % 6]}}
        for n in range(40)
    ]
    theirs = harness_task("triviaqa/default.yaml", rows[:20], rows[20:])
    docs, requests = harness_requests(theirs, shots)
    task = task_of("triviaqa")
    for one, content in zip((*task.files, *task.examples), (rows[:20], rows[20:]), strict=True):
        (tmp_path / one.name).write_text("\n".join(json.dumps(row) for row in content), encoding="utf-8")
    options = Options(task_data=tmp_path, shots=shots)
    assert [q.contexts[0] for q in task.ask(options)[0]] == [request.arguments[0] for (request,) in requests]

    texts = [text for row in rows for text in (row["question"], *row["answer"]["aliases"])]
    run = make_run(train_char([*texts, "\nQuestion:?Answer: .,"], name="char"), context=256)
    found = evaluate(run, "triviaqa", options)
    marks = [
        theirs.process_results(doc, [row["said"]])["exact_match"] for doc, row in zip(docs, found.records, strict=True)
    ]
    assert [row["acc"] for row in found.records] == marks
    # What it says is what greedy decoding says, up to the first stop.
    whole = run.generate(
        [q.contexts[0] for q in task.ask(options)[0]], max_new_tokens=generation.NEW_TOKENS, temperature=0
    )
    assert [row["said"] for row in found.records] == [re.split(r"[\n.,]", text)[0].strip() for text in whole]
    said = ["rome", "ROME!", "Rome 0", "Rom", "st johns", ""]
    for doc in docs[:6]:
        for one in said:
            mine = any(generation.plain(one) == generation.plain(name) for name in doc["answer"]["aliases"])
            assert mine == theirs.process_results(doc, [one])["exact_match"]


def test_mmlus_openings_are_the_harnesss() -> None:
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks/mmlu/default"
    configs = [load_yaml(file, resolve_func=False) for file in sorted(folder.glob("mmlu_*.yaml"))]
    assert len(configs) == 57
    for config in configs:
        assert mmlu.opening(config["dataset_name"]) == config["description"]


def test_blimps_kinds_are_the_harnesss() -> None:
    import lm_eval

    files = (Path(lm_eval.__file__).parent / "tasks/blimp").glob("[!_]*.yaml")
    assert {file.stem for file in files if "group" not in file.stem} >= set(blimp.KINDS)
    assert len(set(blimp.KINDS)) == 67


@pytest.mark.parametrize("name", sorted(set(YAML) - {"commonsense_qa"}))
def test_llm_foundrys_files_give_the_same_questions(test_data: Path, tmp_path: Path, name: str) -> None:
    """All but CommonsenseQA's, of whose five choices they have four."""
    authors_files(test_data, tmp_path, name)
    theirs, _, _ = task_of(name).ask(Options(task_data=tmp_path))
    folder = test_data if name == "hellaswag" else test_data / "tasks"
    ours, _, _ = task_of(name).ask(Options(task_data=folder, limit=len(theirs)))
    for one, other in zip(ours, theirs, strict=True):
        pairs = [
            [
                (context, question.delimiter + choice)
                for context, choice in zip(question.contexts, question.choices, strict=True)
            ]
            for question in (one, other)
        ]
        if name == "winograd_wsc":  # the harness leaves a blank before what follows the name, and adds one
            pairs[1] = [(context, rest.replace("  ", " ", 1)) for context, rest in pairs[1]]
        assert pairs[0] == pairs[1]
        assert one.gold == other.gold
