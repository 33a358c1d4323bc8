"""Training in stages: ordinary runs in their order, found again by their hash, each from the weights of another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import TINY, gptlab, make_data, python_of, rows

import gptlab as package
from gptlab.cli import main
from gptlab.config import Stage, config_hash, load_config, load_stage, load_stages, starting_run, weights_digest
from gptlab.contracts import config_subject, find_subject
from gptlab.data import prepare
from gptlab.errors import STOPPED, ConfigError, GptlabError
from gptlab.tokenizer import byte_tokenizer
from gptlab.training.stages import StageResult

ROOT = Path(__file__).resolve().parents[2]
STAGES = """
stages:
  - name: pretrain
    schedule: {use: Constant, warmup: 0}
  - name: anneal
    train: {tokens: 1280}
    schedule: {use: Linear, warmup: 0, final: 0}
    data: {path: null, sources: {old: a/data, new: b/data}, mix: {use: Weights, weights: {old: 1, new: 3}}}
    seeds: [2, 3, 4]
    soup: uniform
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, `a` and `b`."""
    folder = tmp_path_factory.mktemp("stages")
    make_data(folder / "a")
    make_data(folder / "b", seed=1)
    return folder


@pytest.fixture
def place(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the data in it."""
    for name in "ab":
        (tmp_path / name).symlink_to(data / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(stages: str = STAGES, *, name: str = "two.yaml") -> Path:
    text = f"data: {{path: a/data}}{TINY.replace('5120', '2560').replace('1e-3', '3e-3')}{stages}"
    Path(name).write_text(text)
    return Path(name)


def train(config: Path, *overrides: str, resume: bool = False) -> list[StageResult]:
    return package.train_stages(load_stages(config, overrides), resume=resume)


def sessions(run: Path) -> int:
    return len(json.loads((run / "env.json").read_text()))


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "runs").iterdir())


# ---------------------------------------------------------------- what is trained


def test_two_stages_and_a_soup(place: Path) -> None:
    first, second = train(write())
    assert first.folder.name.startswith("two-pretrain-")
    assert [run.name.rsplit("-seed")[1] for run in second.runs] == ["1-2-1", "1-3-1", "1-4-1"]
    assert len({run.name.rsplit("-seed")[0] for run in second.runs}) == 1
    assert second.soup is not None
    assert second.folder.name.startswith("two-anneal-soup-")
    assert len(folders(place)) == 5
    last = rows(first.folder)[-1]["val/loss"]
    for run in second.runs:
        config = load_config(run)
        assert starting_run(config.model.init_from) == (
            Path(f"runs/{first.folder.name}"),
            weights_digest(first.folder / "model.safetensors"),
        )
        logged = rows(run)
        assert logged[0]["val/loss"] == pytest.approx(last, rel=1e-3)  # it goes on from there: ln 257 is 5.5
        assert logged[1]["train/loss"] < last + 0.5 < 5
        assert logged[1]["lr_multiplier"] == 1.0  # and its schedule begins anew
        assert [row["step"] for row in logged if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert second.soup.mean_loss == pytest.approx(sum(one.loss for one in second.soup.ingredients) / 3)
    for run, one in zip(second.runs, second.soup.ingredients, strict=True):
        assert one.folder == run
    assert package.load(second.folder, device="cpu").finished


def test_a_stage_is_an_ordinary_run(place: Path) -> None:
    """The same as `gptlab train` with the same settings and init_from: the same folder name but for the name, and the
    same bytes."""
    first, second = train(write())
    (place / "by-hand.yaml").write_text(
        f"base: plain.yaml\nmodel: {{init_from: {first.folder}}}\ntrain: {{tokens: 1280}}\n"
        "schedule: {use: Linear, warmup: 0, final: 0}\nseed: {data: 3}\n"
        "data: {path: null, sources: {old: a/data, new: b/data}, mix: {use: Weights, weights: {old: 1, new: 3}}}\n"
    )
    write("", name="plain.yaml")
    run = package.train(load_config("by-hand.yaml"))
    assert run.folder.name == second.runs[1].name.replace("two-anneal", "by-hand")
    assert (run.folder / "model.safetensors").read_bytes() == (second.runs[1] / "model.safetensors").read_bytes()


def test_what_is_finished_is_not_trained_again(place: Path) -> None:
    results = train(write())
    before = folders(place)
    weights = {path: path.stat().st_mtime_ns for path in place.glob("runs/*/model.safetensors")}
    assert train(write()) == results
    assert folders(place) == before
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert all(sessions(path.parent) == 1 for path in weights)


def test_what_changes_is_trained_again_and_nothing_before_it(place: Path) -> None:
    first, second = train(write(), "stages.anneal.seeds=[2]", "stages.anneal.soup=null")
    _, other = train(write(), "stages.anneal.seeds=[2]", "stages.anneal.soup=null", "stages.anneal.optimizer.lr=1e-4")
    assert sessions(first.folder) == 1
    assert other.folder != second.folder
    _, more = train(write(), "stages.anneal.seeds=[2, 5]", "stages.anneal.soup=null")
    assert more.runs[0] == second.folder  # a seed more trains one run more
    assert sessions(second.folder) == 1
    again, last = train(
        write(), "stages.anneal.seeds=[2]", "stages.anneal.soup=null", "stages.pretrain.optimizer.lr=1e-3"
    )
    assert again.folder != first.folder
    assert last.folder.name.rsplit("-seed")[0] != second.folder.name.rsplit("-seed")[0]  # it starts from other weights


def test_from_says_where_a_stage_starts(place: Path) -> None:
    """A stage before the last, a run, a pattern, or nothing."""
    stages = """
stages:
  - {name: one}
  - {name: two, seed: 2}
  - {name: three, from: one, seed: 3}
  - {name: four, from: null, model: {layers: 1}}
  - {name: five, from: 'runs/two-one-*', seed: 5, model: {dropout: 0.25}}
"""
    one, two, three, four = train(write(stages.split("  - {name: five")[0]))
    begun = [starting_run(load_config(result.folder).model.init_from) for result in (one, two, three, four)]
    assert [start and start[0] for start in begun] == [None, one.folder, one.folder, None]
    five = train(write(stages))[-1]
    config = load_config(five.folder)
    assert starting_run(config.model.init_from) == begun[1]
    assert (config.model.dropout, config.model.layers) == (0.25, 2)


def test_the_first_stage_may_start_from_a_run(place: Path) -> None:
    write("", name="plain.yaml")
    start = package.train(load_config("plain.yaml")).folder
    text = STAGES.replace("schedule: {use: Constant, warmup: 0}", f"from: {start}").replace("[2, 3, 4]", "[2, 3]")
    first, second = train(write(text))
    assert starting_run(load_config(first.folder).model.init_from)[0] == start
    assert starting_run(load_config(second.runs[0]).model.init_from)[0] == first.folder
    (by_set,) = load_stages(write("stages: [{name: pretrain, seed: 2}]"), [f"model.init_from={start}"])
    assert starting_run(by_set.config.model.init_from)[0] == start


def test_a_greedy_soup_and_branches_without_one(place: Path) -> None:
    text = STAGES.replace("uniform", "greedy")
    result = train(write(text))[-1]
    assert result.soup is not None
    assert result.soup.method == "greedy"
    assert result.soup.loss <= min(one.loss for one in result.soup.ingredients)
    branches = train(write(text), "stages.anneal.soup=null")[-1]
    assert branches.soup is None
    assert branches.runs == result.runs


# ---------------------------------------------------------------- stopping and going on


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gptlab", "train", "two.yaml", *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def steps(folder: Path, pattern: str) -> int:
    """Rows that the runs of a name have logged."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob(f"runs/{pattern}/metrics.jsonl"))


def end_when(process: subprocess.Popen[bytes], moment: Callable[[], bool], number: signal.Signals) -> int:
    deadline = time.monotonic() + 120
    while not moment():
        assert process.poll() is None, "it ended before the moment came"
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.001)
    process.send_signal(number)
    return process.wait(timeout=60)


@pytest.mark.slow
def test_killed_in_a_stage_between_stages_and_in_the_soup(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What comes out in the end is what comes out of a run that nobody disturbed."""
    quiet = tmp_path_factory.mktemp("quiet")
    for name in "ab":
        (quiet / name).symlink_to(place / name)
    text = STAGES.replace("1280", "2560") + "checkpoint: {every: 3}\n"
    write(text)
    (quiet / "two.yaml").write_text(Path("two.yaml").read_text())
    gptlab("train", "two.yaml", "--set", "train.tokens=5120", "--set", "stages.anneal.train.tokens=2560", cwd=quiet)
    options = ("--resume", "--set", "train.tokens=5120", "--set", "stages.anneal.train.tokens=2560")
    moments: list[Callable[[], bool]] = [
        lambda: steps(place, "two-pretrain-*") > 5,
        lambda: any(place.glob("runs/two-pretrain-*/model.safetensors")),
        lambda: steps(place, "two-anneal-*-seed1-3-1") > 4,
        lambda: any(place.glob("runs/two-anneal-*-seed1-4-1/loss.png")),
    ]
    for moment in moments:
        assert end_when(start(place, *options), moment, signal.SIGKILL) == -signal.SIGKILL
    process = start(place, *options)
    assert process.wait(timeout=300) == 0
    assert len(list(place.glob("runs/*/loss.png"))) == 4  # of the one killed before its curve was drawn too
    found = {path.parent.name: path.read_bytes() for path in place.glob("runs/*/model.safetensors")}
    wanted = {path.parent.name: path.read_bytes() for path in quiet.glob("runs/*/model.safetensors")}
    assert len(wanted) == 5
    assert found == wanted


@pytest.mark.slow
def test_sigterm_ends_the_whole(place: Path) -> None:
    """The run saves, and no later stage begins; without --resume it is not gone on with."""
    write()
    options = ("--set", "stages.pretrain.train.tokens=2M")
    process = start(place, *options)
    assert end_when(process, lambda: steps(place, "two-pretrain-*") > 3, signal.SIGTERM) == STOPPED
    (run,) = (place / "runs").iterdir()
    assert any((run / "checkpoints").iterdir())
    assert not (run / "model.safetensors").exists()
    done = gptlab("train", "two.yaml", *options, cwd=place, check=False)
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("exists already; add --resume to continue it, or change --set name=NAME")
    )


@pytest.mark.slow
def test_two_processes_make_the_same_stages(place: Path) -> None:
    write()
    launcher = python_of(2)
    done = subprocess.run(
        [*launcher, "-m", "gptlab", "train", "two.yaml"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = {path.name for path in (place / "runs").iterdir()}
    assert len(two) == 5
    (made,) = place.glob("runs/two-anneal-soup-*/soup.yaml")
    together = yaml.safe_load(made.read_text())
    (place / "runs").rename(place / "runs-of-two")
    alone = train(write())[-1].soup
    assert alone is not None
    assert together["loss"] == pytest.approx(alone.loss, abs=1e-3)
    assert done.stderr.count("stage 1 of 2: pretrain") == 1


# ---------------------------------------------------------------- what a config of stages says


def test_overrides_of_all_and_of_one(place: Path) -> None:
    path = write()
    changes = ["optimizer.lr=1", "stages.anneal.optimizer.lr=2", "stages.anneal.soup=greedy", "name=other", "seed=7"]
    first, second = load_stages(path, changes)
    assert (first.config.optimizer.lr, second.config.optimizer.lr, second.soup) == (1, 2, "greedy")
    assert [stage.config.name for stage in (first, second)] == ["other-pretrain", "other-anneal"]
    assert [str(config.seed) for config in second.runs(None)] == ["7-2-7", "7-3-7", "7-4-7"]
    # --set comes last: it changes what a stage says of itself too
    assert [stage.config.train.tokens for stage in load_stages(path, ["train.tokens=999"])] == [999, 999]


def test_a_base_may_have_stages(place: Path) -> None:
    write()
    Path("diff.yaml").write_text("base: two.yaml\noptimizer: {lr: 0.5}\n")
    stages = load_stages("diff.yaml")
    assert [stage.config.name for stage in stages] == ["diff-pretrain", "diff-anneal"]
    assert {stage.config.optimizer.lr for stage in stages} == {0.5}
    Path("less.yaml").write_text("base: two.yaml\nstages: [{name: only}]\n")
    assert [stage.name for stage in load_stages("less.yaml")] == ["only"]


def test_components_in_a_stage_are_relative_to_the_file(place: Path) -> None:
    Path("deep").mkdir()
    Path("deep/idea.py").write_text((ROOT / "src/gptlab/model/mlp.py").read_text())
    write("stages: [{name: a, model: {block: {mlp: './idea.py:ReLU2'}}}]", name="deep/c.yaml")
    (stage,) = load_stages("deep/c.yaml")
    assert stage.config.model.block.mlp.use == f"{(place / 'deep/idea.py').resolve()}:ReLU2"


def test_show_prints_stages_that_read_back(place: Path) -> None:
    write()
    shown = gptlab("config", "show", "two.yaml", "--set", "stages.anneal.train.tokens=512", cwd=place).stdout
    Path("shown.yaml").write_text(shown)
    assert load_stages("shown.yaml") == load_stages("two.yaml", ["stages.anneal.train.tokens=512"])
    values = yaml.safe_load(shown)
    assert set(values) == {"name", "stages"}
    assert values["stages"][1]["train"]["tokens"] == 512
    assert values["stages"][1]["from"] == "pretrain"
    assert values["stages"][1]["eval"]["every"] == 0  # defaults and the rest of the file are written out


def test_a_stage_that_starts_from_a_run_reads_back(place: Path) -> None:
    write("", name="plain.yaml")
    folder = package.train(load_config("plain.yaml")).folder
    path = write(f"stages: [{{name: only, from: {folder}, seed: 2}}]")
    Path("shown.yaml").write_text(gptlab("config", "show", "two.yaml", cwd=place).stdout)
    assert load_stages("shown.yaml") == load_stages(path)


def test_the_shipped_example_loads() -> None:
    first, second = load_stages(ROOT / "experiments" / "two-stages" / "two-stages.yaml")
    assert (first.start, second.start, second.seeds, second.soup) == (None, "pretrain", (2, 3, 4), "uniform")
    assert second.config.schedule.final == 0.0
    assert second.config.data.mix.weights == {"fresh": 0.7, "general": 0.3}
    assert config_hash(first.config, {}) != config_hash(second.config, {})


def test_the_page_on_stages_shows_configs_that_load(place: Path) -> None:
    import re

    text = (ROOT / "docs" / "stages.md").read_text()
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "\nstages:" in f"\n{block}"]
    assert blocks
    for block in blocks:
        Path("block.yaml").write_text(block)
        assert load_stages("block.yaml")


def test_the_schema_knows_stages(place: Path) -> None:
    schema = json.loads(gptlab("config", "schema", cwd=place).stdout)
    item = schema["properties"]["stages"]["items"]
    assert {"name", "from", "seeds", "soup", "train", "model", "data", "schedule"} <= set(item["properties"])
    assert "base" not in item["properties"]
    assert item["required"] == ["name"]
    assert item["additionalProperties"] is False


# ---------------------------------------------------------------- mistakes

LINE = len(f"data:{TINY}".splitlines()) + 1  # of the first line after TINY, in what `write` writes

WRONG = [
    ("stages: 3", 0, "`stages` must be a list of stages"),
    ("stages: []", 0, "`stages` must be a list of stages"),
    ("stages:\n  - 5", 1, "a stage is a mapping with a `name`, found 5"),
    ("stages:\n  - train: {tokens: 5}", 1, "a stage needs a `name` of letters, digits, - and _; found None"),
    ("stages:\n  - name: a b", 1, "a stage needs a `name` of letters, digits, - and _; found 'a b'"),
    ("stages:\n  - name: a\n  - name: a", 2, "two stages are called 'a'; rename one"),
    ("stages:\n  - name: a\n    trian: {}", 2, "unknown key 'trian'; did you mean 'train'?"),
    ("stages:\n  - name: a\n    soups: uniform", 2, "unknown key 'soups'; did you mean 'soup'?"),
    ("stages:\n  - name: a\n    train:\n      tokes: 5", 3, "train.tokes: unknown key 'tokes'; did you mean 'tokens'?"),
    ("stages:\n  - name: a\n    model:\n      layer: 5", 3, "model.layer: GPT has no argument 'layer'"),
    ("stages:\n  - name: a\n    train: {tokens: many}", 2, "train.tokens"),
    ("stages:\n  - name: a\n    model: {init_from: runs/x}", 2, "stages.a: write `from:` instead of model.init_from"),
    ("stages:\n  - name: a\n    from: a", 2, "stages.a.from: 'a' is not before 'a'"),
    ("stages:\n  - name: a\n    from: b\n  - name: b\n    from: a", 2, "stages.a.from: 'b' is not before 'a'"),
    (
        "stages:\n  - name: pretrain\n  - name: b\n    from: pretrian",
        3,
        "no stage 'pretrian' before this one, and no run; did",
    ),
    ("stages:\n  - name: a\n    from: 5", 2, "stages.a.from: must be the name of a stage, the path of a run, or null"),
    ("stages:\n  - name: a\n    from: runs/none", 2, "is not a run folder (nothing is there)"),
    ("stages:\n  - name: a\n    seeds: 3", 2, "stages.a.seeds: must be a list of different whole numbers"),
    ("stages:\n  - name: a\n    seeds: [1, 1]", 2, "stages.a.seeds: must be a list of different whole numbers"),
    ("stages:\n  - name: a\n    seeds: [-1]", 2, "stages.a.seeds: must be a list of different whole numbers"),
    (
        "stages:\n  - name: a\n    seeds: [1, 2]\n    soup: thick",
        3,
        "stages.a.soup: must be uniform or greedy, or null",
    ),
    ("stages:\n  - name: a\n    soup: uniform", 2, "stages.a.soup: is made of several runs"),
    ("stages:\n  - name: a\n    seeds: [1, 2]\n  - name: b", 3, "stage 'a' ends with 2 runs; give it `soup: uniform`"),
]


@pytest.mark.parametrize(("stages", "line", "message"), WRONG)
def test_mistakes_name_the_line(place: Path, stages: str, line: int, message: str) -> None:
    path = write(stages)
    with pytest.raises(ConfigError) as caught:
        load_stages(path)
    assert str(caught.value).startswith(f"two.yaml:{LINE + line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.anneel.train.tokens=5", "overrides=['stages.anneel']: no such stage; did you mean 'anneal'?"),
        ("stages=[]", "write it as stages.NAME.section.key=value"),
        ("stages.anneal.name=x", "a stage keeps its name"),
        ("stages.anneal.model.init_from=runs/x", "starts where stages.anneal.from says"),
        ("stages.anneal.train.tokes=5", "unknown key 'tokes'"),
        (
            "stages.anneal.from=anneal",
            "overrides=['stages.anneal.from=anneal']: stages.anneal.from: 'anneal' is not before",
        ),
        ("train.tokes=5", "overrides=['train.tokes=5']: train.tokes: unknown key"),
    ],
)
def test_mistakes_on_the_command_line(place: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_stages(write(), [override])
    assert message in str(caught.value)


def test_one_run_is_not_several(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write())
    assert str(caught.value).startswith(f"two.yaml:{LINE + 1}: `stages` make several runs, and one is asked for")


DEEPER = STAGES.replace("    seeds", "    from: null\n    model: {layers: 3}\n    seeds")


@pytest.mark.parametrize(
    ("arguments", "layers", "said"),
    [
        ([], 2, "taking the first stage, two-pretrain (--stage names another)"),
        (["--stage", "anneal"], 3, ""),
        (["--stage", "anneal", "--set", "stages.anneal.model.layers=4"], 4, ""),
    ],
    ids=["first", "named", "overridden"],
)
def test_one_stage_is_traced(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    layers: int,
    said: str,
) -> None:
    write(DEEPER)
    monkeypatch.setattr(sys, "argv", ["gptlab", "trace", "two.yaml", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    shown = capsys.readouterr()
    assert f"V=257  L={layers}" in shown.out  # V of the data of either stage, be it a path or sources
    assert shown.err.strip() == said


def test_one_stage_is_checked_and_its_widths_compared(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(DEEPER)
    assert config_subject("two.yaml").label == "config two.yaml, two-pretrain"
    assert config_subject("two.yaml", stage="anneal").config.model.layers == 3
    assert config_subject("two.yaml", stage="anneal").config.data.mix is not None
    stage = load_stage("two.yaml", name="anneal")
    assert stage == load_stages("two.yaml")[1].config
    mup = ["--set", "model.mup={dim: 32, heads: 2}", "--widths", "32,64", "--steps", "1", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["gptlab", "mup", "check", "two.yaml", "--stage", "anneal", *mup])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code in (0, 1)  # a step of one batch proves nothing
    assert Path("mup-check.png").is_file()


def test_a_stage_that_is_not_there(place: Path) -> None:
    write(name="two.yaml")
    write("", name="one.yaml")
    for source, stage, message in [
        ("two.yaml", "anneel", "stage='anneel': two.yaml has no such stage; did you mean 'anneal'?"),
        ("two.yaml", "", "stage='': two.yaml has no such stage; valid: anneal, pretrain"),
        ("one.yaml", "anneal", "stage='anneal': one.yaml has no stages; leave stage out"),
    ]:
        with pytest.raises(ConfigError) as caught:
            find_subject(source, stage=stage)
        assert str(caught.value) == message
    with pytest.raises(ConfigError, match="is a component, which has no stages"):
        find_subject("Attention", stage="anneal")


def test_all_stages_are_checked_before_the_first_trains(place: Path) -> None:
    """Data that is not there, of another tokenizer, or too little; another shape; a schedule that cannot be."""
    byte = byte_tokenizer(special_tokens=["<|user|>"], name="other")
    prepare(inputs=["a/text"], validation_fraction=0.1, tokenizer=byte, out=place / "other", workers=1)
    for change, message in [
        ("data.path=nowhere", "nowhere"),
        ("data={path: other, sources: null, mix: null}", "has data of another tokenizer than 'pretrain'"),
        ("data={path: a/data, sources: null, mix: null, epochs: 1}", None),
        ("model.dim=64", "cannot start from 'pretrain': embedding.weight is [257, 64] here and [257, 32] there"),
        ("model.layers=3", "cannot start from 'pretrain': blocks.2."),
        ("schedule.warmup=3", "schedule.warmup"),
    ]:
        extra = ["stages.anneal.train.tokens=200K"] if message is None else []
        fix = (
            ["stages.anneal.data.sources=null", "stages.anneal.data.mix=null"] if change == "data.path=nowhere" else []
        )
        texts = [f"stages.anneal.{change}", *fix, *extra]
        with pytest.raises(GptlabError) as caught:
            train(write(), *texts)
        assert (message or "data.epochs allows 1") in str(caught.value), change
    assert not (place / "runs").exists()


def test_reading_again_in_the_same_order_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gptlab.training.stages import check_stages

    stages = load_stages(write())
    check_stages(stages)
    assert "from its beginning" not in capsys.readouterr().err
    check_stages(load_stages(write(), ["stages.anneal.seeds=[1, 2]"]))
    said = capsys.readouterr().err.replace("\n", " ")
    assert "stage 'anneal' reads a/data from its beginning, in the very order of 'pretrain'" in said


def test_a_run_that_became_another_is_not_taken(place: Path) -> None:
    """gptlab 0.3 trained a run for longer where it was."""
    options = ("stages.anneal.seeds=[2]", "stages.anneal.soup=null")
    first, _ = train(write(), *options)
    config = first.folder / "config.yaml"
    config.write_text(config.read_text().replace("tokens: 2560", "tokens: 2816"))
    with pytest.raises(GptlabError, match=r"is no longer this stage's: train\.tokens is 2816 there and 2560 here"):
        train(write(), *options)


def test_a_run_that_is_trained_for_longer_is_another_and_the_stage_stays(place: Path) -> None:
    options = ("stages.anneal.seeds=[2]", "stages.anneal.soup=null")
    first, second = train(write(), *options)
    gptlab("train", str(first.folder), "--resume", "--set", "train.tokens=2816", cwd=place)
    assert [result.folder for result in train(write(), *options)] == [first.folder, second.folder]


def test_stages_in_python_are_values(place: Path) -> None:
    stages = load_stages(write())
    assert all(isinstance(stage, Stage) for stage in stages)
    start = "runs/x@0123456789abcdef"
    configs: list[Any] = stages[1].runs(start)
    assert [config.model.init_from for config in configs] == [start] * 3
    assert [config.seed.data for config in configs] == [2, 3, 4]
    assert stages[1].config.model.init_from is None
