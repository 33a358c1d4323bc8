"""`gptlab compare`: any runs, as far as they went, without torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import gptlab

from gptlab.errors import GptlabError
from gptlab.lab.report.compare import (
    config_differences,
    config_lines,
    format_ranges,
    measure_top_k,
    read_plain_config,
    read_runs,
    table,
    unlike_lines,
    write_comparison,
)
from gptlab.lab.report.registry import list_runs
from gptlab.lab.runs.store import Store

CONFIG = """\
name: {name}
model:
  dim: 8
optimizer:
  use: {optimizer}
  lr: {lr}
train:
  tokens: 1000
  batch_tokens: 100
"""


def make_run(name: str, *, steps: int = 10, lr: float = 0.1, optimizer: str = "AdamW") -> Path:
    """A run folder as one that was interrupted after so many of its ten steps."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(name=name, lr=lr, optimizer=optimizer))
    rows = [{"step": n, "tokens": 100 * n, "train/loss": 5 - n / 10, "seconds": n / 4} for n in range(1, steps + 1)]
    rows += [{"step": n, "tokens": 100 * n, "val/loss": 5.5 - n / 10, "seconds": n / 4} for n in (2, 4) if n <= steps]
    rows.sort(key=lambda row: row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_unfinished_runs_are_compared_as_far_as_they_went() -> None:
    runs = read_runs([make_run("a", steps=5), make_run("b", steps=2)])
    assert [run.state for run in runs] == ["unfinished, step 5 of 10", "unfinished, step 2 of 10"]
    assert [run.final for run in runs] == pytest.approx([5.1, 5.3])
    row = dict(zip(table(runs).header, table(runs).rows[0], strict=True))
    assert row["loss"] == "5.1000"
    assert row["parameters"] == "–", "facts.json is not there, so nobody knows"
    assert row["tokens/s"] == "400"


def test_runs_of_an_experiment(lab: Path) -> None:
    folders = sorted(Path("runs").glob("*-seed1"))[:2]
    runs = read_runs(folders)
    assert [run.state for run in runs] == ["finished"] * 2
    assert all(run.facts is not None and run.final is not None for run in runs)


def test_config_differences_name_the_runs() -> None:
    runs = read_runs([make_run("a"), make_run("b", lr=0.2), make_run("c", lr=0.2)])
    assert list(config_lines(runs)) == ["optimizer.lr: 0.1 (1), 0.2 (2-3)"]
    runs = read_runs([Path("runs/a"), Path("runs/b"), make_run("d", optimizer="Muon")])
    assert [key for key, _ in config_differences(runs)] == ["optimizer"], "another component is one difference"
    assert format_ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


def test_torn_is_said_and_damaged_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run("a"), make_run("b")
    with open(a / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "tok')
    assert read_runs([a, b])[0].step == 10
    assert "metrics.jsonl:13: the last line is torn" in capsys.readouterr().err
    with open(a / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 12}\n')
    done = gptlab("compare", str(a), str(b), cwd=Path.cwd(), check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "runs/a/metrics.jsonl:13: not a row of metrics; delete the line, or restore the file"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "facts.json").write_text('{"schema": 0}'), "of schema 0, this gptlab reads 1"),
        (lambda run: (run / "config.yaml").unlink(), "is not a run folder"),
        (lambda run: (run / "config.yaml").write_text("train: {tokens: ["), "config.yaml: damaged"),
        (lambda run: (run / "config.yaml").write_text("train: {}\n"), "no train.tokens"),
    ],
)
def test_bad_runs(damage, message: str) -> None:  # type: ignore[no-untyped-def]
    folders = [make_run("a"), make_run("b")]
    damage(folders[1])
    with pytest.raises(GptlabError, match=message):
        read_runs(folders)


def test_bad_questions() -> None:
    a, b = make_run("a"), make_run("b")
    with pytest.raises(GptlabError, match="named twice"):
        read_runs([a, Path("runs/../runs/a")])
    with pytest.raises(GptlabError, match="none of these runs logs 'speed'"):
        read_runs([a, b], "speed")
    with pytest.raises(GptlabError, match="top_k=3: measured are 1, 5, 10"):
        measure_top_k([a], [3])


def test_a_config_is_read_as_it_is_written(lab: Path) -> None:
    from gptlab.config.yamlfile import read_yaml

    for path in Path("runs").glob("*/config.yaml"):
        assert read_plain_config(path) == read_yaml(path)[0]


def test_files(tmp_path: Path) -> None:
    runs = read_runs([make_run("a"), make_run("b", lr=0.2)])
    write_comparison(runs, tmp_path / "out")
    with open(tmp_path / "out" / "comparison.csv") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["a", "b"]
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "optimizer.lr" in (tmp_path / "out" / "comparison.html").read_text()


@pytest.mark.slow
def test_top_k_accuracy(lab: Path) -> None:
    """Measured in another process; at most one in k of a uniform guess, and rising with k."""
    folders = sorted(Path("runs").glob("*-seed1"))[:2]
    measure_top_k(folders, [1, 5])
    for run in read_runs(folders):
        assert 0 <= run.top_k[1] <= run.top_k[5] <= run.top_k[10] <= 1
        results = json.loads((run.folder / "evals" / "topk.json").read_text())["results"]
        assert run.top_k[5] == results["top_5"] > 5 / 257, "better than guessing"


@pytest.mark.parametrize("command", ["compare runs/a runs/b", "report nowhere", "paper nowhere", "list nowhere"])
def test_no_torch(command: str) -> None:
    make_run("a"), make_run("b")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gptlab", *command.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "gptlab.lab.runs.store" in modules or command.startswith("compare")
    assert not {name for name in modules if name.split(".")[0] in ("torch", "pandas")}


@pytest.mark.parametrize("came", ["imported", "soup"])
def test_what_was_not_trained_here_has_no_training_settings(came: str, tmp_path: Path) -> None:
    """An import's config.yaml is whole, so that it can be read as any; but nobody chose its learning rate."""
    runs = [make_run("a"), make_run("b", lr=0.2), make_run("c", lr=0.3)]
    (runs[2] / "env.json").write_text(json.dumps([{"started": "2026-01-01T00:00:00", came: {}}]))
    found = read_runs(runs)
    assert list(config_lines(found)) == ["optimizer.lr: 0.1 (1), 0.2 (2), – (3)"]
    assert list(config_lines([found[0], found[2]])) == []
    write_comparison(found, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "0.3" not in page.partition("In what their configs differ")[2].partition("</table>")[0]
    (entry,) = (each for each in list_runs(Store(runs[2].parent)) if each.name == runs[2].name)
    assert entry.steps is None


def test_validations_of_different_text_are_not_shown_as_if_they_could_be_compared() -> None:
    folders = [make_run(name) for name in ("a", "b", "c", "d")]
    for folder, digest in zip(folders, ("one", "two", "two"), strict=False):
        (folder / "env.json").write_text(json.dumps([{"validation": {"validation data": digest, "window": "32"}}]))
    runs = read_runs(folders)
    assert list(unlike_lines(runs)) == ["do not compare loss of 2-3 with that of 1: validation data two against one"]
    assert not list(unlike_lines(runs, "train/loss"))
    assert not list(unlike_lines(runs[1:]))  # of a run before 0.4 it is not known
    write_comparison(runs, Path("out"))
    assert "do not compare" in Path("out/comparison.html").read_text()


def test_as_an_object() -> None:
    from gptlab.lab.report.comparison import compare

    runs = [make_run("a", steps=5), make_run("b", steps=2, lr=0.2)]
    found = compare(runs)
    lines = repr(found).splitlines()
    assert lines[0] == "2 runs"
    assert [line.split()[1] for line in lines[2:4]] == ["a", "b"]
    assert lines[-2:] == ["configs differ in", "  optimizer.lr: 0.1 (1), 0.2 (2)"]
    assert found.curves().startswith(b"\x89PNG")
    assert found.curves()._repr_png_() == bytes(found.curves())
    assert "bytes" in repr(found.curves())  # not the picture itself
    with pytest.raises(GptlabError, match="two runs or more"):
        compare(runs[:1])
