"""`gptlab eval --resume`: what a killed evaluation had computed is taken up, and comes to the very same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import gptlab_here, python_of

from gptlab.cli import main
from gptlab.evals import journal, likelihood
from gptlab.evals.journal import Journal, Part
from gptlab.tokenizer import byte_tokenizer

KILLED = """\
import os, signal, sys
from gptlab.cli import main
from gptlab.evals import journal
from gptlab.record.evaluation import Evaluation

left = int(sys.argv.pop(1))
journal.WRITE_SECONDS = 0.0
keep, write = journal.Journal.keep, Evaluation.write

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def counted(self, *found):
    global left
    keep(self, *found)
    left -= 1
    if left == 0:
        die()

journal.Journal.keep = counted
if left < 0:
    Evaluation.write = die
main()
"""
"""`gptlab` with a moment at which it is killed: after so many batches, or, with -1, before its first result is
written."""


@pytest.fixture
def folder(make_run, tmp_path: Path) -> Path:
    """A run, and questions of several tasks."""
    make_run(byte_tokenizer(), name="b")
    made = tmp_path / "questions"
    made.mkdir()
    boats = [f"boat {n} of {n % 5}" for n in range(30)]
    rows: dict[str, list[dict[str, Any]]] = {
        "copa.jsonl": [{"query": f"A {b} sank because", "choices": [f"it {b}", "so"], "gold": 0} for b in boats],
        "lambada_openai.jsonl": [{"context": f"In {b} is a", "continuation": "stone"} for b in boats],
        "triviaqa.jsonl": [{"question": f"Who is in {b}", "answer": {"aliases": [b]}} for b in boats],
    }
    for name, lines in rows.items():
        (made / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`call("--tasks", …)` evaluates the run in this process; gives what was said."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(folder)
        runs = [] if arguments[0].startswith("runs/") else ["runs/b"]
        return gptlab_here(monkeypatch, capsys, "eval", *runs, *arguments, "--task-data", "questions")

    return run


def kill(folder: Path, moment: int, *arguments: str, processes: int = 1) -> None:
    """Evaluate in a process of its own, or several, until it is killed."""
    (folder / "killed.py").write_text(KILLED)
    runs = [] if arguments[0].startswith("runs/") else ["runs/b"]
    words = ["killed.py", str(moment), "eval", *runs, *arguments, "--task-data", "questions", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*python_of(processes), *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (-signal.SIGKILL if processes == 1 else 1), done.stderr


def results(folder: Path) -> dict[str, Any]:
    """All results, without what depends on the clock; their files are removed."""
    found = {}
    for path in sorted((folder / "runs").glob("*/evals/*.json")):
        one = found[f"{path.parts[-3]}/{path.name}"] = json.loads(path.read_text(encoding="utf-8"))
        del one["seal"], one["settings"]["seconds"]
        path.unlink()
    return found


def journals(folder: Path) -> list[Path]:
    return sorted((folder / "runs/b/evals").glob(".*.partial.jsonl"))


def batches(folder: Path) -> int:
    """How many are in the journals."""
    return sum(len(path.read_text().splitlines()) - 1 for path in journals(folder))


TASKS = ("--tasks", "copa,triviaqa,core")


def count_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by an item for each batch of likelihoods that is computed."""
    computed: list[int] = []
    score = likelihood._score

    def counted(*arguments: Any) -> Any:
        computed.append(1)
        return score(*arguments)

    monkeypatch.setattr(likelihood, "_score", counted)
    return computed


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 3, -1])
def test_a_killed_evaluation_goes_on(
    folder: Path, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """kill -9 after the first batch, after the third, and when all of a task is computed and nothing written."""
    call(*TASKS)
    undisturbed = results(folder)
    kill(folder, moment, *TASKS)
    (left,) = journals(folder)
    there = batches(folder)
    assert there == moment or moment < 0 < there
    computed = count_batches(monkeypatch)
    said = call(*TASKS, "--resume")
    assert f"copa: goes on where it was stopped: {there} batches are there" in said
    assert results(folder) == undisturbed
    assert journals(folder) == []
    resumed = len(computed)
    call(*TASKS)
    assert len(computed) - resumed == resumed + there
    assert left.name == ".copa.0.partial.jsonl"


@pytest.mark.slow
def test_another_number_of_processes_goes_on(folder: Path, call: Callable[..., str]) -> None:
    """Killed as two processes and continued by one, and the other way round; a torn line is dropped."""
    call(*TASKS)
    undisturbed = results(folder)
    kill(folder, 2, *TASKS, processes=2)
    assert batches(folder) >= 2
    torn = journals(folder)[0]
    torn.write_bytes(torn.read_bytes()[:-9])
    said = call(*TASKS, "--resume")
    assert "copa: goes on where it was stopped" in said
    assert results(folder) == undisturbed

    kill(folder, 2, *TASKS)
    launcher = [*python_of(2), "-m", "gptlab"]
    words = ["eval", "runs/b", "--task-data", "questions", "--device", "cpu", *TASKS, "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "copa: goes on where it was stopped: 2 batches are there" in done.stderr
    assert results(folder) == undisturbed
    assert journals(folder) == []


@pytest.mark.slow
def test_of_several_runs_the_first_is_taken_and_the_second_goes_on(
    make_run, folder: Path, call: Callable[..., str]
) -> None:
    make_run(byte_tokenizer(), name="c", context=64)
    asked = ("runs/b", "runs/c", "--tasks", "core")
    call(*asked)
    undisturbed = results(folder)
    assert set(undisturbed) == {"b/core.json", "c/core.json"}
    call("runs/b", "--tasks", "core")
    kill(folder, 2, *asked, "--resume")
    said = call(*asked, "--resume")
    assert "runs/b/evals/core.json: is of these weights and questions already" in said
    assert "core: goes on where it was stopped: 2 batches are there" in said
    assert results(folder) == undisturbed


def test_finished_results_are_taken_as_they_are(folder: Path, call: Callable[..., str]) -> None:
    call("--tasks", "copa,lambada_openai", "--limit", "9")
    files = {path: path.stat().st_mtime_ns for path in (folder / "runs/b/evals").glob("*.json")}
    said = call("--tasks", "copa,lambada_openai", "--limit", "9", "--resume")
    assert said.count("is of these weights and questions already, and is taken as it is") == 2
    assert {path: path.stat().st_mtime_ns for path in files} == files

    assert "taken as it is" not in call("--tasks", "copa", "--limit", "8", "--resume")  # of other settings
    assert "taken as it is" in call("--tasks", "copa", "--limit", "8", "--resume")
    questions = folder / "questions/copa.jsonl"
    questions.write_text(questions.read_text().replace("sank", "swam"))
    assert "taken as it is" not in call("--tasks", "copa", "--limit", "8", "--resume")
    assert "taken as it is" in call("--tasks", "copa", "--limit", "8", "--resume")
    assert "taken as it is" not in call("--tasks", "copa", "--limit", "8")  # nobody asked to go on


def stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `copa` be computed, and the disk refuse its result: the journal is what stays."""
    from gptlab.errors import GptlabError
    from gptlab.record.evaluation import Evaluation

    def full(self: Evaluation, path: Path) -> None:
        raise GptlabError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "write", full)
        patch.setattr(sys, "argv", ["gptlab", "eval", "runs/b", "--task-data", "questions", "--tasks", "copa"])
        patch.chdir(folder)
        with pytest.raises(SystemExit):
            main()
    assert len(journals(folder)) == 1


def test_a_journal_of_something_else_is_not_used(
    folder: Path, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(folder, monkeypatch)
    said = call("--tasks", "copa", "--limit", "9", "--resume")
    assert "copa: what was begun is of another limit (None, not 9), and is not used" in said
    assert journals(folder) == []

    stop(folder, monkeypatch)
    questions = folder / "questions/copa.jsonl"
    questions.write_text(questions.read_text().replace("sank", "swam"))
    assert "what was begun is of other questions, and is not used" in call("--tasks", "copa", "--resume")

    stop(folder, monkeypatch)
    results(folder)
    (left,) = journals(folder)
    left.write_text("{" + left.read_text())
    assert "what was begun is damaged, and is not used" in call("--tasks", "copa", "--resume")

    stop(folder, monkeypatch)
    call("--tasks", "lambada_openai")  # another task's stays
    assert len(journals(folder)) == 1
    assert "goes on" not in call("--tasks", "copa")  # without --resume it is removed, and all is computed
    assert journals(folder) == []


def test_a_number_that_was_edited_is_computed_again(
    folder: Path, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call("--tasks", "copa")
    undisturbed = results(folder)
    stop(folder, monkeypatch)
    (left,) = journals(folder)
    head, *lines = left.read_text().splitlines()
    row = json.loads(lines[1])
    row["found"][0][0] -= 1.0
    left.write_text("\n".join([head, lines[0], json.dumps(row), *lines[2:]]) + "\n")
    computed = count_batches(monkeypatch)
    assert f"{len(lines) - 1} batches are there" in call("--tasks", "copa", "--resume")
    assert len(computed) == 1
    assert results(folder) == undisturbed


def test_a_disk_that_refuses_the_journal_does_not_end_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "WRITE_SECONDS", 0.0)
    (tmp_path / "file").write_text("")
    kept = Journal(tmp_path / "file", "copa", {})
    with kept.open():
        part = Part("x")
        part.keep(0, [1.0])
        part.keep(1, [2.0])
    assert capsys.readouterr().err.count("if this is killed, it begins anew") == 1


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = [0.1 + 0.2, -1e-300, 2.0**-1074, -123.45678901234567]
    kept = Journal(tmp_path, "copa", {"a": 1})
    with kept.open():
        Part("x", b"y").keep(3, values)
        Part("x", b"z").keep(4, [float("nan")])  # ends an evaluation; nothing to keep
    again = Journal(tmp_path, "copa", {"a": 1}, resume=True)
    with again.open():
        assert Part("x", b"y").known == {3: values}
        assert Part("x", b"z").known == {}
    assert Part("x", b"y").known == {}  # outside of an evaluation
