"""experiment.yaml: what it resolves to, and everything that can be wrong in one, before any run."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data

from gptlab.errors import ConfigError
from gptlab.lab.experiment.spec import apply_tuning, load_experiment

GOOD = """\
hypothesis: a gate helps
baseline: ../../base.yaml
common: {train: {tokens: 3072}}
arms:
  gated: {model: {block: {mlp: SwiGLU}}}
  again: baseline
seeds: [3, 1, 4]
metric: loss
match: [tokens, flops]
decision: {smallest_effect: 0.01}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    make_data(folder)
    (folder / "base.yaml").write_text(TINY + "data: {path: data}\n")
    (folder / "experiments" / "e").mkdir(parents=True)
    return folder


def load(place: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.chdir(place)
    (place / "experiments" / "e" / "experiment.yaml").write_text(text)
    return load_experiment("experiments/e")


def test_arms_are_diffs_against_the_baseline(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(place, monkeypatch, GOOD)
    baseline, gated, again = experiment.all_arms
    assert baseline.config.train.tokens == gated.config.train.tokens == 3072
    assert [key for key, _, _ in gated.diff] == ["model.block.mlp"]
    assert (baseline.config.name, gated.config.name) == ("base", "e-gated")
    assert again.diff == []
    assert again.hash == baseline.hash != gated.hash
    assert experiment.statement.match == {"tokens": 0.0, "flops": 0.01}


def test_runs_of_a_seed_are_pairs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline, gated, again = load(place, monkeypatch, GOOD).all_arms
    assert str(gated.seeded(4).seed) == str(baseline.seeded(4).seed) == "4"
    assert again.seeded(4).seed.data == 4  # the same tokens in the same order
    assert again.seeded(4).seed.init == again.seeded(4).seed.dropout == 1004  # from other weights


def test_seeds_come_in_the_order_given_and_then_go_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = load(place, monkeypatch, GOOD.replace("0.01}", "0.01, maximum_seeds: 6}")).statement
    assert statement.all_seeds == [3, 1, 4, 2, 5, 6]
    assert load(place, monkeypatch, GOOD.replace("[3, 1, 4]", "5")).statement.all_seeds == [1, 2, 3, 4, 5]


def test_every_arm_is_tuned_over_the_same_grid(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = "tune: {optimizer.lr: [x0.5, 3e-3], train.gradient_clip: [1.0, 2.0]}\n"
    experiment = load(place, monkeypatch, GOOD + grid)
    assert len(experiment.grid) == 4
    rates = [apply_tuning(experiment.arms[0], point).config.optimizer.plain()["lr"] for point in experiment.grid]
    assert rates == [5e-4, 5e-4, 3e-3, 3e-3]
    assert len({apply_tuning(experiment.arms[0], point).hash for point in experiment.grid}) == 4


def test_an_idea_beside_the_statement(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parents[2] / "experiments" / "example-block" / "block.py"
    (place / "experiments" / "e" / "idea.py").write_text(source.read_text())
    text = GOOD.replace("{model: {block: {mlp: SwiGLU}}}", "{model: {block: {use: './idea.py:GatedBlock'}}}")
    first = load(place, monkeypatch, text).arms[0]
    (place / "experiments" / "e" / "idea.py").write_text(source.read_text() + "\n# edited\n")
    assert load(place, monkeypatch, text).arms[0].hash != first.hash  # an edited idea is another arm


BAD = [
    (GOOD.replace("baseline: ../../base.yaml\n", ""), "no `baseline`"),
    (GOOD.replace("base.yaml", "gone.yaml"), "experiment.yaml:2: no baseline config at"),
    (GOOD.replace("again: baseline", "again: {}"), "'again' resolves to the same config as 'baseline'"),
    (GOOD.replace("again: baseline", "twin: {model: {block: {mlp: SwiGLU}}}"), "same config as 'gated'"),
    (GOOD.replace("again: baseline", "a: baseline\n  b: baseline"), "'b' resolves to the same config as 'a'"),
    (GOOD.replace("[3, 1, 4]", "[3, 1, 3]"), "seeds: 3 is there twice"),
    (GOOD.replace("[3, 1, 4]", "[3, 1]"), "seeds: 2 are fewer than decision.minimum_seeds"),
    (GOOD.replace("metric: loss", "metric: perplexity"), "no metric is called 'perplexity'"),
    (GOOD.replace("metric: loss", "metric: {logged: val/x}"), "say which way is better"),
    (GOOD.replace("metric: loss", "metric: {accuracy: hellaswag, tokens_to: 3}"), "one metric decides"),
    (GOOD.replace("flops]", "flop]"), "match"),
    (GOOD.replace("[tokens, flops]", "{flops: 200%}"), "match"),
    (GOOD.replace("{smallest_effect: 0.01}", "{alpha: 0.05}"), "smallest_effect"),
    (GOOD.replace("{smallest_effect: 0.01}", "{smallest_efect: 0.01}"), "did you mean 'smallest_effect'"),
    (GOOD.replace("mlp: SwiGLU", "mpl: SwiGLU"), "experiment.yaml:5"),
    (GOOD.replace("{model: {block: {mlp: SwiGLU}}}", "{seed: 3}"), "`seed` is the experiment's to set"),
    (GOOD.replace("  gated:", "  'a/b':"), "'a/b' is no name for an arm"),
    (GOOD + "tune: {optimizer.lr: [1e-3]}\ntune_seeds: [4]\n", "tune_seeds: 4 is one of `seeds`"),
    (GOOD + "tune: {optimizer.rate: [1e-3]}\n", "tune: arm 'baseline'"),
    (GOOD + "tune: {optimizer.use: [x2]}\n", "no number there to multiply"),
    (GOOD + "colour: red\n", "unknown key 'colour'"),
    (GOOD.replace("seeds: [3, 1, 4]", "seeds: 0"), "seeds"),
]


@pytest.mark.parametrize(("text", "cause"), BAD, ids=[cause for _, cause in BAD])
def test_what_is_wrong_is_said_before_any_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, text: str, cause: str
) -> None:
    assert text != GOOD
    with pytest.raises(ConfigError) as error:
        load(place, monkeypatch, text)
    assert cause in str(error.value)
    assert "\n" not in str(error.value)


def test_the_commands_say_it_in_a_line(place: Path) -> None:
    (place / "experiments" / "e" / "experiment.yaml").write_text(BAD[0][0])
    for arguments in (["run", "experiments/e"], ["run", "experiments/none"], ["new", "e", "--baseline", "no.yaml"]):
        done = gptlab(*arguments, cwd=place, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
    assert not (place / "runs").exists()


def test_a_new_experiment_is_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gptlab("new", "my-idea", "--baseline", "base.yaml", "--slot", "attention", cwd=place)
    monkeypatch.chdir(place)
    experiment = load_experiment("experiments/my-idea")
    assert [key for key, _, _ in experiment.arms[0].diff] == ["model.block.attention"]
    assert {path.name for path in experiment.folder.iterdir()} == {"experiment.yaml", "idea.py", "NOTES.md"}
    again = gptlab("new", "my-idea", "--baseline", "base.yaml", cwd=place, check=False)
    assert again.returncode == 2
    assert "exists already" in again.stderr
