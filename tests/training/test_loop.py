"""The loop: what it computes, in which order, and when it stops. In this process, on the smallest of runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import rows
from safetensors.torch import load_file

import gptlab
from gptlab.config.load import merge
from gptlab.errors import ConfigError, GptlabError, TrainingError
from gptlab.record import runfolder
from gptlab.systems import display

Train = Callable[..., Path]


def losses(run: Path, key: str = "train/loss") -> dict[int, float]:
    return {row["step"]: row[key] for row in rows(run) if key in row}


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run / "model.safetensors")
    return found


def write(folder: Path, code: str) -> str:
    (folder / "idea.py").write_text(code)
    return str(folder / "idea.py")


# ---------------------------------------------------------------- validation


def test_validation_takes_nothing_from_training(train: Train) -> None:
    never, always = (
        train("never", {"model": {"dropout": 0.1}}),
        train("always", {"model": {"dropout": 0.1}, "eval": {"every": 1}}),
    )
    assert losses(never) == losses(always)
    assert list(losses(never, "val/loss")) == [10]
    assert list(losses(always, "val/loss")) == list(range(1, 11))
    assert (never / "model.safetensors").read_bytes() == (always / "model.safetensors").read_bytes()
    assert losses(never, "val/loss")[10] == losses(always, "val/loss")[10]


def test_validation_is_over_the_tokens_asked_for_however_it_is_cut(train: Train) -> None:
    one, other = train("one", {"system": {"micro_batch": 8}}), train("other", {"system": {"micro_batch": 3}})
    assert losses(one, "val/loss")[10] == pytest.approx(losses(other, "val/loss")[10], abs=1e-5)
    bits = losses(one, "val/bits_per_byte")[10]
    assert bits == pytest.approx(losses(one, "val/loss")[10] / math.log(2), rel=0.05)


def test_fewer_validation_tokens_than_asked_for_are_all_read_and_said(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    many = train("many", {"eval": {"tokens": 10_000_000}})
    assert "validation tokens, fewer than eval.tokens; all of them are read" in capsys.readouterr().err
    every = train("every", {"eval": {"tokens": None}})
    assert losses(many, "val/loss") == losses(every, "val/loss")
    sessions = [runfolder.read_sessions(run)[-1]["validation"] for run in (many, every)]
    assert sessions[0] == sessions[1]


def test_a_missing_logger_is_known_at_once(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(GptlabError, match="wandb is missing"):
        train("logged", {"log": {"wandb": "offline"}})
    assert not (tmp_path / "logged").exists()


# ---------------------------------------------------------------- steps


def test_accumulation_changes_rounding_only(train: Train) -> None:
    whole, cut = train("whole"), train("cut", {"system": {"micro_batch": 3}})
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], weight, atol=1e-5, rtol=0)
    for step, loss in losses(whole).items():
        assert losses(cut)[step] == pytest.approx(loss, abs=1e-5)


def test_a_step_that_is_skipped_does_not_end_a_training_with_a_scaler(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 on a CPU has no scaler in gptlab; torch's works there all the same, and is what a GPU has."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=True))
    loss = {"use": write(tmp_path, JUMPING) + ":Jumping", "by": 3.0}
    train_ = {"tokens": 256 * 56, "spike": 0.5, "bad_step": "skip"}
    found = rows(train("run", {"loss": loss, "train": train_}))
    assert [row["step"] for row in found if row.get("skipped")] == [53]
    assert found[-2]["step"] == 56


def test_a_checkpoint_is_written_by_the_clock(train: Train) -> None:
    run = train("run", {"checkpoint": {"minutes": 1e-9, "keep": 100}})
    assert len(list((run / "checkpoints").glob("step-*"))) == 10
    run = train("steps alone", {"checkpoint": {"minutes": 0}})
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000010"]


def test_the_log_can_be_followed(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    lines = (train("run") / "log.txt").read_text().splitlines()
    assert [line.split()[3] for line in lines if "tok/s" in line] == [f"{step}/10" for step in range(1, 11)]


def test_the_first_loss_is_that_of_a_guess_and_it_falls(train: Train) -> None:
    found = losses(train("run"))
    assert found[1] == pytest.approx(math.log(257), abs=0.2)
    assert found[10] < found[1] - 0.3


def test_the_seeds_are_apart(train: Train) -> None:
    start = losses(train("start"))
    assert losses(train("again")) == start
    assert losses(train("init", {"seed": {"init": 2}}))[1] != start[1]
    assert losses(train("order", {"seed": {"data": 2}}))[1] != start[1]
    assert losses(train("dropout", {"seed": {"dropout": 2}})) == start  # there is none


def test_clipping(train: Train) -> None:
    clip = {"train": {"gradient_clip": 1e-3}, "optimizer": {"use": "torch.optim.sgd:SGD", "lr": 1.0}}
    clipped = train("clipped", clip)
    free = train("free", merge(clip, {"train": {"gradient_clip": None}}))
    norms = losses(clipped, "gradient_norm"), losses(free, "gradient_norm")
    assert norms[0][1] == norms[1][1] > 0.1  # what is logged is the norm before
    assert losses(clipped)[10] > losses(free)[10] + 0.1
    assert losses(train("high", {"train": {"gradient_clip": 1e9}})) == losses(
        train("none", {"train": {"gradient_clip": None}})
    )


def test_the_schedule_is_the_run_s(train: Train) -> None:
    run = train("run", {"schedule": {"use": "WSD", "warmup": 0.2, "decay": 0.5}})
    found = [round(value, 3) for value in losses(run, "lr_multiplier").values()]
    assert found == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]


def test_muon(train: Train) -> None:
    muon = {"optimizer": {"use": "Muon", "lr": 0.02, "adamw_lr": 3e-3}, "checkpoint": {"every": 5, "keep": 9}}
    whole = train("whole", muon)
    assert losses(whole)[10] < losses(whole)[1] - 1
    part = train("part", muon)
    (part / "model.safetensors").unlink()
    __import__("shutil").rmtree(part / "checkpoints/step-00000010")
    train("part", muon, resume=True)
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert rows(part) == rows(whole)


def test_threads(train: Train) -> None:
    before = torch.get_num_threads()
    try:
        run = train("run", {"system": {"threads": 2}, "train": {"tokens": 256}})
        assert json.loads((run / "env.json").read_text())[0]["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_float16_needs_a_gpu(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float16 needs a CUDA device, this is cpu"):
        train("half", {"train": {"dtype": "float16"}})
    assert not (tmp_path / "half").exists()


@pytest.mark.slow  # the compiler is
def test_compiled_training_is_the_same(train: Train) -> None:
    """Where there is no compiler it is said, and training goes on; either way the losses are those of eager mode."""
    small = {"model": {"layers": 1}, "train": {"tokens": 768}}
    compiled = train("compiled", merge(small, {"system": {"compile": True}}))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was tried
    torch._dynamo.utils.counters.clear()
    eager = train("eager", small)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert len(losses(compiled)) == 3
    for step, loss in losses(eager).items():
        assert losses(compiled)[step] == pytest.approx(loss, abs=1e-4)
    torch.compiler.reset()


# ---------------------------------------------------------------- mixtures


def test_mixtures(train: Train, data: Path) -> None:
    sources = {"path": None, "sources": {"a": str(data / "a/data"), "b": str(data / "b/data")}}
    only = train("only", {"data": {**sources, "mix": {"use": "Weights", "weights": {"a": 1, "b": 0}}}})
    assert losses(only) == losses(train("alone"))  # a source without weight takes no part
    stages = [{"at": 0, "weights": {"a": 1, "b": 0}}, {"at": 1, "weights": {"a": 0, "b": 1}}]
    moving = train("moving", {"data": {**sources, "mix": {"use": "Schedule", "stages": stages}}})
    assert losses(moving)[1] == losses(only)[1]
    assert losses(moving)[10] != losses(only)[10]
    last = rows(moving)[-1]
    parts = [last[f"val/loss/{name}"] for name in ("a", "b")]
    assert last["val/loss"] == pytest.approx(sum(parts) / 2)  # as many tokens of each
    assert parts[0] != parts[1]
    with pytest.raises(ConfigError, match=r"names 'c', which is no data set here; valid: a, b"):
        train("wrong", {"data": {**sources, "mix": {"use": "Weights", "weights": {"c": 1}}}})


# ---------------------------------------------------------------- order, checkpoints, logs


def test_a_step_is_saved_before_it_is_validated(train: Train) -> None:
    """What fails in validation must not cost the steps before it."""
    run = train("run", {"eval": {"every": 5}, "checkpoint": {"every": 5}})
    told = [line.split(" ", 2)[2] for line in (run / "log.txt").read_text().splitlines()]
    happened = [text for text in told if re.match("saved|step", text)]
    assert [re.sub(":.*", "", text) for text in happened] == [
        "saved step-00000005",
        "step 5",
        "saved step-00000010",
        "step 10",
    ]


def test_a_crash_while_validating_costs_no_step(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gptlab.training.loop as training

    every = {"eval": {"every": 5}, "checkpoint": {"every": 5}}

    def crash(*_: object, **__: object) -> None:
        raise OSError("lost")

    monkeypatch.setattr(training, "evaluate", crash)
    with pytest.raises(OSError, match="lost"):
        train("run", every)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000005"]
    run = train("run", every, resume=True)
    assert rows(run) == rows(train("quiet", every))


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def test_the_newest_checkpoints_are_kept(train: Train) -> None:
    assert saved(train("two", {"checkpoint": {"every": 2, "keep": 2}})) == [8, 10]
    assert saved(train("end")) == [10]
    assert saved(train("all", {"checkpoint": {"every": 4, "keep": 9}})) == [4, 8, 10]


def test_the_best_checkpoint_is_kept(train: Train) -> None:
    """A rate that is far too high makes the loss rise: the best is an early one."""
    run = train(
        "run",
        {
            "optimizer": {"lr": 0.5},
            "schedule": {"use": "Linear", "warmup": 0.5},
            "eval": {"every": 1},
            "checkpoint": {"best": True, "keep": 1},
            "train": {"spike": None},
        },
    )
    validation = losses(run, "val/loss")
    best = min(validation, key=lambda step: validation[step])
    assert best < 10
    assert saved(run) == [best, 10]
    assert gptlab.load(run, checkpoint=f"step-{best:08d}").step == best


def test_log_every(train: Train) -> None:
    run = train("run", {"log": {"every": 4}})
    assert list(losses(run)) == [4, 8, 10]
    assert losses(run)[8] == losses(train("each"))[8]


def test_tensorboard_is_a_view_of_the_same_rows(train: Train) -> None:
    pytest.importorskip("tensorboard")
    run = train("run", {"log": {"tensorboard": True}, "train": {"tokens": 512}})
    assert list((run / "tensorboard").glob("events.*"))


def test_extending_a_finished_run(train: Train) -> None:
    flat = {"schedule": {"use": "Constant"}}
    run = train("run", flat)
    before = rows(run)
    extended = train("run", merge(flat, {"train": {"tokens": 3840}}), resume=True)
    assert rows(extended)[: len(before)] == before
    whole = train("whole", merge(flat, {"train": {"tokens": 3840}}))
    assert losses(extended) == losses(whole)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(GptlabError, match=r"is beyond the end: step 15 of 10; set train\.tokens to at least 3840"):
        train("run", flat, resume=True)


# ---------------------------------------------------------------- bad steps

JUMPING = """
from gptlab.loss import CrossEntropy, LossSum


class Jumping(CrossEntropy):
    slot = "loss"

    def __init__(self, *, at: int = 53, by: float = 1.0) -> None:
        super().__init__()
        self.calls, self.at, self.by = 0, at, by

    def __call__(self, model, batch):
        out = super().__call__(model, batch)
        self.calls += model.training
        jump = self.by if self.calls == self.at else 0.0
        return LossSum(out.sum + jump * out.count, out.count, {"jump": jump * out.count.float()})
"""


def test_a_spike_stops_the_run(train: Train, tmp_path: Path) -> None:
    loss = {"use": write(tmp_path, JUMPING) + ":Jumping"}
    spiky = {"loss": loss, "train": {"tokens": 256 * 60, "spike": 0.5}, "checkpoint": {"every": 26}}
    with pytest.raises(TrainingError, match=r"step 53: the loss jumped to .* from a median of .* \(train.spike: 0.5\)"):
        train("run", merge(spiky, {"loss": {"by": 3.0}}))
    run = tmp_path / "run"
    assert "step-00000052 is whole, resume=True goes on from it" in (run / "log.txt").read_text()
    assert max(losses(run)) == 53
    assert losses(run, "train/jump")[53] == pytest.approx(3.0)  # a component's own metric, a mean over tokens
    skipped = train("skipped", merge(spiky, {"loss": {"by": 3.0}, "train": {"bad_step": "skip"}}))
    assert [row["step"] for row in rows(skipped) if row.get("skipped")] == [53]
    assert max(losses(skipped)) == 60
    # Within the limit, and where there is none, nothing happens.
    assert max(losses(train("low", merge(spiky, {"loss": {"by": 0.1}})))) == 60
    assert max(losses(train("off", merge(spiky, {"loss": {"by": 3.0}, "train": {"spike": None}})))) == 60
