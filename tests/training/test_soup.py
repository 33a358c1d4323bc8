"""Soups: what is averaged, what the greedy recipe keeps, what is written, and what has no average."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import TINY, make_data
from safetensors.numpy import load_file, save_file

import gptlab
from gptlab.cli import main
from gptlab.config import config_from, load_config
from gptlab.config.load import merge
from gptlab.evals.benchmark import Options, evaluate
from gptlab.interop import export_run
from gptlab.interop.runs import write_run
from gptlab.model import build_model
from gptlab.run import Run
from gptlab.tokenizer import load_tokenizer
from gptlab.training.soup import average, read_soup

MOE = {"model": {"block": {"mlp": {"use": "MoE", "experts": 3, "expert": {"use": "SwiGLU", "hidden": 16}}}}}
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 40 steps with two checkpoints, and its data beside it."""
    folder = tmp_path_factory.mktemp("soup")
    make_data(folder)
    config = config_from(settings(folder, {"train": {"tokens": 10240}, "checkpoint": {"every": 20}}))
    return gptlab.train(config, folder=folder / "trained")


def settings(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    start = yaml.safe_load(TINY.replace("1e-3", "0.003")) | {"data": {"path": str(folder / "data")}}
    found: dict[str, Any] = merge(start, changes)
    return found


Make = Callable[..., Path]


@pytest.fixture
def make(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make("name", changes, weights={…}, seed=…)` → a finished run in runs/ with these weights, or drawn ones."""
    monkeypatch.chdir(tmp_path)

    def write(
        name: str, changes: dict[str, Any] | None = None, *, weights: Weights | None = None, seed: int = 0
    ) -> Path:
        import torch

        config = config_from(settings(trained.folder.parent, {"name": name, "seed": seed, **(changes or {})}))
        tensors = {n: p.detach() for n, p in build_model(config, 257).named_parameters()}
        if weights is not None:
            tensors = {n: torch.from_numpy(value) for n, value in weights.items()}
        return write_run(name, config, tensors, load_tokenizer("byte"), {"from": "a test"}, Path("runs"))

    return write


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`gptlab soup …` must fail with one line and exit code 2, and write nothing; what it printed."""

    def attempt(*arguments: str | Path) -> str:
        before = sorted(Path.cwd().rglob("*"))
        monkeypatch.setattr(sys, "argv", ["gptlab", "soup", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        printed = capsys.readouterr().err.strip()
        assert exit_info.value.code == 2
        assert sorted(Path.cwd().rglob("*")) == before
        assert printed.splitlines()[-1].startswith("error: ")
        return printed.splitlines()[-1]

    return attempt


def weights_of(folder: Path) -> Weights:
    found: Weights = load_file(folder / "model.safetensors")
    return found


# ---------------------------------------------------------------- the average


@pytest.mark.parametrize(("given", "shares"), [(None, [1, 1, 1]), ([2, 1, 1], [2, 1, 1]), ([0.5, 0.3, 0.2], [5, 3, 2])])
def test_the_average_is_that_of_float64(make: Make, given: list[float] | None, shares: list[float]) -> None:
    """Every tensor, the balancing bias of a mixture of experts too, which no optimizer trains."""
    runs = [make(f"r{n}", MOE, seed=n) for n in range(3)]
    for number, run in enumerate(runs):
        tensors = weights_of(run)
        bias = next(name for name in tensors if name.endswith("mlp.bias"))
        tensors[bias][:] = [0.1 * number, -1e-3, number**2]
        save_file(tensors, run / "model.safetensors")
    made = gptlab.soup(runs, "mixed", weights=given, device="cpu")
    found, parts = weights_of(made.folder), [weights_of(run) for run in runs]
    assert set(found) == set(parts[0])  # the head is the embedding, and stands there once
    assert not any(name.startswith("head") for name in found)
    for name, tensor in found.items():
        exact = sum(
            np.float64(s / sum(shares)) * p[name].astype(np.float64) for s, p in zip(shares, parts, strict=True)
        )
        np.testing.assert_array_max_ulp(tensor, exact.astype(np.float32), maxulp=1)
    np.testing.assert_allclose(found[bias], [0.1 * (shares[1] + 2 * shares[2]) / sum(shares), -1e-3, found[bias][2]])
    assert [one.weight for one in made.ingredients] == pytest.approx([s / sum(shares) for s in shares])


def test_float64_matters(tmp_path: Path) -> None:
    """10⁸ + 1 − 10⁸ is 1 in float64 and 0 in float32."""
    for name, value in (("a", 1e8), ("b", 1.0), ("c", -1e8)):
        save_file({"x": np.array([value], dtype=np.float32)}, tmp_path / name)
    found = average([(tmp_path / name, 1.0) for name in "abc"])
    assert found["x"].tolist() == [1.0]


def test_the_order_of_runs_changes_no_byte(make: Make) -> None:
    runs = [make(f"r{n}", seed=n) for n in range(3)]
    first = gptlab.soup(runs, "one", device="cpu").folder
    second = gptlab.soup(runs[::-1], "two", device="cpu").folder
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    third = gptlab.soup(runs, "one", weights=[3, 2, 1], device="cpu").folder
    assert third.name != first.name


# ---------------------------------------------------------------- what it is worth


@pytest.fixture
def around(trained: Run, make: Make) -> list[Path]:
    """Two runs on opposite sides of the trained one, and one far off, which comes first."""
    rng = np.random.default_rng(0)
    center = weights_of(trained.folder)
    step = {name: 0.02 * rng.standard_normal(value.shape).astype(np.float32) for name, value in center.items()}
    far = {name: value + 0.4 * rng.standard_normal(value.shape).astype(np.float32) for name, value in center.items()}
    near = [{name: value + sign * step[name] for name, value in center.items()} for sign in (1, -1)]
    return [make("far", weights=far), make("plus", weights=near[0]), make("minus", weights=near[1])]


def test_greedy_keeps_what_helps(around: list[Path], trained: Run) -> None:
    made = gptlab.soup(around, "greedy", greedy=True, device="cpu")
    assert [one.weight for one in made.ingredients] == [0.0, 0.5, 0.5]
    losses = [one.loss for one in made.ingredients]
    assert losses[0] > max(losses[1:])
    assert made.loss < min(losses)
    assert made.mean_loss == pytest.approx(sum(losses) / 3)
    for name, value in weights_of(trained.folder).items():
        np.testing.assert_allclose(weights_of(made.folder)[name], value, atol=1e-6)
    uniform = gptlab.soup(around, "uniform", device="cpu")
    assert uniform.loss > made.loss


def test_greedy_may_keep_the_best_alone(around: list[Path], trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from gptlab.cli.soup import show_soup

    made = gptlab.soup([around[0], trained.folder], "alone", greedy=True, device="cpu")
    assert [one.weight for one in made.ingredients] == [0.0, 1.0]
    assert weights_of(made.folder).keys() == weights_of(trained.folder).keys()
    for name, value in weights_of(trained.folder).items():
        np.testing.assert_array_equal(weights_of(made.folder)[name], value)
    show_soup(made)
    assert "one run was kept" in capsys.readouterr().err


def test_losses_are_those_of_training_and_of_eval(around: list[Path], trained: Run) -> None:
    """All on the same tokens: the runs' own `eval.tokens`."""
    made = gptlab.soup([*around, trained.folder], "all", device="cpu")
    logged = next(row["val/loss"] for row in reversed(trained.metrics) if "val/loss" in row)
    assert made.ingredients[3].loss == pytest.approx(logged, abs=1e-5)
    for folder, loss in [*((one.folder, one.loss) for one in made.ingredients), (made.folder, made.loss)]:
        found = evaluate(gptlab.load(folder, device="cpu"), "loss", Options(limit=512 // 32))
        assert found.results["loss"] == pytest.approx(loss, abs=1e-6), folder


# ---------------------------------------------------------------- what is written


def test_a_soup_is_a_run(around: list[Path], tmp_path: Path) -> None:
    """It loads, writes, is where another run starts, and goes into another soup."""
    made = gptlab.soup(around[1:], "first", device="cpu")
    run = gptlab.load(made.folder, device="cpu")
    assert run.finished
    assert run.step is None
    assert run.config.name == "first"
    assert len(run.generate("the cat", max_new_tokens=5, seed=1, stop_at_end=False)) > 0
    config = load_config(write_yaml(tmp_path, f"model: {{init_from: {made.folder}}}\noptimizer: AdamW"))
    assert config.model.dim == 32
    again = gptlab.soup([made.folder, around[0]], "second", device="cpu")
    assert [one.folder for one in again.ingredients] == [made.folder, around[0]]
    assert read_soup(again.folder) == again


def test_a_soup_is_exported(make: Make, tmp_path: Path) -> None:
    llama = {"model": {"block": {"mlp": "SwiGLU"}}}
    made = gptlab.soup([make("a", llama, seed=1), make("b", llama, seed=2)], "x", device="cpu")
    export_run(gptlab.load(made.folder, device="cpu"), tmp_path / "theirs", "hf")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    np.testing.assert_array_equal(theirs["model.embed_tokens.weight"], weights_of(made.folder)["embedding.weight"])


def write_yaml(folder: Path, text: str) -> Path:
    (folder / "start.yaml").write_text(text)
    return folder / "start.yaml"


def test_the_record_says_what_it_is_made_of(around: list[Path]) -> None:
    made = gptlab.soup(around[1:], "first", weights=[3, 1], device="cpu")
    text = (made.folder / "soup.yaml").read_text()
    record = yaml.safe_load(text)
    assert text.startswith("# The average")
    assert record["method"] == "weighted"
    assert [one["run"] for one in record["runs"]] == [str(run) for run in around[1:]]
    assert [one["weight"] for one in record["runs"]] == [0.75, 0.25]
    assert [len(one["sha256"]) for one in record["runs"]] == [64, 64]
    assert record["tokens"] == 512
    assert record["loss"] == made.loss
    (session,) = json.loads((made.folder / "env.json").read_text())
    assert session["soup"] == record
    kept = json.loads((made.folder / "evals" / "loss.json").read_text())
    assert kept["results"]["loss"] == made.loss
    assert kept["settings"]["run"] == made.folder.name


def test_where_the_runs_began_is_kept_if_it_is_one_place(make: Make, trained: Run) -> None:
    def begun(name: str, start: Path, seed: int) -> Path:
        return make(name, {"model": {"init_from": str(start)}}, seed=seed)

    here = [begun(f"r{n}", trained.folder, n) for n in (1, 2)]
    made = gptlab.soup(here, "one", device="cpu")
    assert load_config(made.folder).model.init_from.startswith(str(trained.folder))
    other = begun("other", here[0], 3)
    mixed = gptlab.soup([here[0], other], "two", device="cpu")
    assert load_config(mixed.folder).model.init_from is None


def test_checkpoints_are_souped_too(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one moment of several runs; an unfinished run has no other weights."""
    monkeypatch.chdir(tmp_path)
    config = trained.config.model_copy(update={"seed": type(trained.config.seed)(init=1, data=5, dropout=1)})
    other = gptlab.train(config, folder=tmp_path / "other")
    (other.folder / "model.safetensors").unlink()
    runs = [trained.folder, other.folder]
    made = gptlab.soup(runs, "early", checkpoint="step-00000020", device="cpu")
    parts = [gptlab.load(run, device="cpu", checkpoint="step-00000020").model for run in runs]
    found = weights_of(made.folder)
    for name, value in parts[0].named_parameters():
        exact = (value.double() + dict(parts[1].named_parameters())[name].double()) / 2
        np.testing.assert_array_equal(found[name], exact.float().detach().numpy())
    assert yaml.safe_load((made.folder / "soup.yaml").read_text())["checkpoint"] == "step-00000020"


def test_the_table(make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(make(f"r{n}", seed=n)) for n in range(2)]
    monkeypatch.setattr(
        sys, "argv", ["gptlab", "soup", *runs, "--out", "mix", "--weights", "0.25,0.75", "--device", "cpu"]
    )
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    printed = capsys.readouterr()
    (folder,) = Path("runs").glob("mix-*")
    record = yaml.safe_load((folder / "soup.yaml").read_text())
    lines = printed.out.splitlines()
    assert lines[0].split() == ["run", "weight", "loss"]
    for line, one in zip(lines[1:3], record["runs"], strict=True):
        assert line.split()[:3] == [one["run"], f"{one['weight']:.4g}", f"{one['loss']:.4f}"]
    assert lines[3].startswith("mean of the runs")
    assert f"{record['mean_loss']:.4f}" in lines[3]
    assert f"{record['loss']:.4f}" in lines[4]
    assert f"{record['loss'] - record['mean_loss']:+.4f} nats" in printed.err


# ---------------------------------------------------------------- mistakes


def test_what_makes_no_soup(make: Make, mistake: Callable[..., str]) -> None:
    a, b = make("a", seed=1), make("b", seed=2)
    out = ("--out", "x", "--device", "cpu")
    assert "two runs or more, 1 given" in mistake(a, *out)
    assert f"{a} is given twice" in mistake(a, b, a, *out)
    assert "nowhere is not a run folder" in mistake(a, "nowhere", *out)
    assert "--weights: 3 given for 2 runs" in mistake(a, b, *out, "--weights", "1,2,3")
    assert "must be above 0" in mistake(a, b, *out, "--weights", "1,0")
    assert "must be above 0" in mistake(a, b, *out, "--weights", "1,nan")
    assert "below 1e100" in mistake(a, b, *out, "--weights", "1e308,1e308")  # whose sum is no number
    assert "write numbers with commas" in mistake(a, b, *out, "--weights", "1;2")
    assert "exclude each other" in mistake(a, b, *out, "--weights", "1,2", "--greedy")
    assert "name" in mistake(a, b, "--out", "../x", "--device", "cpu")
    shutil.copytree(a, "runs/copy")
    assert f"{a} and runs/copy hold the very same weights" in mistake(a, "runs/copy", *out)
    assert "has no checkpoint 'step-1'" in mistake(a, b, *out, "--checkpoint", "step-1")
    (b / "model.safetensors").write_bytes(b"no weights at all")
    assert f"{b / 'model.safetensors'} is damaged" in mistake(a, b, *out)
    (b / "model.safetensors").unlink()
    assert f"{b} is not finished" in mistake(a, b, *out)


def test_a_soup_is_not_made_over_another(make: Make, mistake: Callable[..., str]) -> None:
    a, b = make("a", seed=1), make("b", seed=2)
    made = gptlab.soup([a, b], "x", device="cpu")
    assert f"{made.folder} exists already" in mistake(b, a, "--out", "x", "--device", "cpu")
    assert gptlab.soup([a, b], "x", device="cpu", reuse=True) == made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"layers": 3}}, "not of one architecture: model.layers is 2 and 3"),
        ({"model": {"block": {"mlp": "ReLU2"}}}, "model.block.mlp is"),
        ({"model": {"position": {"use": "RoPE", "theta": 5e5}}}, "model.position.theta is"),
        (MOE, "model.block.mlp is"),
    ],
)
def test_another_architecture_is_named(make: Make, mistake: Callable[..., str], changes: Any, message: str) -> None:
    assert message in mistake(make("a"), make("b", changes), "--out", "x")


def test_dropout_and_initialization_make_no_other_architecture(make: Make) -> None:
    other = {"model": {"dropout": 0.3, "initialization": {"use": "GPT2Init", "residual": "plain"}}}
    assert gptlab.soup([make("a", seed=1), make("b", other, seed=2)], "x", device="cpu").loss > 0


def test_another_tokenizer_or_other_data_are_refused(make: Make, trained: Run, mistake: Callable[..., str]) -> None:
    from gptlab.tokenizer import byte_tokenizer

    a, b, c = (make(name, seed=n) for n, name in enumerate("abc"))
    byte_tokenizer(special_tokens=["<|user|>"], name="other").save(b / "tokenizer")
    assert f"has tokenizer byte ({trained.tokenizer.hash}) and {b} other" in mistake(a, b, "--out", "x")
    make_data(Path("elsewhere"), seed=7)
    config = yaml.safe_load((c / "config.yaml").read_text())
    config["data"]["path"] = "elsewhere/data"
    (c / "config.yaml").write_text(yaml.safe_dump(config))
    assert f"{a} and {c} have different validation data; name one for all: --data" in mistake(a, c, "--out", "x")
    made = gptlab.soup([a, c], "x", data="elsewhere/data", limit=3, device="cpu")
    record = yaml.safe_load((made.folder / "soup.yaml").read_text())
    assert record["tokens"] == 3 * 32
    assert record["data"]["data"]["path"] == "elsewhere/data"


def test_shapes_that_configs_do_not_tell(make: Make, mistake: Callable[..., str]) -> None:
    a, b = make("a", seed=1), make("b", seed=2)
    tensors = weights_of(b)
    tensors["embedding.weight"] = tensors["embedding.weight"][:200]
    save_file(tensors, b / "model.safetensors")
    assert f"{a} and {b} differ in tensor embedding.weight" in mistake(a, b, "--out", "x", "--device", "cpu")


def test_weights_that_are_not_finite(make: Make, mistake: Callable[..., str]) -> None:
    a, b = make("a", seed=1), make("b", seed=2)
    tensors = weights_of(b)
    tensors["embedding.weight"][3, 4] = np.nan
    save_file(tensors, b / "model.safetensors")
    assert f"{b}: tensor embedding.weight is not finite" in mistake(a, b, "--out", "x", "--device", "cpu")


def test_an_average_that_is_not_finite(tmp_path: Path) -> None:
    from gptlab.errors import CheckpointError

    for name in "ab":
        save_file({"x": np.array([3e38], dtype=np.float32)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="average of tensor x is not finite"):
        average([(tmp_path / name, 1.0) for name in "ab"])
    for name, value in (("a", 1), ("b", 2)):
        save_file({"x": np.array([value])}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"tensor x holds torch\.int64 and differs"):
        average([(tmp_path / name, 0.5) for name in "ab"])
