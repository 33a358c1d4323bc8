"""Steps before tokenizing: what each takes out of planted text, and that its report says so."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gptlab.data import Input, Manifest, TokenDataset, prepare
from gptlab.data.preparation import Engine
from gptlab.errors import DataError
from gptlab.tokenizer import load_tokenizer

DATA = Path(os.environ.get("GPTLAB_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")).resolve()

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in ("datatrove", "spacy", "py3langid")),
    reason="needs the extra: pip install 'gptlab[cluster-data]'",
)
needs_data = pytest.mark.skipif(not (DATA / "gutenberg").is_dir(), reason="needs GPTLAB_TEST_DATA")


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents(folder: Path, split: str = "train") -> list[str]:
    data = TokenDataset.open(folder, split)  # type: ignore[arg-type]
    text = load_tokenizer("byte").decode(data.read(0, data.tokens).tolist())
    return text.split("<|endoftext|>")[1:]


def done(path: Path | list, out: Path, *steps: object, **options: object) -> tuple[list[str], list[dict]]:
    """What is left of the texts, and what each step did."""
    inputs = [str(path)] if isinstance(path, Path) else path
    manifest = prepare(inputs, out, tokenizer="byte", steps=steps, workers=1, **options)  # type: ignore[arg-type]
    assert Manifest.load(out).options["steps"] == manifest.options["steps"]
    return documents(out), [step["did"] for step in manifest.options["steps"]]


def prose(count: int, seed: int = 0, words: int = 120) -> list[str]:
    """Made-up texts that share no run of words but by chance."""
    random = np.random.default_rng(seed)
    vocabulary = ["".join(random.choice(list("abcdefghijklmnoprstuvw"), random.integers(3, 9))) for _ in range(4000)]
    return [" ".join(random.choice(vocabulary, words)) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def passages() -> list[str]:
    """Real prose: beginnings of validation passages of the books."""
    table = pq.read_table(next((DATA / "gutenberg").glob("*validation*.parquet")), columns=["text"])
    return [text.as_py()[:1500] for text in table["text"][:60]]


# ---------------------------------------------------------------- duplicates


def test_exact_duplicates_go_inside_and_across_inputs(tmp_path: Path) -> None:
    texts = prose(30)
    first = write(tmp_path / "a.jsonl", [*texts[:20], texts[3], texts[3] + " "])
    second = write(tmp_path / "b.jsonl", [texts[5], *texts[20:]])
    left, (did,) = done([str(first), str(second)], tmp_path / "out", "ExactDuplicates")
    assert left == [*texts[:20], texts[3] + " ", *texts[20:]]
    assert (did["documents"], did["removed"]) == (33, 2)
    assert did["removed_bytes"] == len(texts[3]) + len(texts[5])


def test_a_document_of_both_splits_stays_in_validation(tmp_path: Path) -> None:
    texts = prose(20)
    train, held = write(tmp_path / "a.jsonl", texts), write(tmp_path / "b.jsonl", [texts[4], *prose(3, seed=1)])
    left, (did,) = done(train, tmp_path / "out", "ExactDuplicates", validation=[str(held)])
    assert left == [*texts[:4], *texts[5:]]
    assert documents(tmp_path / "out", "validation")[0] == texts[4]
    assert did["removed"] == 1
    assert Manifest.load(tmp_path / "out").shared_documents == {"train": 0, "validation": 0}


@needs_data
def test_minhash_finds_near_duplicates_and_no_look_alikes(tmp_path: Path, passages: list[str]) -> None:
    """20 copies with one word in sixty another, in a second file; 20 that share the first third and no more."""
    random, originals = np.random.default_rng(0), passages[:40]

    def edited(text: str) -> str:
        words = text.split(" ")
        for place in random.choice(len(words), max(1, len(words) // 60), replace=False):
            words[place] = "otherwise"
        return " ".join(words)

    near = [edited(text) for text in originals[:20]]
    alike = [
        text[: len(text) // 3] + other[len(other) // 3 :]
        for text, other in zip(originals[20:], prose(20, seed=3, words=300), strict=True)
    ]
    first = write(tmp_path / "a.jsonl", [*originals[:20], near[0], *originals[20:]])
    second = write(tmp_path / "b.jsonl", [*near[1:], *alike])
    left, (did,) = done([str(first), str(second)], tmp_path / "out", "MinHash")
    assert left == [*originals, *alike]
    assert did["removed"] == 20


def test_short_documents_meet_where_they_are_equal(tmp_path: Path) -> None:
    left, _ = done(write(tmp_path / "a.jsonl", ["one two", "one three", "one two"]), tmp_path / "out", "MinHash")
    assert left == ["one two", "one three"]


def test_duplicates_do_not_depend_on_units_or_engines(tmp_path: Path) -> None:
    texts = prose(300, words=2000)
    file = write(tmp_path / "a.jsonl", [*texts, *texts[::3], *prose(100, seed=5)])
    sums = []
    for name, options in (
        ("one", {"workers": 1}),
        ("small", {"workers": 1, "unit_bytes": 1 << 20}),
        ("two", {"engine": Engine(tasks=2), "unit_bytes": 1 << 20}),
        ("again", {"workers": 2, "unit_bytes": 1 << 20, "validation_fraction": 0.1}),
    ):
        prepare([str(file)], tmp_path / name, tokenizer="byte", steps=["ExactDuplicates"], **options)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        sums.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert sums[0] == sums[1] == sums[2]
    split = Manifest.load(tmp_path / "again").splits  # a tenth of the documents that are left
    assert (split["train"].documents, split["validation"].documents) == (360, 40)


def test_a_text_in_pieces_is_judged_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(prose(2500)))
    (tmp_path / "b.txt").write_text((tmp_path / "a.txt").read_text())
    assert (tmp_path / "a.txt").stat().st_size > 1 << 20
    inputs = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    left, (did,) = done(inputs, tmp_path / "out", "ExactDuplicates", unit_bytes=1)
    assert left == [(tmp_path / "a.txt").read_text()]
    assert (did["documents"], did["removed"]) == (2, 1)


def test_repeating_and_taking_out_repeats_exclude_each_other(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", prose(3))
    with pytest.raises(DataError, match="weight 2 repeats documents, and MinHash takes repeated ones out"):
        prepare([Input(str(file), weight=2)], tmp_path / "out", tokenizer="byte", steps=["MinHash"])


# ---------------------------------------------------------------- filters


@needs_data
def test_filters_leave_prose_and_take_what_is_none(tmp_path: Path, passages: list[str]) -> None:
    lines = "\n".join(f"# entry number {number}" for number in range(80))
    repeated = "\n".join(["Buy the best of all the things that we have here today."] * 40)
    marks = {text: sum(not (c.isalnum() or c.isspace()) for c in text) for text in passages}
    prose_of_a_book = sorted(passages, key=marks.__getitem__)[:10]  # in dialogue, marks outweigh words for Gopher
    left, did = done(write(tmp_path / "a.jsonl", [lines, *prose_of_a_book, repeated]), tmp_path / "q", "GopherQuality")
    assert left == [*prose_of_a_book, repeated]
    assert did[0]["reasons"] == {"gopher_too_many_hashes": 1}
    left, did = done(tmp_path / "a.jsonl", tmp_path / "r", "GopherQuality", "GopherRepetition")
    assert left == prose_of_a_book
    assert did[1]["reasons"] == {"dup_line_frac": 1}
    assert [one["documents"] for one in did] == [12, 11]
    short = {"use": "GopherQuality", "min_doc_words": 100_000 - 1}
    with pytest.raises(DataError, match="no text for the train split"):
        done(tmp_path / "a.jsonl", tmp_path / "s", short)
    _, did = done(tmp_path / "a.jsonl", tmp_path / "f", "FineWebQuality")
    assert did[0]["removed"] >= 1


def test_c4_drops_lines_and_pages(tmp_path: Path) -> None:
    page = "\n".join(f"The {word} of the house stood there for years." for word in ("door", "wall", "roof", "lamp"))
    texts = [f"{page}\nHome | About | Login\nAnd so it ended.", f"{page}\nfunction() {{ }} is code.\nNo more of it."]
    left, (did,) = done(write(tmp_path / "a.jsonl", texts), tmp_path / "out", "C4")
    assert left == [f"{page}\nAnd so it ended."]
    assert did["reasons"] == {"curly_bracket": 1}
    assert (did["changed"], did["removed"]) == (1, 1)
    assert did["removed_bytes"] == len("\nHome | About | Login") + len(texts[1])


def test_languages_are_told_apart(tmp_path: Path) -> None:
    texts = [
        "The old man walked slowly down to the harbour, where the boats were waiting for the tide to come in again.",
        "Der alte Mann ging langsam zum Hafen hinunter, wo die Boote auf die Flut warteten, die bald kommen sollte.",
        "Le vieil homme descendit lentement vers le port, où les bateaux attendaient que la marée revienne enfin.",
    ]
    left, (did,) = done(write(tmp_path / "a.jsonl", texts), tmp_path / "en", "Language")
    assert left == texts[:1]
    assert did["reasons"] == {"de": 1, "fr": 1}
    left, _ = done(tmp_path / "a.jsonl", tmp_path / "de", {"use": "Language", "languages": ["de", "fr"]})
    assert left == texts[1:]


def test_addresses_are_masked(tmp_path: Path) -> None:
    texts = ["Write to jane.doe@corp.co.uk or a@b.org.", "Server 8.8.8.8, at home 192.168.0.1.", "Nothing here."]
    left, (did,) = done(write(tmp_path / "a.jsonl", texts * 2), tmp_path / "out", "MaskPII")
    masked = ["Write to email@example.com or email@example.com.", "Server 22.214.171.124, at home 192.168.0.1."]
    assert left == [*masked, texts[2]] * 2
    assert (did["changed"], did["removed"]) == (4, 0)
    left, _ = done(tmp_path / "a.jsonl", tmp_path / "mails", {"use": "MaskPII", "ip": None, "email": "<mail>"})
    assert left[:2] == ["Write to <mail> or <mail>.", texts[1]]


# ---------------------------------------------------------------- decontamination


@pytest.mark.skipif(not (DATA / "hellaswag").is_dir(), reason="needs GPTLAB_TEST_DATA")
def test_planted_questions_go_and_are_named(tmp_path: Path, gptlab: Callable[..., object], passages: list[str]) -> None:
    from gptlab.evals.passages import passages as questions

    found = {task: questions(task, DATA if task == "hellaswag" else DATA / "tasks") for task in TASKS}
    planted = {task: [found[task][number] for number in (10, 500, 2000)] for task in TASKS}
    texts = list(passages[:20])
    for task, chosen in planted.items():
        for place, (_, text) in enumerate(chosen):
            texts.insert(3 + 4 * place, f"He said so.\n{text.upper().replace(', ', ' ')}\nAnd {task} it was.")
    file = write(tmp_path / "a.jsonl", texts)
    left, (did,) = done(file, tmp_path / "out", "Decontaminate", questions=found.__getitem__)
    assert left == passages[:20]
    assert did["reasons"] == {f"{task} {name}": 1 for task in TASKS for name, _ in planted[task]}
    assert did["removed"] == 6
    run = gptlab(
        *("data", "prepare", "--input", file, "--tokenizer", "byte", "--out", "cli", "--task-data", DATA),
        *("--step", "{use: Decontaminate, tasks: [hellaswag], words: 20}", "--engine", "local", "--tasks", "2"),
    )
    assert "Decontaminate" in run.stdout  # type: ignore[attr-defined]
    (step,) = Manifest.load(tmp_path / "cli").options["steps"]
    assert step["tasks"] == ["hellaswag"]
    assert set(step["did"]["reasons"]) <= {f"hellaswag {name}" for name, _ in planted["hellaswag"]}
    assert step["did"]["removed"] >= 2


TASKS = ("hellaswag", "lambada_openai")


# ---------------------------------------------------------------- part of what the data are


def test_steps_are_off_by_default_and_part_of_the_identity(tmp_path: Path) -> None:
    texts = prose(10)
    file = write(tmp_path / "a.jsonl", [*texts, texts[0]])
    prepare([str(file)], tmp_path / "plain", tokenizer="byte", workers=1)
    assert "steps" not in Manifest.load(tmp_path / "plain").options
    done(file, tmp_path / "exact", "ExactDuplicates")
    plain, exact = (TokenDataset.open(tmp_path / name, "train").fingerprint for name in ("plain", "exact"))
    assert plain != exact


def test_a_preset_of_ones_own_names_steps(tmp_path: Path, gptlab: Callable[..., object]) -> None:
    texts = prose(10)
    write(tmp_path / "a.jsonl", [*texts, texts[0]])
    (tmp_path / "mix.yaml").write_text("inputs: [a.jsonl]\ntokenizer: byte\nsteps: [ExactDuplicates]\n")
    gptlab("data", "prepare", "mix.yaml", "--step", "MinHash")
    steps = Manifest.load(tmp_path / "data" / "mix").options["steps"]
    assert [(step["use"], step["did"]["removed"]) for step in steps] == [("ExactDuplicates", 1), ("MinHash", 0)]
    assert steps[1]["bands"] == 14
    assert set(steps[1]["versions"]) == {"datatrove", "spacy"}
