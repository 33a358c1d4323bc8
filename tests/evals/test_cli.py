"""`gptlab eval` as a user types it."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import gptlab, make_data

from gptlab.cli import main
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
