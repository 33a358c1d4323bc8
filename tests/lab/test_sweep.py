"""Sweeps: what may be searched, and the command: a search that goes on, a grid, a trial that falls behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data

from gptlab.config import RunConfig, config_from
from gptlab.errors import GptlabError
from gptlab.lab.metric import Metric
from gptlab.lab.store import Store
from gptlab.lab.sweep import Range, open_sweep, parse_space

SHORT = TINY.replace("5120", "1280")
LOSS = Metric.model_validate("loss")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    make_data(folder)
    (folder / "base.yaml").write_text(SHORT + "data: {path: data}\n")
    return folder


@pytest.fixture
def config(place: Path) -> RunConfig:
    model = {"dim": 32, "layers": 1, "heads": 2}
    return config_from({"name": "base", "data": {"path": str(place / "data")}, "model": model})


def test_spaces_are_ranges_and_choices(config: RunConfig) -> None:
    space = parse_space(
        ["optimizer.lr=1e-4..1e-2:log", "model.dim=32..64:step=32", "model.block.mlp=[GELU, {use: SwiGLU}]"], config
    )
    assert space["optimizer.lr"] == Range(1e-4, 1e-2, log=True)
    dim = space["model.dim"]
    assert isinstance(dim, Range)
    assert dim.whole
    assert space["model.block.mlp"] == ["GELU", '{"use": "SwiGLU"}']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lrr=1e-4..1e-2", "lr"),
        ("optimizer.lr=1e-2..1e-4", "empty"),
        ("optimizer.lr=0..1:log", "empty"),
        ("optimizer.lr=low..1", "numbers"),
        ("model.block.mlp=[GELU, Swiglu]", "SwiGLU"),
        ("model.block.mlp=GELU", "brackets"),
        ("optimizer.lr", "KEY=LOW..HIGH"),
    ],
)
def test_spaces_that_cannot_be_are_refused_before_training(config: RunConfig, text: str, message: str) -> None:
    with pytest.raises(GptlabError, match=message):
        parse_space([text], config)


def test_a_grid_wants_choices(config: RunConfig, tmp_path: Path) -> None:
    space = parse_space(["optimizer.lr=1e-4..1e-2:log"], config)
    with pytest.raises(GptlabError, match="a grid needs choices"):
        open_sweep(config, space, Store(tmp_path), sampler="grid", metric=LOSS)


def test_without_optuna_it_says_what_to_install(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = parse_space(["optimizer.lr=[1e-3, 2e-3]"], config)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(GptlabError, match=r"gptlab\[sweep\]"):
        open_sweep(config, space, Store(tmp_path), metric=LOSS)


@pytest.mark.slow
def test_a_grid_is_trained_once_and_its_best_shown(place: Path) -> None:
    grid = ("sweep", "base.yaml", "--param", "optimizer.lr=[1e-3, 1e-2]", "--sampler", "grid")
    done = gptlab(*grid, cwd=place)
    rows = [line.split() for line in done.stdout.splitlines()[1:3]]
    assert sorted(row[-1] for row in rows) == ["0.001", "0.01"]
    assert float(rows[0][1]) < float(rows[1][1])
    assert f"optimizer:\n  lr: {rows[0][-1]}" in done.stdout
    assert "best partly by luck" in done.stderr
    again = gptlab(*grid, cwd=place)
    assert again.stdout == done.stdout
    assert "training" not in again.stderr
    assert len(list((place / "runs").glob("base-*-seed101"))) == 2
    assert list((place / "runs/.sweeps").glob("base-*.png"))


@pytest.mark.slow
def test_a_trial_that_falls_behind_is_pruned_and_is_no_failure(place: Path) -> None:
    """The second trial hardly learns, so that it is behind the first at every validation."""
    long = TINY.replace("5120", "40960")
    (place / "long.yaml").write_text(long + "data: {path: data}\n")
    done = gptlab(
        *("sweep", "long.yaml", "--param", "optimizer.lr=[1e-2, 1e-7]", "--sampler", "grid", "--prune", "asha"),
        cwd=place,
    )
    assert "trial 1: pruned at step" in done.stderr
    assert done.stdout.splitlines()[1].split()[0] == "0"
    assert not list((place / "runs").glob("long-*/failed.json"))


def test_who_joins_a_study_draws_other_points(config: RunConfig, tmp_path: Path) -> None:
    import optuna

    space = parse_space(["optimizer.lr=1e-4..1e-2:log"], config)
    unit = {"x": optuna.distributions.FloatDistribution(0, 1)}

    def draws(root: Path) -> list[float]:
        sweep = open_sweep(config, space, Store(root), sampler="random", metric=LOSS)
        return [sweep.study.ask(unit).params["x"] for _ in range(3)]

    begun = draws(tmp_path / "a")
    assert draws(tmp_path / "b") == begun  # a new study is drawn by its seed
    assert not set(draws(tmp_path / "a")) & set(begun)  # and one that goes on does not begin again
