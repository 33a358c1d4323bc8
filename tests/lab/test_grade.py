"""A judge's grade as the metric of an experiment, from the statement to the verdict, against a real server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data
from judge_server import JudgeServer, serving

from gptlab.errors import ConfigError, GptlabError
from gptlab.lab.experiment.evidence import Evidence, read_verdicts
from gptlab.lab.experiment.spec import load_experiment
from gptlab.lab.stats.crossed import mean_estimate
from gptlab.record.evaluation import read_evaluation

pytestmark = pytest.mark.slow

STATEMENT = """\
hypothesis: a higher rate writes better
baseline: ../../base.yaml
arms:
  faster: {optimizer: {lr: 1.0e-2}}
seeds: 2
metric: {grade: {judge: URL, model: tiny, limit: 4, budget: 1.0, price_in: 1, price_out: 10}}
decision: {smallest_effect: 0.01, minimum_seeds: 2}
"""


def letters(text: str) -> float:
    """What the server likes, up to two grades' worth."""
    return min(2.0, text.count("e") / 2)


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    with serving(JudgeServer(quality=letters)) as server:
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, judge: JudgeServer) -> Path:
    """A folder where the experiment was run."""
    place = tmp_path_factory.mktemp("graded")
    make_data(place)
    (place / "base.yaml").write_text(TINY.replace("5120", "1024") + "name: base\ndata: {path: data}\n")
    state(place, judge)
    done = gptlab("run", "experiments/rate", "--yes", "--no-probe", cwd=place)
    assert "each of them is graded by tiny after training, for $1.00 a run at most" in done.stderr
    assert "on these prompts; with others as well" in done.stderr
    return place


def state(place: Path, judge: JudgeServer, **changes: str) -> None:
    text = STATEMENT.replace("URL", judge.url)
    for old, new in changes.items():
        text = text.replace(old, new)
    (place / "experiments/rate").mkdir(parents=True, exist_ok=True)
    (place / "experiments/rate/experiment.yaml").write_text(text)


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evidence() -> Evidence:
    return read_verdicts("experiments/rate")


def test_each_run_has_its_grades_and_the_difference_is_theirs(place: Path) -> None:
    (arm,) = evidence().arms
    assert len(arm.pairs) == 2
    for pair in arm.pairs:
        for one in pair:
            found = read_evaluation(one.folder, "grade")
            assert found is not None
            names = set(found.results) - {"mean", "prompts"}
            rows = [[row[name] for name in names] for row in found.records]
            assert len(rows) == found.results["prompts"] == 4
            assert one.value == found.results["mean"] == pytest.approx(np.mean(rows))
            assert one.parts == pytest.approx(np.mean(rows, axis=1))
            assert found.settings["judging"]["judge"] == "tiny"
    wider = arm.over_prompts
    assert wider is not None
    grid = [[a - b for a, b in zip(arm.parts, base.parts, strict=True)] for arm, base in arm.pairs]
    assert wider == mean_estimate(np.array(grid).T)
    assert wider.value == pytest.approx(arm.differences.mean())


def test_the_same_command_again_asks_nothing_and_says_the_same(place: Path, judge: JudgeServer) -> None:
    before = judge.requests
    again = gptlab("run", "experiments/rate", "--yes", cwd=place)
    assert "after 2 seeds, grade of 10 by tiny" in again.stdout
    assert judge.requests == before


@pytest.mark.parametrize("change", [("limit: 4", "limit: 5"), ("4,", "4, repeats: 2,"), ("4,", "4, criteria: 'wit',")])
def test_grades_of_other_prompts_or_by_other_rules_are_not_taken(
    place: Path, judge: JudgeServer, change: tuple[str, str]
) -> None:
    state(place, judge, **{change[0]: change[1]})
    assert not evidence().arms[0].pairs


def test_another_judge_grades_anew_and_nothing_is_trained(place: Path, judge: JudgeServer) -> None:
    state(place, judge, tiny="other")
    assert not evidence().arms[0].pairs
    before, trained = judge.requests, {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/metrics.jsonl")}
    done = gptlab("run", "experiments/rate", "--yes", "--no-probe", cwd=place)
    assert judge.requests == before + 4 * 4
    assert "grade of 10 by other" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/metrics.jsonl")} == trained


def test_weights_that_changed_since_are_graded_again(place: Path) -> None:
    path = next(iter(sorted(Path("runs").glob("*-seed2")))) / "evals/grade.json"
    values = json.loads(path.read_text())
    values["settings"]["weights"] = "0" * len(values["settings"]["weights"])
    del values["seal"]
    path.write_text(json.dumps(values))
    assert len(evidence().arms[0].pairs) < 2


MISTAKES = [
    ("judge: URL", "judge: nowhere", "no URL"),
    ("judge: URL", "judge: https://api.example.com/v1, key_variable: NO_SUCH", None),
    ("price_in: 1, ", "", None),
    ("model: tiny", "model: tiny, prompts: nosuch", "did you mean|neither a list"),
    ("limit: 4", "limit: 0", "limit"),
    ("{grade: {", "{tokens_to: 3, grade: {", "one metric decides"),
    ("model: tiny, ", "", "model"),
    ("limit: 4", "colour: red", "colour"),
]


@pytest.mark.parametrize(("old", "new", "match"), MISTAKES)
def test_what_cannot_be_asked_is_known_before_anything_is_trained(
    place: Path, judge: JudgeServer, old: str, new: str, match: str | None
) -> None:
    text = STATEMENT.replace(old, new).replace("URL", judge.url)
    Path("experiments/rate/experiment.yaml").write_text(text)
    if match is None:  # only known when it is to be asked, or no mistake on a machine of one's own
        load_experiment("experiments/rate")
        return
    with pytest.raises(ConfigError, match=match):
        load_experiment("experiments/rate")


def test_without_a_key_nothing_is_trained(place: Path, judge: JudgeServer) -> None:
    shutil.rmtree("runs")
    state(
        place, judge, **{judge.url: "https://api.example.com/v1", "model: tiny": "model: tiny, key_variable: NO_SUCH"}
    )
    done = gptlab("run", "experiments/rate", "--yes", "--no-probe", cwd=place, check=False)
    assert done.returncode == 2
    assert "NO_SUCH holds no key" in done.stderr
    assert not list(place.glob("runs/*-seed*"))


def test_a_run_that_was_not_graded_says_how(place: Path) -> None:
    folder = next(iter(sorted(Path("runs").glob("*-seed1"))))
    (folder / "evals/grade.json").unlink()
    metric = load_experiment("experiments/rate").statement.metric
    with pytest.raises(GptlabError, match=r"has no evals/grade.json; run `gptlab judge runs/.* --grade --judge="):
        metric.measure(folder)
