"""Experiments that come with gptlab: whole, listed with what came of them, copied; and what a name alone is told."""

from __future__ import annotations

import fnmatch
import json
import shutil
import tomllib
from pathlib import Path

import pytest
from helpers import gptlab, make_data

from gptlab.cli.experiment import complete_shipped
from gptlab.config import load_config
from gptlab.config.load import difference
from gptlab.errors import ConfigError
from gptlab.lab.experiment.preset import copy_experiment, shipped
from gptlab.lab.experiment.spec import Statement, load_experiment, read_statement
from gptlab.lab.report.registry import list_shipped

ROOT = Path(__file__).parents[2]
every_one = pytest.mark.parametrize("name", sorted(shipped()))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some data under the names that the shipped experiments ask for."""
    folder = tmp_path_factory.mktemp("prepared")
    made = make_data(folder)
    for one in list_shipped():
        assert one.baseline.data.path is not None
        shutil.copytree(made, folder / one.baseline.data.path, dirs_exist_ok=True)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@every_one
def test_a_copy_asks_the_same_of_the_same_runs(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared)
    ours, copied = load_experiment(shipped()[name]), load_experiment(copy_experiment(name, tmp_path / name))
    assert copied.statement == ours.statement
    assert [arm.hash for arm in copied.all_arms] == [arm.hash for arm in ours.all_arms]
    assert all(arm.diff or arm.repeats_baseline for arm in copied.arms)


@every_one
def test_each_was_run_as_it_is_asked_and_has_notes(name: str) -> None:
    folder = shipped()[name]
    report, statement = json.loads((folder / "report.json").read_text()), read_statement(folder)[0]
    assert report["hypothesis"] == statement.hypothesis
    assert (report["alpha"], report["smallest_effect"]) == (
        statement.decision.alpha,
        statement.decision.smallest_effect,
    )
    assert {arm["name"] for arm in report["arms"]} == set(statement.arms)
    assert all(arm["seeds"] >= statement.decision.minimum_seeds for arm in report["arms"])
    assert report["failed"] == 0
    assert len((folder / "NOTES.md").read_text().split()) > 60


@every_one
def test_each_stands_on_a_config_that_comes_with_gptlab(name: str) -> None:
    statement, config = read_statement(shipped()[name])
    assert statement.baseline.startswith("gptlab:")
    changed = difference(load_config(statement.baseline).plain(), config.plain())
    assert {key.split(".")[0] for key, _, _ in changed} == set(statement.common)


def test_what_is_copied_and_listed_is_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gptlab"]
    needed = [
        file.relative_to(ROOT / "src/gptlab").as_posix()
        for folder in shipped().values()
        for file in folder.iterdir()
        if file.name in ("experiment.yaml", "NOTES.md", "report.json") or file.suffix == ".py"
    ]
    assert len(needed) >= 3 * len(shipped())
    assert [file for file in needed if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []


def test_list_says_what_each_asks_of_what_and_what_came(elsewhere: Path) -> None:
    lines = gptlab("experiment", "list", cwd=elsewhere).stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == sorted(shipped())
    about = lines[lines.index("relu2-swiglu") + 1 :][:3]
    assert about[0].strip().startswith("ReLU² has a lower validation loss than SwiGLU")
    assert (
        about[1]
        .strip()
        .startswith("gptlab:books-mini against swiglu; data/books2k; at most 16 runs of 300K tokens (it took 16 runs, ")
    )
    assert about[2].strip().startswith("→ swiglu: worse after 8 seeds")


def test_copy_goes_to_experiments_and_says_what_is_missing(elsewhere: Path) -> None:
    done = gptlab("experiment", "copy", "weight-decay", cwd=elsewhere)
    assert done.stderr.splitlines() == [
        "wrote experiments/weight-decay: NOTES.md, experiment.yaml",
        "next: gptlab data prepare stdlib",
        "      gptlab run experiments/weight-decay",
    ]
    make_data(elsewhere)
    Path("data").rename("stdlib")
    Path("data").mkdir()
    Path("stdlib").rename("data/stdlib")
    done = gptlab("experiment", "copy", "weight-decay", "other", cwd=elsewhere)
    assert done.stderr.splitlines()[1:] == ["next: gptlab run other"]
    done = gptlab("run", "other", "--dry-run", "--no-probe", cwd=elsewhere)
    assert "at most 10 runs to train (5 of baseline, 5 of no-decay)" in done.stderr
    done = gptlab("experiment", "copy", "a-a", cwd=elsewhere)
    assert "next: gptlab data prepare --input FILES --tokenizer NAME --out data/books2k" in done.stderr


def test_copy_refuses_what_is_there_and_writes_nothing_for_what_is_not(elsewhere: Path) -> None:
    Path("experiments/betas").mkdir(parents=True)
    Path("file").write_text("mine")
    for arguments, message in (
        (["betas"], "experiments/betas exists already; name another folder after betas"),
        (["betas", "file"], "file exists already"),
        (["betas", "file/in"], "file is no folder"),
        (["beta"], "no experiment 'beta' comes with gptlab; did you mean 'betas'?"),
        (["betas", "new", "--baseline", "none"], "no config at none to compare with"),
    ):
        done = gptlab("experiment", "copy", *arguments, cwd=elsewhere, check=False)
        assert (done.returncode, message in done.stderr, len(done.stderr.splitlines())) == (2, True, 1), done.stderr
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["betas", "experiments", "file"]


def test_the_same_can_be_asked_of_another_config(elsewhere: Path) -> None:
    Path("mine.yaml").write_text("base: gptlab:demo\nmodel: {dim: 48}\n")
    folder = copy_experiment("qk-norm", Path("a/b"), baseline="mine.yaml")
    assert [file.name for file in folder.iterdir()] == ["experiment.yaml"]
    statement, config = read_statement(folder)
    assert statement.baseline == "../../mine.yaml"
    assert config.model.dim == 48
    assert statement.arms == read_statement(shipped()["qk-norm"])[0].arms
    assert read_statement(copy_experiment("qk-norm", baseline="demo"))[0].baseline == "gptlab:demo"


def test_a_name_in_the_place_of_a_folder_says_how_to_have_it(elsewhere: Path) -> None:
    for given in ("betas", "experiments/betas"):
        for command in (["run", given], ["report", given]):
            done = gptlab(*command, cwd=elsewhere, check=False)
            assert done.returncode == 2
            assert "`gptlab experiment copy betas` brings the one that comes with gptlab" in done.stderr
    with pytest.raises(ConfigError, match="`gptlab new NAME --baseline CONFIG` writes one, `gptlab experiment list`"):
        load_experiment("mine")
    Path("betas").mkdir()  # a folder of one's own is never taken for what comes with gptlab
    with pytest.raises(ConfigError, match=r"betas is not an experiment's folder \(it holds no experiment.yaml\)"):
        load_experiment("betas")


def test_the_most_runs_that_a_statement_asks_for() -> None:
    plain = {
        "hypothesis": "h",
        "baseline": "b",
        "arms": {"a": {}, "b": {}},
        "seeds": 4,
        "decision": {"smallest_effect": 1},
    }
    assert Statement.model_validate(plain).max_runs == 3 * 4
    tuned = plain | {"tune": {"optimizer.lr": [1, 2], "optimizer.eps": [1, 2, 3]}, "tune_seeds": [101, 102]}
    assert Statement.model_validate(tuned).max_runs == 3 * (4 + 6 * 2)
    curve = plain | {"compute_curve": {"tokens": [10, 20], "seeds": [1, 2, 3]}}
    assert Statement.model_validate(curve).max_runs == 3 * 4 + 6
    most = plain | {"decision": {"smallest_effect": 1, "maximum_seeds": 10}}
    assert Statement.model_validate(most).max_runs == 3 * 10


def test_a_shell_completes_their_names() -> None:
    assert complete_shipped("in") == ["initialization"]
    assert complete_shipped("") == sorted(shipped())
