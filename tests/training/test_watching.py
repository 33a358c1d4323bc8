"""What a person sees of a run while it is on: samples, targets, other measures, loggers of their own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gptlab as command
from helpers import make_questions, rows

import gptlab
from gptlab.data import TokenDataset
from gptlab.errors import ConfigError, GptlabError
from gptlab.evals.benchmark import Options, evaluate
from gptlab.record.facts import read_facts
from gptlab.systems.metrics import read_samples

Train = Callable[..., Path]
SAMPLES = {"log": {"samples": {"every": 4, "prompts": ["the cat", ""], "tokens": 5}}}


def of(run: Path, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in rows(run) if key in row}


# ---------------------------------------------------------------- samples


def test_samples_are_drawn_on_the_way_and_take_nothing_from_training(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plain = train("run", SAMPLES), train("plain")
    drawn = read_samples(run)
    assert [(row["step"], row["prompt"]) for row in drawn] == [(s, p) for s in (4, 8, 10) for p in ("the cat", "")]
    assert rows(run) == rows(plain)
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    end = gptlab.load(run, device="cpu").generate(["the cat", ""], max_new_tokens=5, temperature=0.8, seed=1)
    assert [row["text"] for row in drawn[-2:]] == end  # the last are those of the finished model
    shown = capsys.readouterr().err
    assert "step 4, what the model writes:\n  the cat" in shown
    assert "step 8, what the model writes:\n  the cat" in (run / "log.txt").read_text()


def test_a_resumed_run_draws_each_sample_once(train: Train) -> None:
    flat = {**SAMPLES, "schedule": {"use": "Constant"}}
    run = train("run", flat)
    train("run", {**flat, "train": {"tokens": 3072}}, resume=True)
    assert [row["step"] for row in read_samples(run)] == [4, 4, 8, 8, 10, 10, 12, 12]
    whole = read_samples(train("whole", {**flat, "train": {"tokens": 3072}}))
    assert [row for row in read_samples(run) if row["step"] != 10] == whole


def test_a_damaged_line_of_samples_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = json.dumps({"step": 1, "prompt": "a", "text": "b"})
    (tmp_path / "samples.jsonl").write_text(f'{good}\n{{"step": "1"}}\n{good}\n')
    with pytest.raises(GptlabError, match=r"samples\.jsonl:2: .*; delete the line"):
        read_samples(tmp_path)
    (tmp_path / "samples.jsonl").write_text(f'{good}\n{{"step"')
    assert len(read_samples(tmp_path)) == 1
    assert "samples.jsonl:2: the last line is torn" in capsys.readouterr().err


# ---------------------------------------------------------------- a target


def test_a_run_ends_where_its_target_is_reached(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    whole = of(train("whole", {"eval": {"every": 2}}), "val/loss")
    changes = {"eval": {"every": 2, "target": (whole[4] + whole[6]) / 2}}
    run = train("run", changes)
    assert of(run, "val/loss") == {step: whole[step] for step in (2, 4, 6)}
    assert "reached the target of" in capsys.readouterr().err
    facts = read_facts(run)
    assert (facts.steps, facts.tokens) == (6, 6 * 256)
    loaded = gptlab.load(run, device="cpu")
    assert loaded.finished
    assert loaded.step == 6
    before = (run / "metrics.jsonl").read_bytes()
    train("run", changes, resume=True)  # nothing is left to be done
    assert (run / "metrics.jsonl").read_bytes() == before
    assert gptlab.load(run, device="cpu", checkpoint="last").step == 6


def test_a_target_that_is_not_reached_changes_nothing_but_the_run_s_name(train: Train) -> None:
    assert rows(train("run", {"eval": {"every": 2, "target": 0.01}})) == rows(train("plain", {"eval": {"every": 2}}))


# ---------------------------------------------------------------- other measures


def test_perplexity_and_accuracy_are_logged_where_asked(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run", {"eval": {"also": ["perplexity", "accuracy"], "tokens": 500}})
    assert of(run, "val/perplexity")[10] == pytest.approx(math.exp(of(run, "val/loss")[10]))
    loaded = gptlab.load(run, device="cpu")
    dataset = TokenDataset.open(str(loaded.config.data.path), "validation")
    ids = torch.from_numpy(dataset.read(0, 501).astype(np.int64))
    hits = 0
    with torch.no_grad():
        for start in range(0, 500, 32):
            window = ids[start : min(start + 33, 501)]
            guesses = loaded.model(window[None, :-1], return_logits=True).argmax(-1)[0]
            hits += int((guesses == window[1:]).sum())
    assert of(run, "val/accuracy")[10] == pytest.approx(hits / 500)
    assert f"{hits / 500:.4f} accuracy" in capsys.readouterr().err
    plain = train("plain", {"eval": {"tokens": 500}})
    assert of(plain, "val/loss") == of(run, "val/loss")
    assert not of(plain, "val/accuracy")


# ---------------------------------------------------------------- benchmarks on the way


def test_questions_are_answered_on_the_way_and_take_nothing_from_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPTLAB_BENCHMARKS", str(make_questions(tmp_path / "questions", 40)))
    run = train("run", {"eval": {"tasks": ["hellaswag"], "limit": 30, "every": 5}})
    plain = train("plain", {"eval": {"every": 5, "at_start": True}})
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    answers = of(run, "val/hellaswag/acc")
    assert list(answers) == [0, 5, 10]
    assert len(set(of(run, "val/hellaswag/acc_norm").values())) > 1  # it is asked anew each time
    found = evaluate(gptlab.load(run, device="cpu"), "hellaswag", Options(limit=30)).results
    assert {key: of(run, f"val/hellaswag/{key}")[10] for key in ("acc", "acc_norm")} == {
        key: found[key] for key in ("acc", "acc_norm")
    }
    assert f"{answers[5]:.4f} hellaswag acc" in capsys.readouterr().err
    keys = {"val/hellaswag/acc", "val/hellaswag/acc_norm"}
    assert [{k: v for k, v in row.items() if k not in keys} for row in rows(run)] == rows(plain)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (["helaswag"], "eval.tasks: no published benchmark 'helaswag'; did you mean 'hellaswag'"),
        (["loss"], "eval.tasks: no published benchmark 'loss'"),
        (["hellaswag"], "questions holds no hellaswag/hellaswag_val.jsonl"),
    ],
)
def test_what_cannot_be_asked_is_known_before_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[str], words: str
) -> None:
    (tmp_path / "questions").mkdir()
    monkeypatch.setenv("GPTLAB_BENCHMARKS", str(tmp_path / "questions"))
    with pytest.raises(GptlabError, match=re.escape(words)):
        train("run", {"eval": {"tasks": tasks}})
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_question_that_does_not_fit_is_known_before_the_first_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_questions(tmp_path / "questions")
    text = (folder / "hellaswag_val.jsonl").read_text().replace("noon", "noon" * 20)
    (folder / "hellaswag_val.jsonl").write_text(text)
    monkeypatch.setenv("GPTLAB_BENCHMARKS", str(folder))
    with pytest.raises(GptlabError, match="does not fit the model's context of 32"):
        train("run", {"eval": {"tasks": ["hellaswag"]}})
    assert rows(tmp_path / "run") == []


# ---------------------------------------------------------------- checkpoints by what they are


def test_the_best_and_the_last_checkpoint_have_names(train: Train) -> None:
    changes = {
        "optimizer": {"lr": 0.5},
        "schedule": {"use": "Linear", "warmup": 0.5},
        "eval": {"every": 1},
        "checkpoint": {"best": True, "keep": 1},
        "train": {"spike": None},
    }
    run = train("run", changes)
    validation = of(run, "val/loss")
    assert gptlab.load(run, checkpoint="best").step == min(validation, key=validation.__getitem__) < 10
    assert gptlab.load(run, checkpoint="last").step == 10
    shown = command("eval", str(run), "--tasks", "loss", "--checkpoint", "best", cwd=run)
    best = gptlab.load(run, checkpoint="best").step
    assert f"loss-step-{best:08}.json" in shown.stderr
    assert f"loss at step {best}: loss" in (run / "log.txt").read_text()
    blind = train("blind", {"checkpoint": {"every": 4, "keep": 3}})
    assert gptlab.load(blind, checkpoint="best").step == 10  # the only one that was validated
    with pytest.raises(GptlabError, match=r"has no checkpoint 'first'; it has step-00000004, .*step-00000010"):
        gptlab.load(blind, checkpoint="first")


# ---------------------------------------------------------------- hooks

MINE = """
class Mine:
    def __init__(self, folder, config):
        self.file = open(folder / "mine.txt", "w")
        self.file.write(config["name"])

    def write(self, row):
        self.file.write(f" {row['step']}")

    def samples(self, step, texts):
        self.file.write(f" {sorted(texts)}")

    def close(self):
        self.file.write(" closed")
        self.file.close()


class Lame:
    pass


def broken(row):
    raise KeyError(row["step"])
"""


def test_hooks_get_every_row_and_a_broken_one_costs_no_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    seen: list[Mapping[str, Any]] = []
    changes = {"name": "r", "log": {"hooks": [f"{tmp_path}/mine.py:broken", f"{tmp_path}/mine.py:Mine"]}}
    changes["log"]["samples"] = {"every": 10, "prompts": ["a"], "tokens": 2}  # type: ignore[index]
    run = train("run", changes, hooks=[seen.append])
    assert (run / "mine.txt").read_text() == "r 1 2 3 4 5 6 7 8 9 10 10 ['a'] closed"
    assert [row["step"] for row in seen] == [*range(1, 11), 10]
    assert "mine.py:broken failed (KeyError: 1); it is given nothing more" in capsys.readouterr().err
    assert rows(run) == rows(train("plain"))


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("mine.py", r"log\.hooks: 'mine\.py' names no file; write \./file\.py:Name or module:Name"),
        ("./none.py:Mine", r"log\.hooks: no file .*none\.py; a file is relative to the YAML naming it"),
        ("nowhere.at.all:Mine", r"log\.hooks: nowhere\.at\.all:Mine: No module named 'nowhere'; install it"),
        ("{}/mine.py:Other", r"log\.hooks: nothing called 'Other' in .*mine\.py"),
        ("{}/mine.py:Lame", r"log\.hooks: .*mine\.py:Lame cannot be made with folder=… and config=…: TypeError"),
    ],
)
def test_a_hook_that_is_not_there_is_known_at_once(train: Train, tmp_path: Path, hook: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(ConfigError, match=message):
        train("run", {"log": {"hooks": [hook.format(tmp_path)]}})
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_the_documented_mlflow_hook_logs_a_run(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    train("run", {"log": {"hooks": [f"{documented('MLflow', tmp_path)}:MLflow"]}})
    (logged,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert logged.data.params["train.tokens"] == "2560"
    assert logged.data.metrics["train/loss"] == pytest.approx(of(tmp_path / "run", "train/loss")[10])


def test_the_documented_trackio_hook_logs_a_run(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train("run", {"log": {"hooks": [f"{documented('Trackio', tmp_path)}:Trackio"]}})
    assert list((tmp_path / "trackio").glob("*.db"))


def documented(name: str, folder: Path) -> Path:
    """The hook of the manual's page on loggers whose class is called so, as a file."""
    page = (Path(__file__).parents[2] / "docs/loggers.md").read_text()
    (code,) = [part.split("```")[0] for part in page.split("```python\n")[1:] if f"class {name}" in part]
    (folder / f"{name.lower()}_hook.py").write_text(code)
    return folder / f"{name.lower()}_hook.py"


def test_weights_and_biases_is_told_group_arm_and_config(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, by the real client; what it would send stands in the run it returns."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_RUN_GROUP", "my-experiment")
    monkeypatch.setenv("WANDB_JOB_TYPE", "relu")
    made: list[Any] = []
    original = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: made.append(original(**options)) or made[-1])
    train("run", {"log": {"wandb": "offline"}})
    assert (made[0].group, made[0].job_type) == ("my-experiment", "relu")
    assert made[0].config["train"]["tokens"] == 2560
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
