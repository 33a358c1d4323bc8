"""`model.init_from`: a run that starts from the weights of another, on real text and with mistakes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gptlab, make_data, rows

import gptlab as package
from gptlab.config import config_from, config_hash, dump_yaml, load_config
from gptlab.config.stages import load_stages
from gptlab.data import prepare
from gptlab.errors import CheckpointError, ConfigError
from gptlab.interop import import_run
from gptlab.interop.gpt2 import gpt2_config
from gptlab.model import build_model
from gptlab.run import load_initial_weights, save_weights
from gptlab.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TRAINING = """
optimizer: {use: AdamW, lr: 1e-3}
schedule: {use: Constant, warmup: 0}
train: {tokens: 2560, batch_tokens: 256, sequence_length: 64, dtype: float32}
eval: {every: 0, tokens: 512}
system: {device: cpu, threads: 1}
data: {path: text/data}
"""


@pytest.fixture
def start(wild_model: Any, place: Path) -> Path:
    """An imported tiny GPT-2, with the small weights that a trained one has, and data of its tokenizer."""
    wild_model("gpt2", initializer_range=0.02, n_positions=128).save_pretrained(place / "theirs")
    make_data(place / "text")
    return import_run(place / "theirs", name="tiny", tokenizer="bytes")


def write(model: str, name: str = "tune.yaml") -> Path:
    Path(name).write_text(f"model: {model}\n{TRAINING}")
    return Path(name)


# ---------------------------------------------------------------- what it means


def test_the_model_is_that_of_the_run_but_for_what_is_said(start: Path) -> None:
    config = load_config(write(f"{{init_from: {start}, dropout: 0.25, block: {{mlp: {{approximate: tanh}}}}}}"))
    theirs = load_config(start)
    changed = theirs.model.replace(dropout=0.25, init_from=config.model.init_from)
    expected = changed.plain()
    expected["block"]["mlp"]["approximate"] = "tanh"
    assert config.model.plain() == expected
    assert config.model.init_from.startswith(f"{start}@")


def test_a_base_and_overrides_change_what_the_run_brings(start: Path) -> None:
    write(f"{{init_from: {start}}}")
    Path("diff.yaml").write_text("base: tune.yaml\nmodel: {dropout: 0.5}\n")
    assert load_config("diff.yaml").model.dropout == 0.5
    assert load_config("diff.yaml").model.dim == 64
    by_hand = load_config("diff.yaml", ["model.dropout=0.1", "model.init_from=runs/tiny-*"])
    assert (by_hand.model.dropout, by_hand.model.dim) == (0.1, 64)
    in_python = config_from({"model": {"init_from": str(start), "dropout": 0.1}, "optimizer": "AdamW"})
    assert in_python.model == by_hand.model


def test_the_hash_covers_content_and_not_the_path(start: Path) -> None:
    here = config_hash(load_config(write(f"{{init_from: {start}}}")), {})
    shutil.copytree(start, "moved")
    assert config_hash(load_config(write("{init_from: moved}")), {}) == here
    model = build_model(load_config(start), 257)
    save_weights(model, Path("moved/model.safetensors"))
    assert config_hash(load_config(write("{init_from: moved}")), {}) != here


def test_weights_are_those_of_the_run_and_positions_can_be_cropped(start: Path) -> None:
    theirs = dict(package.load(start, device="cpu").model.named_parameters())
    config = load_config(write(f"{{init_from: {start}, context_length: 64}}"))
    model = build_model(config, 257)
    load_initial_weights(model, load_tokenizer("byte"))
    for name, parameter in model.named_parameters():
        expected = theirs[name][:64] if name.startswith("position.") else theirs[name]
        assert torch.equal(parameter, expected), name


# ---------------------------------------------------------------- training


@pytest.mark.slow
def test_finetuning_lowers_the_loss_of_an_imported_model(wild_model: Any, place: Path, test_data: Path) -> None:
    """A tiny GPT-2, trained a little with transformers, goes on here from where it was, and gets better."""
    text = (test_data / "tinyshakespeare" / "input.txt").read_text()
    (place / "all.txt").write_text(text[:200_000])
    (place / "rest.txt").write_text(text[200_000:230_000])
    tokenizer = load_tokenizer("byte")
    files = {"inputs": [str(place / "all.txt")], "validation": [str(place / "rest.txt")]}
    prepare(**files, tokenizer=tokenizer, out=place / "text" / "data", workers=1)
    theirs = wild_model("gpt2", initializer_range=0.02, n_positions=128)
    ids = torch.tensor(tokenizer.encode(text[:120_000]))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3)
    for step in range(60):
        batch = torch.stack([ids[at : at + 64] for at in range(step * 256, step * 256 + 512, 64)])
        theirs(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval().save_pretrained(place / "theirs")
    start = import_run(place / "theirs", name="tiny", tokenizer="bytes")

    gptlab("eval", str(start), "--data", "text/data", "--sequence-length", "64", cwd=place)
    (result,) = (start / "evals").glob("loss*.json")
    before = json.loads(result.read_text())["results"]["loss"]
    write(f"{{init_from: {start}, dropout: 0.0}}")
    settings = ("--set", "train.tokens=51200", "--set", "train.batch_tokens=2048", "--set", "eval.tokens=null")
    gptlab("train", "tune.yaml", *settings, cwd=place)
    (run,) = (place / "runs").glob("tune-*")
    logged = rows(run)
    assert before < 3.5  # an untrained one would be at ln 257 = 5.5
    assert logged[0]["val/loss"] == pytest.approx(before, rel=1e-3)  # it goes on from there
    assert abs(logged[1]["train/loss"] - before) < 0.2
    after = next(row["val/loss"] for row in reversed(logged) if "val/loss" in row)
    print(f"validation loss {before:.3f} as imported, {after:.3f} after {logged[-1]['step']} steps")
    assert after < before - 0.2


@pytest.mark.slow
def test_resume_does_not_start_again_and_the_run_needs_no_other(start: Path, place: Path) -> None:
    """Stopped and resumed is the same as not stopped; once it has begun, the run it came from may disappear."""
    config = write(f"{{init_from: {start}, dropout: 0.1}}")
    gptlab("train", str(config), "--set", "name=whole", cwd=place)
    gptlab("train", str(config), "--set", "name=parts", "--set", "train.tokens=1280", cwd=place)
    shutil.rmtree(start)
    whole, parts = (next((place / "runs").glob(f"{name}-*")) for name in ("whole", "parts"))
    gptlab("train", str(parts), "--resume", "--set", "train.tokens=2560", cwd=place)
    (parts,) = (folder for folder in (place / "runs").glob("parts-*") if folder != parts)  # a longer run is another
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    run = package.load(whole, device="cpu")
    assert run.step == 10
    assert run.config.model.init_from.startswith("runs/tiny-")


def test_the_shipped_config_trains_from_a_small_gpt2(place: Path, test_data: Path) -> None:
    """The preset finetune-shakespeare with a model of GPT-2's kind in the place of GPT-2 XL, two small steps."""
    text = (test_data / "tinyshakespeare" / "input.txt").read_text()
    (place / "input.txt").write_text(text[:30_000])
    tokenizer = load_tokenizer("byte")
    prepare(inputs=["input.txt"], validation_fraction=0.1, tokenizer=tokenizer, out=Path("data/shakespeare"), workers=1)
    config = gpt2_config(dim=16, layers=1, heads=2, context_length=1024)
    folder = place / "runs" / "gpt2-xl-0a1b2c3d"
    save_weights(build_model(config, 257), folder / "model.safetensors")
    (folder / "config.yaml").write_text(dump_yaml(config.plain()))
    tokenizer.save(folder / "tokenizer")
    shipped = ROOT / "src/gptlab/config/presets" / "finetune-shakespeare.yaml"
    loaded = load_config(shipped)
    assert (loaded.total_steps, loaded.sequences_per_step, loaded.system.micro_batch) == (20, 32, 1)
    settings = ["train.tokens=4096", "train.batch_tokens=2048", "eval.tokens=1024", "system.device=cpu"]
    run = package.train(load_config(shipped, settings))
    assert run.finished
    assert rows(run.folder)[-1]["step"] == 2


def validated(run: Path) -> dict[int, float]:
    return {row["step"]: row["val/loss"] for row in rows(run) if "val/loss" in row}


def test_what_a_run_starts_from_is_validated_first(start: Path, place: Path) -> None:
    config = write(f"{{init_from: {start}, dropout: 0.0}}")
    harmful = ["optimizer.lr=1.0", "train.spike=null", "checkpoint.best=true", "train.tokens=1024", "eval.tokens=null"]
    run = package.train(load_config(config, harmful))
    gptlab("eval", str(start), "--data", "text/data", "--sequence-length", "64", cwd=place)
    (result,) = (start / "evals").glob("loss*.json")
    found = validated(run.folder)
    assert list(found) == [0, 4]
    before = json.loads(result.read_text())["results"]["loss"]
    assert found[0] == pytest.approx(before, rel=1e-3)  # in float32; before, in what this machine takes by itself
    assert found[4] > found[0]  # the best there was, and no checkpoint to be kept as that
    assert [folder.name for folder in (run.folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert "step 0: validation loss" in (run.folder / "log.txt").read_text()
    values = load_config(config).plain()
    again = package.train(config_from(values, ["name=off", "eval.at_start=false", "train.tokens=512"]))
    assert list(validated(again.folder)) == [2]
    del values["model"]
    scratch = package.train(config_from({**values, "name": "on"}, ["eval.at_start=true", "train.tokens=512"]))
    assert list(validated(scratch.folder)) == [0, 2]


def test_a_run_killed_before_its_first_checkpoint_validates_its_start_once(start: Path, place: Path) -> None:
    config = load_config(write(f"{{init_from: {start}}}"), ["train.tokens=512"])
    folder = place / "runs" / "killed"
    run = package.train(config, folder=folder)
    before = validated(run.folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "model.safetensors").unlink()
    (folder / "facts.json").unlink()
    package.train(config, folder=folder, resume=True)
    assert list(before) == [0, 2]
    assert validated(folder) == before


# ---------------------------------------------------------------- mistakes


def test_the_rate_of_new_weights_is_not_taken_without_a_word(start: Path, place: Path, mistake: Any) -> None:
    model = f"model: {{init_from: {start}}}\n"
    rest = TRAINING.replace("optimizer: {use: AdamW, lr: 1e-3}", "")
    Path("tune.yaml").write_text(model + rest)
    problem = "tune.yaml: starts from weights (model.init_from) and says no optimizer"
    assert problem in mistake("train", "tune.yaml")
    assert problem in mistake("plan", "tune.yaml", "--no-probe")
    assert not [folder for folder in (place / "runs").iterdir() if folder.name.startswith("tune-")]
    assert load_config("tune.yaml", ["optimizer.lr=1e-4"]).optimizer.plain()["lr"] == 1e-4
    Path("base.yaml").write_text(TRAINING)
    Path("based.yaml").write_text(f"base: base.yaml\n{model}")
    assert load_config("based.yaml").optimizer.plain()["lr"] == 1e-3
    with pytest.raises(ConfigError, match="says no optimizer"):
        config_from({"model": {"init_from": str(start)}})
    Path("stages.yaml").write_text(f"{model}{rest}\nstages: [{{name: one}}, {{name: two, from: one}}]\n")
    assert "stages.yaml: starts from weights" in mistake("train", "stages.yaml")
    Path("stages.yaml").write_text(f"{rest}\nstages: [{{name: one}}, {{name: two, from: one}}]\n")
    assert len(load_stages("stages.yaml")) == 2  # from new weights, and on as before
    Path("experiments/tune").mkdir(parents=True)
    statement = "hypothesis: it helps\nseeds: 3\ndecision: {smallest_effect: 0.01}\nbaseline: ../../tune.yaml\n"
    arms = "arms: {a: {train: {gradient_clip: 0.5}}}\n"
    Path("experiments/tune/experiment.yaml").write_text(statement + arms)
    assert "says no optimizer" in mistake("run", "experiments/tune", "--dry-run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "tune.yaml:1: model.init_from: nowhere is not a run folder (nothing is there)"),
        ("theirs", "theirs is no run folder; first: gptlab import theirs --name theirs"),
        ("ckpt.pt", "ckpt.pt is no run folder; first: gptlab import ckpt.pt --name ckpt"),
        ("runs/t*", "runs/t* fits 2 folders"),
        ("unfinished", "unfinished holds no model.safetensors: it is not finished"),
    ],
)
def test_what_init_from_cannot_be(start: Path, place: Path, text: str, message: str) -> None:
    (place / "ckpt.pt").write_bytes(b"")
    shutil.copytree(start, place / "runs" / "twin")
    (place / "unfinished").mkdir()
    shutil.copy(start / "config.yaml", place / "unfinished")
    with pytest.raises(ConfigError) as caught:
        load_config(write(f"{{init_from: '{text}'}}"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_on_the_command_line_the_mistake_is_there(start: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^overrides=\['model.init_from=nowhere'\]: model.init_from: nowhere is not a run folder"
    ):
        load_config(write("{}"), ["model.init_from=nowhere"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("dim: 32", r"embedding.weight is \[257, 32\] here and \[257, 64\]"),
        ("layers: 5", r"blocks.4.attention_norm.weight is \[64\] here and absent"),
        ("layers: 3", r"blocks\.3\.\S+ is absent here and \[64\] in runs"),
        ("context_length: 256", r"position.embedding.weight is \[256, 64\] here and \[128, 64\]"),
    ],
)
def test_shapes_that_differ_are_named(start: Path, mistake: Any, model: str, message: str) -> None:
    write(f"{{init_from: {start}, {model}}}")
    assert re.search(message, mistake("train", "tune.yaml"))


def test_another_tokenizer_is_refused(start: Path, mistake: Any, place: Path) -> None:
    letters = load_tokenizer("byte")
    special = package.tokenizer.byte_tokenizer(special_tokens=["<|user|>"], name="other")
    assert special.hash != letters.hash
    prepare(inputs=["text/text"], validation_fraction=0.1, tokenizer=special, out=place / "other", workers=1)
    write(f"{{init_from: {start}}}")
    printed = mistake("train", "tune.yaml", "--set", "data.path=other")
    assert "has tokenizer byte (257 ids), the data is of other (258)" in printed


def test_weights_that_changed_since_the_config_was_read(start: Path) -> None:
    model = build_model(load_config(write(f"{{init_from: {start}}}")), 257)
    save_weights(build_model(load_config(start), 257), start / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds other weights than when the config was read"):
        load_initial_weights(model, load_tokenizer("byte"))
    shutil.rmtree(start)
    with pytest.raises(CheckpointError, match="is not there; put it back"):
        load_initial_weights(model, load_tokenizer("byte"))


def test_a_path_without_its_digest_builds_no_model(start: Path) -> None:
    from gptlab.config import build

    with pytest.raises(ConfigError, match="load the config with load_config"):
        build("model", {"use": "GPT", "init_from": str(start)}, vocab_size=257, sequence_length=64)


def test_a_model_without_init_from_is_left_as_it_is() -> None:
    model = build_model(config_from({"model": {"dim": 16, "layers": 1, "heads": 1}}), 257)
    before = {name: p.clone() for name, p in model.named_parameters()}
    load_initial_weights(model, load_tokenizer("byte"))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_imported_weights_are_not_trained_over(start: Path, mistake: Any) -> None:
    """--resume of a run that has weights and no checkpoint would begin at random weights and delete these."""
    printed = mistake("train", str(start), "--resume", "--set", "data.path=text/data")
    assert "has weights and no checkpoint to resume from; start a run with --set model.init_from=" in printed
