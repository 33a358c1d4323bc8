"""Sweeps: what may be searched, and the command: a search that goes on, a grid, a trial that falls behind."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data

from gptlab.config import RunConfig, config_from
from gptlab.errors import ConfigError, GptlabError
from gptlab.files import exclusive
from gptlab.lab.experiment.metric import Metric
from gptlab.lab.experiment.spec import hash_of, load_experiment
from gptlab.lab.runs.execution import Device, RunError
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.lab.studies.sweep.results import MIN_TRIALS, importances, remarks, write_confirmation, write_sweep
from gptlab.lab.studies.sweep.space import Range, distributions, parse_space
from gptlab.lab.studies.sweep.study import Sweep, open_sweep
from gptlab.model import build_model
from gptlab.record.runfolder import Failure

SHORT = TINY.replace("5120", "1280")
LOSS = Metric.model_validate("loss")
IN_MEMORY = "sqlite://"


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
        ("model.dim=32..64:step=48", "only 32 would be tried"),
        ("seed.init=[1, 2]", "changes no result"),
        ("eval.every=1..10", "changes no result"),
    ],
)
def test_spaces_that_cannot_be_are_refused_before_training(config: RunConfig, text: str, message: str) -> None:
    with pytest.raises(GptlabError, match=message):
        parse_space([text], config)


def test_one_thing_is_given_once(config: RunConfig) -> None:
    with pytest.raises(GptlabError, match="is there twice"):
        parse_space(["optimizer.lr=[1e-3]", "optimizer.lr=[2e-3]"], config)


@pytest.mark.filterwarnings("error")
def test_steps_that_do_not_meet_the_end_of_a_range_end_below_it(config: RunConfig) -> None:
    found = distributions(parse_space(["model.dim=32..128:step=36", "optimizer.lr=0.1..0.35:step=0.1"], config))
    ends = [(values.low, values.high) for values in found.values()]  # type: ignore[attr-defined]
    assert ends == [(32, 104), (0.1, pytest.approx(0.3))]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:///{}/other.db", "is no study"),
        ("sqlite:///{}/notes.txt", "is no study"),
        ("sqlite:///{}/folder", "is no study"),
        ("sqlite:///{}/nowhere/study.db", "there is no folder"),
        ("study.db", "write sqlite:///study.db"),
    ],
)
def test_a_storage_that_is_something_else_is_refused_and_left_as_it_is(
    config: RunConfig, tmp_path: Path, storage: str, message: str
) -> None:
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE mine (a)")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    space = parse_space(["optimizer.lr=[1e-3]"], config)
    with pytest.raises(GptlabError, match=message):
        open_sweep(config, space, Store(tmp_path / "runs"), metric=LOSS, storage=storage.format(tmp_path))
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


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
    assert "the winner's curse" in done.stderr
    (folder,) = (place / "runs/.sweeps").glob("base-*-trial*")
    assert f"gptlab run {folder.relative_to(place)}" in done.stderr
    planned = gptlab("run", str(folder.relative_to(place)), "--dry-run", "--no-probe", cwd=place)
    assert "8 of baseline, 8 of best" in planned.stderr
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


def states(place: Path) -> list[str]:
    """Of all trials of the one study in a folder, in their order."""
    with sqlite3.connect(place / "runs/.sweeps/studies.db") as database:
        return [state for (state,) in database.execute("SELECT state FROM trials ORDER BY number")]


def ends(place: Path) -> list[int]:
    """How often each run came to its last step."""
    return [path.read_text().count("saved step-00000005") for path in place.glob("runs/*/log.txt")]


LEARNING_RATE = ("--param", "optimizer.lr=1e-4..1e-2:log", "--trials", "3")


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """`gptlab sweep` in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "gptlab", "sweep", "base.yaml", *arguments],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A suite that runs in the background inherits that interrupts are ignored; a terminal's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )


@pytest.fixture
def own_place(place: Path, tmp_path: Path) -> Path:
    """A copy without runs."""
    shutil.copytree(place, tmp_path / "own", ignore=shutil.ignore_patterns("runs", "text"))
    return tmp_path / "own"


@pytest.mark.slow
def test_two_processes_share_a_study_and_train_no_trial_twice(own_place: Path) -> None:
    both = [start(own_place, *LEARNING_RATE) for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert states(own_place) == ["COMPLETE"] * 3
    assert ends(own_place) == [1] * 3
    assert sum(text.count("\nfinished ") for _, text in said) == 3
    assert said[0][0] == said[1][0]  # whoever is done first waits for the other, and both see all


@pytest.mark.slow
def test_interrupted_and_killed_it_goes_on_where_it_was(own_place: Path) -> None:
    """First an interrupt to the group while trial 0 is trained, then a kill of everything while trial 1 is."""

    def wait_for(what: Callable[[], bool]) -> None:
        until = time.monotonic() + 300
        while not what():
            assert time.monotonic() < until
            time.sleep(0.05)

    def begun() -> int:
        return len(list(own_place.glob("runs/*/metrics.jsonl")))

    first = start(own_place, *LEARNING_RATE)
    wait_for(lambda: begun() == 1)
    os.killpg(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "Traceback" not in said

    second = start(own_place, *LEARNING_RATE)
    wait_for(lambda: begun() == 2)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(second.pid)], capture_output=True, text=True)
    for process in [second.pid, *map(int, children.stdout.split())]:
        os.kill(process, signal.SIGKILL)
    second.communicate(timeout=120)
    assert states(own_place) == ["COMPLETE", "RUNNING"]

    last = gptlab("sweep", "base.yaml", *LEARNING_RATE, cwd=own_place)
    assert "trial 1: taken up" in last.stderr
    assert states(own_place) == ["COMPLETE"] * 3
    assert ends(own_place) == [1] * 3
    assert not list(own_place.glob("runs/.sweeps/.*.lock"))


def in_hand(sweep: Sweep) -> AbstractContextManager[None]:
    """What `run` holds as long as its process lives."""
    return exclusive(sweep._lock, GptlabError("held"))


def test_a_trial_in_hand_is_left_alone_and_one_left_behind_is_taken_up(config: RunConfig, tmp_path: Path) -> None:
    def join(trials: int = 3) -> Sweep:
        return open_sweep(config, space, Store(tmp_path), trials=trials, sampler="random", metric=LOSS)

    space = parse_space(["optimizer.lr=1e-4..1e-2:log"], config)
    first, second, third = join(), join(), join()
    with in_hand(second):
        with in_hand(first):
            gone = first._queue(2)
            assert len(gone) == 2
            others = second._queue(2)
            assert len(others) == 1  # the third of three
            assert others[0].suffix not in [run.suffix for run in gone]
            assert third._queue(1) == []
        assert [run.suffix for run in third._queue(3)] == [run.suffix for run in gone]
    assert [trial.state.name for trial in third.study.trials] == ["RUNNING"] * 3


def test_a_trial_left_behind_beyond_the_number_asked_for_is_over(config: RunConfig, tmp_path: Path) -> None:
    space = parse_space(["optimizer.lr=1e-4..1e-2:log"], config)
    gone, fewer = (
        open_sweep(config, space, Store(tmp_path), trials=trials, sampler="random", metric=LOSS) for trials in (3, 1)
    )
    gone._queue(3)
    assert len(fewer._queue(2)) == 1
    assert [trial.state.name for trial in fewer.study.trials] == ["RUNNING", "FAIL", "FAIL"]
    assert fewer.done == []  # they were no outcome, and are not counted as trials


def test_on_another_machine_a_sign_of_life_counts(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = parse_space(["optimizer.lr=1e-4..1e-2:log"], config)
    there, here = (open_sweep(config, space, Store(tmp_path), trials=1, metric=LOSS) for _ in range(2))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.node", lambda: "elsewhere")
        (run,) = there._queue(1)
    assert here._queue(1) == []
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    assert [found.suffix for found in here._queue(1)] == [run.suffix]


def test_a_process_that_dies_while_it_asks_leaves_a_trial_that_can_be_taken_up(
    config: RunConfig, tmp_path: Path
) -> None:
    space = parse_space(["optimizer.lr=[1e-3, 2e-3]"], config)
    sweep = open_sweep(config, space, Store(tmp_path), sampler="grid", metric=LOSS)
    sweep.study.ask()  # it has the first point, and has neither drawn its values nor put its name down
    assert [run.config.optimizer.plain()["lr"] for run in sweep._queue(2)] == [1e-3, 2e-3]


def test_values_that_do_not_go_together_are_an_outcome_and_a_missing_device_is_not(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are found out by the process that trains; the key that it blames tells them apart, whatever the words."""

    def cannot(queue: Callable[[], list[RunSpec]], *_: object, **__: object) -> None:
        (run,) = queue()
        heads = run.config.plain()["model"]["heads"]
        if heads == 3:
            with pytest.raises(ConfigError) as error:
                build_model(run.config, 300, device="meta")
            raise RunError(run, Failure("ConfigError", "3 heads do not divide the width", key=error.value.key))
        raise RunError(run, Failure("ConfigError", "model.heads is fine, there is no 'cuda:99'", key="system.device"))

    monkeypatch.setattr("gptlab.lab.studies.sweep.study.train_all", cannot)
    space = parse_space(["model.heads=[3, 2]"], config)
    sweep = open_sweep(config, space, Store(tmp_path), sampler="grid", metric=LOSS)
    with pytest.raises(GptlabError, match=r"trial 1 seed 101: .* no 'cuda:99'"):
        sweep.run([Device(None)])
    assert [(trial.number, trial.state.name) for trial in sweep.done] == [(0, "FAIL")]
    assert sweep.done[0].user_attrs["reason"].startswith("3 heads")


@pytest.mark.parametrize("key", ["train.tokens=[1M, 4M]", "train.batch_tokens=1024..8192:step=1024"])
def test_pruning_is_refused_where_trials_differ_in_length(config: RunConfig, tmp_path: Path, key: str) -> None:
    space = parse_space([key], config)
    with pytest.raises(GptlabError, match=r"prune='asha': .* steps") as refusal:
        open_sweep(config, space, Store(tmp_path / "runs"), metric=LOSS, prune=True)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()
    open_sweep(
        config, parse_space(["train.gradient_clip=[1.0, 2.0]"], config), Store(tmp_path), metric=LOSS, prune=True
    )


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


TWO = ("optimizer.lr=1e-4..1e-1:log", "train.gradient_clip=0.5..2.0")


def pretend(sweep: Sweep, trials: int, seed: int = 0) -> None:
    """Trials whose value depends on the learning rate, hardly on the clipping, and on luck."""
    noise = random.Random(seed)
    for _ in range(trials):
        trial = sweep.study.ask(distributions(sweep.space))
        decades, clip = math.log10(trial.params["optimizer.lr"]) + 2.3, trial.params["train.gradient_clip"] - 1.2
        sweep.study.tell(trial, 2 + 0.15 * decades**2 + 0.01 * clip**2 + noise.gauss(0, 0.01))


def test_importances_find_what_matters_when_there_are_enough_trials(config: RunConfig, tmp_path: Path) -> None:
    import optuna

    sweep, right = open_sweep(config, parse_space(TWO, config), Store(tmp_path), metric=LOSS, storage=IN_MEMORY), []
    for seed in range(20):
        sweep.study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        pretend(sweep, MIN_TRIALS - 1, seed)
        assert importances(sweep) == {}
        pretend(sweep, 1, seed)
        shares = importances(sweep)
        assert sum(shares.values()) == pytest.approx(1)
        right.append(next(iter(shares)) == "optimizer.lr")
    assert sum(right) >= 19


def test_importances_need_no_scikit_learn(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    sweep = open_sweep(config, parse_space(TWO, config), Store(tmp_path), metric=LOSS, storage=IN_MEMORY)
    pretend(sweep, MIN_TRIALS)
    assert set(importances(sweep)) == {"optimizer.lr", "train.gradient_clip"}


def test_one_thing_alone_has_no_importance(config: RunConfig, tmp_path: Path) -> None:
    space = parse_space([TWO[0], "train.gradient_clip=[1.0]"], config)
    sweep = open_sweep(config, space, Store(tmp_path), metric=LOSS, storage=IN_MEMORY)
    pretend(sweep, MIN_TRIALS)
    assert importances(sweep) == {}


def test_a_trial_drawn_twice_counts_once(config: RunConfig, tmp_path: Path) -> None:
    space = parse_space(["optimizer.lr=[1e-3, 2e-3]", "train.gradient_clip=[1.0, 2.0]"], config)
    sweep = open_sweep(config, space, Store(tmp_path), sampler="random", metric=LOSS, storage=IN_MEMORY)
    pretend(sweep, MIN_TRIALS + 2)
    assert sweep.n_distinct == 4
    assert importances(sweep) == {}
    assert remarks(sweep)[0].startswith(f"{MIN_TRIALS - 2} of {MIN_TRIALS + 2} trials drew what another had drawn")
    assert "the best of 4 trials" in remarks(sweep)[-1]


def test_results_are_written_with_their_doubts(config: RunConfig, tmp_path: Path) -> None:
    sweep = open_sweep(config, parse_space(TWO, config), Store(tmp_path), metric=LOSS, storage=IN_MEMORY)
    pretend(sweep, 3)
    assert any(f"they need {MIN_TRIALS} trials with a value, and there are 3" in remark for remark in remarks(sweep))
    picture, results = write_sweep(sweep)
    assert picture.read_bytes().startswith(b"\x89PNG")
    few = json.loads(results.read_text())
    assert few["importances"] is None
    assert few["remarks"] == remarks(sweep)
    assert "winner's curse" in few["remarks"][-1]
    assert [trial["value"] for trial in few["trials"]] == [trial.value for trial in sweep.done]
    pretend(sweep, MIN_TRIALS - 3)
    many = json.loads(write_sweep(sweep)[1].read_text())
    assert many["importances"] == importances(sweep)
    assert many["best"]["settings"]["optimizer"]["lr"] == sweep.ranked[0].params["optimizer.lr"]


def test_the_next_step_is_an_experiment_on_seeds_that_the_sweep_has_not_used(config: RunConfig, tmp_path: Path) -> None:
    sweep = open_sweep(config, parse_space(TWO, config), Store(tmp_path), metric=LOSS, storage=IN_MEMORY)
    pretend(sweep, 2)
    folder = write_confirmation(sweep)
    assert folder is not None
    experiment = load_experiment(folder)
    assert experiment.baseline.hash == hash_of(config)
    (arm,) = experiment.arms
    assert {key: there for key, _, there in arm.diff} == sweep.ranked[0].params
    assert not set(experiment.statement.all_seeds) & set(range(101, 200))
    (folder / "experiment.yaml").write_text("mine")
    assert write_confirmation(sweep) == folder
    assert (folder / "experiment.yaml").read_text() == "mine"  # what somebody may have changed is left alone


def test_where_the_config_itself_is_best_there_is_nothing_to_confirm(config: RunConfig, tmp_path: Path) -> None:
    clip = config.train.gradient_clip
    sweep = open_sweep(config, parse_space([f"train.gradient_clip=[{clip}]"], config), Store(tmp_path), metric=LOSS)
    sweep.study.tell(sweep.study.ask(distributions(sweep.space)), 1.0)
    assert write_confirmation(sweep) is None
