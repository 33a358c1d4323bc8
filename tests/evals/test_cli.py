"""`gptlab eval` as a user types it."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import gptlab, make_data, python_of
from safetensors.torch import load_file, save_file

from gptlab.cli import main
from gptlab.data import TokenDataset
from gptlab.evals import benchmark_names
from gptlab.evals.intervals import compare_answers, wilson
from gptlab.evals.suites import SUITES
from gptlab.tokenizer import byte_tokenizer

Refused = Callable[..., str]


@pytest.fixture
def runs(make_run, tmp_path: Path) -> Path:
    """Two runs with one data set; gives the folder they are in."""
    data = make_data(tmp_path / "made")
    for name in ("a-run-whose-name-is-rather-long-0123abcd-seed1", "b"):
        make_run(byte_tokenizer(), name=name, data=data)
    return tmp_path / "runs"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """`call("eval", …)` → exit code, standard output, standard error; in this process, far from any network."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        monkeypatch.setattr(sys, "argv", ["gptlab", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def refused(call: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """A command that must fail as a user's mistake does; gives its one line."""
    monkeypatch.delenv("GPTLAB_BENCHMARKS", raising=False)

    def run(*arguments: str | Path) -> str:
        code, out, err = call(*arguments)
        lines = err.strip().splitlines()
        assert (code, out, len(lines)) == (2, "", 1), err
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def test_several_runs_side_by_side(runs: Path, benchmarks: Path, tmp_path: Path) -> None:
    folders = sorted(runs.iterdir())
    arguments = ["eval", *map(str, folders), "--tasks", "loss,hellaswag", "--limit", "5"]
    done = gptlab(*arguments, cwd=tmp_path, GPTLAB_BENCHMARKS=str(benchmarks), COLUMNS="60")
    table = done.stdout.splitlines()
    assert len(table) == 3
    assert "hellaswag acc" in table[0]
    assert "bits/byte" in table[0]
    for folder, line in zip(folders, table[1:], strict=True):
        assert line.startswith(folder.name)
        loss = json.loads((folder / "evals" / "loss.json").read_text())
        answers = json.loads((folder / "evals" / "hellaswag.json").read_text())
        assert loss["results"]["windows"] == answers["results"]["questions"] == len(answers["records"]) == 5
        assert f"{loss['results']['loss']:.4f} ± {loss['standard_errors']['loss']:.4f}" in line
        assert f"{answers['results']['acc']:.4f} ± {answers['standard_errors']['acc']:.4f}" in line
        assert loss["settings"]["step"] == 10
        assert answers["settings"]["file"] == "hellaswag_val.jsonl"
        assert sum(row["acc"] for row in answers["records"]) / 5 == answers["results"]["acc"]
        assert f"wrote {folder}/evals/loss.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_data_set_has_its_own_file(runs: Path, call: Callable[..., tuple], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "made" / "data", tmp_path / "more")
    code, _, err = call("eval", runs / "b", "--data", "more", "--limit", "1")
    assert code == 0, err
    (written,) = (runs / "b" / "evals").glob("loss-more-*.json")
    fingerprint = json.loads(written.read_text())["settings"]["data"]["data"]["fingerprint"]
    assert written.stem == f"loss-more-{fingerprint[:8]}"
    assert not (runs / "b" / "evals" / "loss.json").exists()


def test_questions_are_found_where_they_are_named(runs: Path, call: Callable[..., tuple], tmp_path: Path) -> None:
    from gptlab.evals.benchmark import QuestionFile, find_questions

    for name in ("one/hellaswag_val.jsonl", "two/hellaswag/hellaswag_val.jsonl.gz", "three/hellaswag_val.jsonl.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        folder = tmp_path / Path(name).parts[0]
        assert find_questions("hellaswag", QuestionFile("hellaswag_val.jsonl", "https://x"), folder) == path


def test_mistakes_are_one_line(runs: Path, refused: Refused, benchmarks: Path, tmp_path: Path) -> None:
    b = runs / "b"
    assert "did you mean 'hellaswag'" in refused("eval", b, "--tasks", "loss,helaswag")
    assert "--limit must be at least 1" in refused("eval", b, "--limit", "0")
    assert "nowhere is not a run folder" in refused("eval", b, "nowhere")
    assert "has no checkpoint 'step-7'" in refused("eval", b, "--checkpoint", "step-7")
    assert "is not a data set (nothing is there)" in refused("eval", b, "--data", "nowhere")
    assert "holds no hellaswag/" in refused("eval", b, "--tasks", "hellaswag", "--task-data", runs)
    offline = refused("eval", b, "--tasks", "hellaswag")
    assert "cannot be downloaded" in offline
    assert "--task-data FOLDER or GPTLAB_BENCHMARKS" in offline
    assert "holds no hellaswag/" in refused("eval", b, "--tasks", "loss,hellaswag", "--task-data", runs)
    assert not (b / "evals").exists()  # known before the first task, not after it
    shutil.rmtree(tmp_path / "made")
    assert "is not a data set (nothing is there)" in refused("eval", b)
    assert not any(runs.rglob("evals"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"ind": 1, "activity_label": "A", "ctx": "B", "endings": ["a", "b"]}', "no field 'label'"),
        (
            '{"ind": 1, "activity_label": "A", "ctx": "B", "endings": ["a", "b"], "label": 2}',
            "the right answer, 2, is not one",
        ),
        (
            '{"ind": 1, "activity_label": "A", "ctx": "B", "endings": ["a", "b"], "label": ""}',
            "is no hellaswag question",
        ),
        ('{"ind": 1, "activity_label": "A", "ctx": "B", "endings": "ab", "label": 1}', "not text"),
        ('{"ind": 1, "activity_label": "A", "ctx": null, "endings": ["a", "b"], "label": 1}', "ctx is NoneType"),
        ('{"ind": 1, "activity_label": "A", "ctx": "B", "endings": ["a", ""], "label": 1}', "an answer is empty"),
        ("[]", "is no hellaswag question"),
        ('{"ind": 1, "activi', "is no hellaswag question"),
        ("\udcff", "cannot be read"),
        ("", "holds no questions"),
    ],
)
def test_damaged_questions_are_one_line(
    runs: Path, refused: Refused, benchmarks: Path, line: str, complaint: str
) -> None:
    path = benchmarks / "hellaswag" / "hellaswag_val.jsonl"
    good = path.read_bytes() if line else b""
    path.write_bytes(good + line.encode("utf-8", "surrogateescape") + b"\n")
    message = refused("eval", runs / "b", "--tasks", "hellaswag", "--task-data", benchmarks)
    assert complaint in message
    assert str(path) in message
    assert not (runs / "b" / "evals").exists()


def test_half_a_download_is_one_line(runs: Path, refused: Refused, benchmarks: Path) -> None:
    path = benchmarks / "hellaswag" / "hellaswag_val.jsonl"
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_suffix(".jsonl.gz").write_bytes(whole[: len(whole) // 2])
    message = refused("eval", runs / "b", "--tasks", "hellaswag", "--task-data", benchmarks)
    assert "cannot be read" in message


def test_questions_beside_the_working_folder_are_found(
    tmp_path: Path, benchmarks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlab.evals.benchmark import QuestionFile, find_questions

    monkeypatch.delenv("GPTLAB_BENCHMARKS", raising=False)
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / "data" / "benchmarks").symlink_to(benchmarks)
    monkeypatch.chdir(tmp_path / "work")
    found = find_questions("hellaswag", QuestionFile("hellaswag_val.jsonl", "http://127.0.0.1:9/hellaswag_val.jsonl"))
    assert found.is_file()
    assert found.parts[:2] == ("data", "benchmarks")


# ---------------------------------------------------------------- many tasks, tables to paste, question by question


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder with questions of three tasks."""
    folder = tmp_path / "questions"
    folder.mkdir()
    odd = [{"query": f"Question: Is {n} odd?", "choices": ["no", "yes, it is", "n"], "gold": n % 2} for n in range(60)]
    boolq = [
        {"query": f"Passage: In {n // 5} boats.\nQuestion: is it {n}?\n", "choices": ["no", "yes"], "gold": n % 2}
        for n in range(60)
    ]
    for name, rows in (("arc_easy", odd), ("boolq", boolq)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_all_tasks_are_listed_with_what_they_ask(call: Callable[..., tuple]) -> None:
    code, out, _ = call("eval", "--list")
    assert code == 0
    tasks, suites = out.split("\n\n")
    assert [line.split()[0] for line in tasks.splitlines()[1:]] == list(benchmark_names())
    assert [line.split()[0] for line in suites.splitlines()[1:]] == list(SUITES)
    assert {task for _, tasks in SUITES.values() for task in tasks} <= set(benchmark_names())
    assert "which of four endings continues a scene" in out
    assert "`gptlab eval --list`" in call("eval")[2]


def test_a_suite_is_tasks_by_one_name(runs: Path, refused: Refused, call: Callable[..., tuple], tmp_path: Path) -> None:
    """Beside --tasks, each task once; without --tasks there is no loss."""
    assert "--suite: no suite 'smal'; did you mean 'small'?" in refused("eval", runs / "b", "--suite", "smal")
    (tmp_path / "wiki.test.tokens").write_text(" = A = \n \n A man is on a boat . \n", encoding="utf-8")
    (tmp_path / "ptb.test.txt").write_text("a man is on a boat\n", encoding="utf-8")
    line = json.dumps({"context": "On the boat there is a", "continuation": "man"})
    (tmp_path / "lambada_openai.jsonl").write_text(line, encoding="utf-8")
    asked = ["eval", runs / "b", "--task-data", tmp_path, "--suite", "perplexity"]
    code, out, err = call(*asked, "--format", "csv")
    assert code == 0, err
    assert out.startswith("run,step,wikitext word ppl")
    assert "loss" not in out
    code, out, err = call(*asked, "--tasks", "lambada_openai,wikitext", "--format", "csv")
    assert code == 0, err
    assert out.startswith("run,step,lambada_openai acc,perplexity,wikitext word ppl")
    assert out.splitlines()[0].count("wikitext") == 1


def test_tables_to_paste(runs: Path, questions: Path, call: Callable[..., tuple]) -> None:
    asked = ["eval", runs / "b", "--tasks", "arc_easy,boolq", "--task-data", questions]
    header = ["run", "step", "arc_easy acc", "acc_norm", "boolq acc"]
    _, out, err = call(*asked, "--format", "csv")
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == header
    assert rows[1][0] == "b"
    # Two choices of unlike length: an untrained model is at chance, and the table says so.
    assert sum(cell.endswith(" ~") for cell in rows[1]) >= 1
    assert "~ not above chance" in err
    _, out, _ = call(*asked, "--format", "markdown")
    assert [cell.strip() for cell in out.splitlines()[0].strip("|").split("|")] == header
    assert [cell.strip() for cell in out.splitlines()[2].strip("|").split("|")] == rows[1]
    assert len(out.splitlines()) == 3
    _, out, _ = call(*asked, "--format", "latex")
    assert out.startswith("\\begin{tabular}{lrrrr}\n")
    assert out.rstrip().endswith("\\end{tabular}")
    assert "arc\\_easy acc" in out
    code, _, err = call(*asked, "--format", "html")
    assert code == 2
    assert "--format html" in err


def test_intervals_are_by_groups_where_questions_share_a_passage(runs: Path, questions: Path, call) -> None:
    assert call("eval", runs / "b", "--tasks", "boolq,arc_easy", "--task-data", questions)[0] == 0
    found = json.loads((runs / "b/evals/boolq.json").read_text(encoding="utf-8"))
    alone = json.loads((runs / "b/evals/arc_easy.json").read_text(encoding="utf-8"))
    assert len({row["group"] for row in found["records"]}) == 12
    assert "group" not in alone["records"][0]
    right = [row["acc"] for row in found["records"]]
    assert found["results"]["intervals"]["acc"] == pytest.approx(
        list(wilson(right, [row["group"] for row in found["records"]])), abs=1e-5
    )
    right = [row["acc"] for row in alone["records"]]
    assert alone["results"]["intervals"]["acc"] == pytest.approx(list(wilson(right)), abs=1e-5)
    assert alone["results"]["chance"] == pytest.approx(1 / 3)


def test_two_runs_question_by_question(runs: Path, questions: Path, call, refused: Refused) -> None:
    one, other = sorted(runs.iterdir())
    both = [one, other, "--tasks", "arc_easy,boolq"]
    assert "has not been evaluated on arc_easy" in refused("compare", *both).split("; run")[0]
    assert call("eval", one, "--tasks", "arc_easy,boolq", "--task-data", questions)[0] == 0
    weights = load_file(other / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    moved = {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    save_file(moved, other / "model.safetensors")
    assert call("eval", other, "--tasks", "arc_easy,boolq", "--task-data", questions)[0] == 0
    code, out, err = call("compare", *both)
    assert code == 0
    assert "question by question, against " + one.name in out
    a, b = (json.loads((run / "evals/arc_easy.json").read_text())["records"] for run in (one, other))
    found = compare_answers([row["acc_norm"] for row in a], [row["acc_norm"] for row in b])
    (line,) = [line for line in out.splitlines() if line.startswith("b ") and "arc_easy" in line]
    assert f"{found.difference:+.4f}" in line
    assert f"{found.interval.low:+.4f} to {found.interval.high:+.4f}" in line
    assert f"{found.detectable:.4f}" in line
    assert f"{found.p:.3g}" in line.split()
    assert "4 of 5 cases" in err
    # Asked something else, or with examples: no comparison.
    assert call("eval", other, "--tasks", "arc_easy", "--task-data", questions, "--limit", "20")[0] == 0
    assert "was not asked what" in refused("compare", *both)
    assert "limit 20 against all" in refused("compare", *both)
    assert "has no answers to questions" in refused_after_loss(call, refused, one, other)


def refused_after_loss(call: Callable[..., tuple], refused: Refused, one: Path, other: Path) -> str:
    assert call("eval", one, other, "--tasks", "loss", "--limit", "2")[0] == 0
    return refused("compare", one, other, "--tasks", "loss")


def test_examples_are_part_of_the_result(runs: Path, questions: Path, call, refused: Refused) -> None:
    asked = ["eval", runs / "b", "--tasks", "arc_easy", "--task-data", questions]
    code, _, err = call(*asked, "--shots", "2", "--limit", "10")
    assert code == 0
    assert "examples are drawn from the questions themselves" in err
    found = json.loads((runs / "b/evals/arc_easy-2-shot.json").read_text(encoding="utf-8"))
    assert found["settings"]["shots"] == 2
    assert found["settings"]["examples"] == "the questions themselves"
    assert not (runs / "b/evals/arc_easy.json").exists()
    code, _, err = call(*asked, "--shots", "60")
    assert (code, err.splitlines()[-1]) == (2, "error: --shots 60: arc_easy has 59 examples; ask for fewer")
    assert "--shots must be at least 0" in refused(*asked, "--shots", "-1")
    assert "core's tasks have their own" in refused("eval", runs / "b", "--tasks", "core", "--shots", "1")
    stride = ["eval", runs / "b", "--tasks", "wikitext", "--task-data", questions]
    (questions / "wiki.test.tokens").write_text(" = One = \n \n A boat .\n", encoding="utf-8")
    assert "--stride 999: a window has 128 tokens" in refused(*stride, "--stride", "999")
    assert call(*stride, "--stride", "8", "--sequence-length", "16")[0] == 0
    kept = json.loads((runs / "b/evals/wikitext-window16-stride8.json").read_text(encoding="utf-8"))
    assert (kept["settings"]["stride"], kept["settings"]["context_length"]) == (8, 16)


def test_signal_to_noise_of_seeds(runs: Path, questions: Path, call) -> None:
    """Of two configs with two seeds each, by hand."""
    source = runs / "b"
    for name in ("x-0a1b2c3d", "y-4e5f6a7b"):
        for seed in (1, 2):
            folder = runs / f"{name}-seed{seed}"
            shutil.copytree(source, folder)
            weights = load_file(source / "model.safetensors")
            generator = torch.Generator().manual_seed(seed + ord(name[0]))
            moved = {key: value + 0.3 * torch.randn(value.shape, generator=generator) for key, value in weights.items()}
            save_file(moved, folder / "model.safetensors")
    folders = sorted(runs.glob("*-seed[12]"))[-4:]
    assert call("eval", *folders, "--tasks", "arc_easy", "--task-data", questions)[0] == 0
    _, out, _ = call("compare", *folders, "--tasks", "arc_easy")
    bits = [json.loads((f / "evals/arc_easy.json").read_text())["results"]["bits_per_byte"] for f in folders]
    signal = abs((bits[0] + bits[1]) / 2 - (bits[2] + bits[3]) / 2)
    noise = math.sqrt(((bits[0] - bits[1]) ** 2 / 2 + (bits[2] - bits[3]) ** 2 / 2) / 2)
    (line,) = [line for line in out.splitlines() if line.startswith("arc_easy bits_per_byte")]
    assert line.split()[2:] == [f"{signal:.4f}", f"{noise:.4f}", f"{signal / noise:.1f}"]
    # One seed of each config shows no noise, and there is no such table.
    assert "signal to noise" not in call("compare", *folders[::2], "--tasks", "arc_easy")[1]


def test_questions_that_were_in_the_training_data(runs: Path, call, refused: Refused, tmp_path: Path) -> None:
    """One question copied from the run's own data, one that is nowhere in it, and one too short to tell."""
    data = TokenDataset.open(tmp_path / "made" / "data", "train")
    text = byte_tokenizer().decode([int(one) for one in data.read(40, 200) if one != byte_tokenizer().end_of_text])
    rows = [
        {"query": text[:80], "choices": [text[81:110], "no", "a", "b"], "gold": 0},
        {"query": "Which word is in no book of all?", "choices": ["zyzzx qvk", "qvk", "a", "b"], "gold": 0},
        {"query": "A", "choices": ["b", "c", "d", "e"], "gold": 1},
    ]
    (tmp_path / "openbook_qa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = ["eval", runs / "b", "--tasks", "openbook_qa", "--task-data", tmp_path, "--contamination"]
    code, _, err = call(*asked)
    assert code == 0, err
    found = json.loads((runs / "b/evals/openbook_qa.json").read_text(encoding="utf-8"))
    assert [row["seen"] for row in found["records"]] == [True, False, None]
    assert (found["results"]["seen"], found["results"]["too_short_to_tell"]) == (1, 1)
    right = [row["acc"] for row in found["records"][1:]]
    assert found["results"]["acc_unseen"] == sum(right) / 2
    assert found["settings"]["contamination"]["training_data"] == {"data": data.fingerprint}
    assert "1 of 3 questions are in the training data (1 are too short to tell)" in err
    assert "--contamination is for tasks of questions" in refused("eval", runs / "b", "--contamination")
    assert "--shots is for tasks of questions" in refused("eval", runs / "b", "--shots", "2")
    assert "--stride is for wikitext and ptb" in refused("eval", runs / "b", "--stride", "2")
    assert "not for core" in refused("eval", runs / "b", "--tasks", "core", "--contamination")


@pytest.mark.slow
def test_two_processes_share_the_questions(runs: Path, questions: Path, call, tmp_path: Path) -> None:
    """Under torchrun: the same records as of one process, written once."""
    asked = ["eval", str(runs / "b"), "--tasks", "arc_easy,lambada_openai", "--task-data", str(questions)]
    lines = [{"context": f"In boat {n} there is a", "continuation": "stone"} for n in range(21)]
    (questions / "lambada_openai.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    launcher = [*python_of(2), "-m", "gptlab"]

    def launched(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([*launcher, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = launched(*asked, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    kept = {name: json.loads((runs / f"b/evals/{name}.json").read_text()) for name in ("arc_easy", "lambada_openai")}
    assert call(*asked)[0] == 0
    for name, shared in kept.items():
        alone = json.loads((runs / f"b/evals/{name}.json").read_text(encoding="utf-8"))
        assert [row["acc"] for row in shared["records"]] == [row["acc"] for row in alone["records"]]
        for one, other in zip(shared["records"], alone["records"], strict=True):
            assert one["logprobs"] == pytest.approx(other["logprobs"], rel=1e-5)
        assert {key: value for key, value in shared["settings"].items() if key != "seconds"} == {
            key: value for key, value in alone["settings"].items() if key != "seconds"
        }
    done = launched("eval", str(runs / "b"), "--tasks", "loss")
    assert "loss: one process's work" in done.stderr


BOOLQ = "Passage: A.\nQuestion: b?\n"
ELSEWHERE: list[tuple[str, dict, str]] = [
    ("arc_easy", {"query": BOOLQ, "choices": ["no", "yes"], "gold": 0}, "is it another task's"),
    ("arc_easy", {"query": "Question: A?", "choices": ["no", "yes"], "gold": 0}, "has 2 choices, and here it is 3"),
    ("piqa", {"query": "Question: A?\n", "choices": ["a", "b", "c"], "gold": 0}, "has 3 choices, and here it is 2"),
    ("boolq", {"query": BOOLQ, "choices": ["yes", "no"], "gold": 0}, "not no and yes"),
    ("copa", {"query": "A went, so", "choices": ["a", "b"], "gold": 0}, "neither because nor therefore"),
    ("commonsense_qa", {"query": "Question: A?", "choices": list("ABCD"), "gold": 0}, "not listed by letters"),
    ("winogrande", {"sentence": "A was", "option1": "a", "option2": "b", "answer": "1"}, "has no gap"),
    ("openbook_qa", {"question_stem": "A", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "not in"),
    ("race", {"article": "A", "problems": "__import__('os').getcwd()"}, "is no race question"),
    ("mmlu", {"question": "A", "subject": "b", "choices": ["a", "b"], "answer": 7}, "the right answer, 7, is not"),
    ("triviaqa", {"question": "A", "answer": {"aliases": []}}, "the right answer, 0, is not one of its 0"),
]


@pytest.mark.parametrize(("task", "row", "words"), ELSEWHERE)
def test_a_file_of_something_else_is_one_line(
    runs: Path, refused: Refused, tmp_path: Path, task: str, row: dict, words: str
) -> None:
    """The files of many tasks have the same fields: one in the place of another must not give a number."""
    (tmp_path / f"{task}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    said = refused("eval", runs / "b", "--tasks", task, "--task-data", tmp_path)
    assert words in said
    assert f"{task}.jsonl, line 1: is no {task} question" in said
    assert "get the file again: https://" in said
