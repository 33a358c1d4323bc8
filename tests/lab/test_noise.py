"""The noise ledger: its estimators on made numbers, and the command on real runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data, make_questions
from scipy import stats

from gptlab.config import config_from
from gptlab.errors import GptlabError
from gptlab.lab.runs.store import Store
from gptlab.lab.stats.power import fixed_minimum_detectable_effect
from gptlab.lab.studies.noise import design_noise_runs, noise_path, read_noise, variance_components
from gptlab.lab.studies.task_noise import task_noise

SHORT = TINY.replace("5120", "1280")


def test_components_are_chi_square_where_hardware_adds_nothing() -> None:
    values = [3.0, 3.1, 2.9, 3.05, 3.2]
    found = variance_components({"initialization": values, "data order": [3.0, 3.02, 2.99], "hardware": [3.0, 3.0]})
    part = found["initialization"]
    variance = float(np.var(values, ddof=1))
    assert part.variance == pytest.approx(variance)
    assert part.low == pytest.approx(4 * variance / stats.chi2.ppf(0.975, 4), rel=0.02)
    assert part.high == pytest.approx(4 * variance / stats.chi2.ppf(0.025, 4), rel=0.02)
    assert found["hardware"].variance == found["hardware"].high == 0
    assert found["total"].variance == pytest.approx(variance + np.var([3.0, 3.02, 2.99], ddof=1))


def test_hardware_is_taken_off_and_never_below_zero() -> None:
    noisy, calm = [3.0, 3.4, 2.6], [3.0, 3.01, 2.99]
    found = variance_components({"initialization": calm, "data order": noisy, "hardware": [3.0, 3.1]})
    assert found["initialization"].variance == 0
    assert found["data order"].variance == pytest.approx(np.var(noisy, ddof=1) - 0.005)


def test_intervals_cover_the_truth() -> None:
    """The total's interval holds the true variance in about 95% of made ledgers with noise of all three kinds."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        groups = {
            "initialization": rng.normal(0, np.hypot(0.02, 0.01), 8).tolist(),
            "data order": rng.normal(0, np.hypot(0.01, 0.01), 8).tolist(),
            "hardware": rng.normal(0, 0.01, 8).tolist(),
        }
        total = variance_components(groups)["total"]
        held += total.low <= 0.02**2 + 2 * 0.01**2 <= total.high
    assert 180 <= held <= 199


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the ledger of a tiny config has been made, and an experiment waits."""
    folder = tmp_path_factory.mktemp("noise")
    make_data(folder)
    (folder / "base.yaml").write_text(SHORT + "data: {path: data}\n")
    (folder / "experiments/more").mkdir(parents=True)
    (folder / "experiments/more/experiment.yaml").write_text(
        "hypothesis: warmth\nbaseline: ../../base.yaml\narms: {hot: {optimizer: {lr: 3e-3}}}\n"
        "seeds: 6\ndecision: {smallest_effect: 0.001}\n"
    )
    return folder


@pytest.mark.slow
def test_the_command_writes_a_ledger_that_run_plans_with(place: Path) -> None:
    done = gptlab("noise", "base.yaml", "--seeds", "2", "--yes", "--no-probe", cwd=place)
    assert "initialization" in done.stdout
    assert "hardware adds exactly nothing" in done.stderr
    (path,) = (place / "runs/.noise").glob("*.json")
    store = Store(place / "runs")
    noise = read_noise(store, path.stem)
    assert noise is not None
    assert [len(values) for values in noise.groups.values()] == [2, 2, 2]
    assert noise.groups["hardware"][0] == noise.groups["hardware"][1]
    assert noise.groups["initialization"][0] != noise.groups["initialization"][1]
    assert noise.groups["data order"][0] != noise.groups["data order"][1]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = gptlab("noise", "base.yaml", "--seeds", "2", "--yes", cwd=place)
    assert "every run is there already" in again.stderr
    planned = gptlab("run", "experiments/more", "--dry-run", "--no-probe", cwd=place)
    assert f"with a noise of {noise.paired_sd:.2g} a difference and 6 seeds" in planned.stderr
    path.write_text("{")
    with pytest.raises(GptlabError, match="damaged"):
        read_noise(store, path.stem)


@pytest.mark.slow
def test_what_a_benchmark_tells_of_the_same_runs(place: Path) -> None:
    make_questions(place / "data/benchmarks", 40)
    gptlab("noise", "base.yaml", "--seeds", "2", "--yes", "--no-probe", cwd=place)
    done = gptlab("noise", "base.yaml", "--seeds", "2", "--tasks", "hellaswag", "--yes", cwd=place)
    assert "hellaswag bits_per_byte" in done.stdout
    assert "no run is above chance on hellaswag acc_norm" in done.stderr  # of a model of a few steps
    runs = [path for path in sorted((place / "runs").glob("*-seed*")) if (path / "evals/hellaswag.json").is_file()]
    assert len(runs) == 3
    ends = [json.loads((run / "evals/hellaswag.json").read_text()) for run in runs]
    accuracy, bits = task_noise(runs, "hellaswag")
    values = [end["results"]["bits_per_byte"] for end in ends]
    assert bits.mean == pytest.approx(np.mean(values))
    assert bits.seeds == pytest.approx(np.std(values, ddof=1))
    t = fixed_minimum_detectable_effect(2**0.5 * bits.seeds, seeds=3)
    assert (bits.detectable, bits.checkpoints, bits.above_chance) == (pytest.approx(t), None, True)
    assert (accuracy.chance, accuracy.above_chance) == (0.25, False)
    for shift, step in ((0.1, 1), (-0.1, 2), (9.0, 3)):  # late checkpoints, and one that was asked something else
        late = json.loads((runs[0] / "evals/hellaswag.json").read_text())
        late["results"]["bits_per_byte"] += shift
        late["settings"] |= {"step": step} | ({"shots": 5} if shift == 9.0 else {})
        del late["seal"]
        (runs[0] / f"evals/hellaswag-step-{step:08}.json").write_text(json.dumps(late))
    _, again = task_noise(runs, "hellaswag")
    assert again.checkpoints == pytest.approx(np.std([0.1, -0.1, 0.0], ddof=1))
    assert (again.mean, again.seeds) == (bits.mean, bits.seeds)


MISTAKES = [("loss", "loss asks no questions"), ("helaswag", "did you mean 'hellaswag'"), ("arc_easy", "arc_easy")]


@pytest.mark.parametrize(("tasks", "said"), MISTAKES)
def test_benchmarks_that_cannot_be_asked_are_known_before_training(place: Path, tasks: str, said: str) -> None:
    done = gptlab(
        *("noise", "base.yaml", "--seeds", "9", "--tasks", tasks, "--yes"),
        cwd=place,
        check=False,
        GPTLAB_BENCHMARKS=str(place / "text"),
    )
    assert done.returncode == 2
    assert said in done.stderr.strip().splitlines()[-1]
    assert not list((place / "runs").glob("*init9*"))


def test_too_few_runs_are_refused(place: Path, tmp_path: Path) -> None:
    config = config_from({"data": {"path": str(place / "data")}, "model": {"dim": 32, "heads": 2, "layers": 1}})
    store = Store(tmp_path)
    with pytest.raises(GptlabError, match="seeds=1"):
        design_noise_runs(config, store, seeds=1, repeats=2)
    with pytest.raises(GptlabError, match="repeats=1"):
        design_noise_runs(config, store, seeds=2, repeats=1)
    assert read_noise(store, "00000000") is None
    assert noise_path(store, "0") == tmp_path / ".noise/0.json"
