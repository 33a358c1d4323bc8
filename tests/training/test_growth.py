"""Batches that grow: the same tokens in the same order, in fewer steps."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, gptlab, make_data, only_run, python_of, rows

from gptlab.config import build, config_from
from gptlab.config.load import merge
from gptlab.errors import ConfigError, GptlabError

Train = Callable[..., Path]
FLAT = {"schedule": {"use": "Constant", "warmup": 0.0}}
FOLLOWS = {"use": "GradientNorm", "every": 1, "rate": 0.5, "most": 3, "scale": 0.008, "power": 0.0}


def grown(value: Any, **changes: Any) -> dict[str, Any]:
    return merge({**FLAT, "train": {"growth": value}}, changes)


def steps(run: Path) -> list[tuple[int, int]]:
    """(batches that are done, batches taken) of each step."""
    return [(row["step"], row["batches"]) for row in rows(run) if "batches" in row]


# ---------------------------------------------------------------- what a step is made of


def test_one_batch_a_step_is_no_growth(train: Train) -> None:
    none, one = train("none", FLAT), train("one", grown({"use": "Ramp", "tokens": 2560, "most": 1}))
    assert (one / "model.safetensors").read_bytes() == (none / "model.safetensors").read_bytes()
    assert [{k: v for k, v in row.items() if k != "batches"} for row in rows(one)] == rows(none)
    assert {count for _, count in steps(one)} == {1}


def test_two_batches_a_step_are_a_batch_twice_as_large(train: Train) -> None:
    """The same tokens in the same order, and the mean over all of them."""
    two = train("two", grown({"use": "Fixed", "batches": 2}))
    twice = train("twice", merge(FLAT, {"train": {"batch_tokens": 512}}))
    assert (two / "model.safetensors").read_bytes() == (twice / "model.safetensors").read_bytes()
    mine, other = ([row for row in rows(run) if "train/loss" in row] for run in (two, twice))
    for key in ("tokens", "train/loss", "gradient_norm"):
        assert [row[key] for row in mine] == [row[key] for row in other]
    assert steps(two) == [(2, 2), (4, 2), (6, 2), (8, 2), (10, 2)]


def test_the_last_step_ends_where_the_run_does(train: Train) -> None:
    run = train("run", grown({"use": "Fixed", "batches": 4}))
    assert steps(run) == [(4, 4), (8, 4), (10, 2)]
    assert [row["tokens"] for row in rows(run)] == [1024, 2048, 2560, 2560]
    facts = json.loads((run / "facts.json").read_text())
    assert (facts["tokens"], facts["steps"]) == (2560, 10)


def test_the_rate_follows_the_tokens(train: Train) -> None:
    ramp = grown({"use": "Ramp", "tokens": 1024, "most": 3}, schedule={"use": "Linear", "warmup": 0.2, "final": 0.0})
    run = train("run", ramp)
    assert steps(run) == [(1, 1), (2, 1), (4, 2), (7, 3), (10, 3)]
    found = [round(row["lr_multiplier"], 3) for row in rows(run) if "lr_multiplier" in row]
    assert found == [0.5, 1.0, 1.0, 0.75, 0.375]  # at batches 0, 1, 2, 4, 7 of 10


def test_gpt3_s_ramp() -> None:
    """From 32k tokens to 3.2M over the first 10 billion."""
    ramp = build("growth", {"use": "Ramp", "tokens": "10B", "most": 100}, batch_tokens=32_000, parameters=1)
    assert ramp(0) == 1
    assert ramp(round(5e9 / 32_000)) == 50
    assert [ramp(step) for step in (round(10e9 / 32_000) - 1, round(10e9 / 32_000), 10**9)] == [99, 100, 100]


def test_what_is_due_every_so_often_comes_at_the_next_end_of_a_step(train: Train) -> None:
    run = train(
        "run",
        grown(
            {"use": "Fixed", "batches": 3},
            eval={"every": 2},
            checkpoint={"every": 5, "keep": 9},
            log={"every": 4, "samples": {"every": 4, "tokens": 2}},
        ),
    )
    assert [row["step"] for row in rows(run) if "val/loss" in row] == [3, 6, 9, 10]
    assert [row["step"] for row in rows(run) if "train/loss" in row] == [6, 9, 10]
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[:2] == ["step-00000006", "step-00000010"]
    drawn = [json.loads(line)["step"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert drawn == [6, 9, 10]


# ---------------------------------------------------------------- by the gradient's norm


def follower(**options: Any) -> Any:
    return build("growth", {"use": "GradientNorm", **options}, batch_tokens=1, parameters=46_009_736)


def test_hlb_gpt_s_numbers() -> None:
    """Of 46 million parameters its main.py expects a norm of 2.7 at first and of 0.19 after a thousand steps."""
    growth = follower()
    assert growth.expected(1) == pytest.approx(2.718, rel=1e-3)
    assert growth.expected(1000) == pytest.approx(growth.expected(1) * 1000**-0.3814, rel=1e-3)


def test_batches_follow_the_norm() -> None:
    growth = follower(every=1, rate=0.1, most=8, power=0.0)
    high, expected = torch.tensor(3 * growth.expected(1)), torch.tensor(growth.expected(1))
    growth.observe(expected)
    assert growth.state["batches"] == pytest.approx(1.0)
    growth.observe(high)
    assert growth.state["batches"] == pytest.approx(1.2)  # 1 + 0.1 (3 − 1)
    growth.observe(torch.tensor(float("inf")))
    assert growth.state["batches"] == pytest.approx(1.2)
    taken = [growth(step) for step in range(5000)]
    assert set(taken) == {1, 2}
    assert sum(taken) / len(taken) == pytest.approx(1.2, abs=0.02)
    for _ in range(50):
        growth.observe(high)
    assert growth.state["batches"] == 8
    assert {growth(step) for step in range(100)} == {8}
    for _ in range(50):
        growth.observe(expected * 0)
    assert growth.state["batches"] == 1


def test_the_norm_is_read_at_every_so_many_steps() -> None:
    class Read(torch.Tensor):
        count = 0

        def __float__(self) -> float:
            Read.count += 1
            return 9.0

    growth = follower(every=4)
    for _ in range(9):
        growth.observe(torch.tensor(9.0).as_subclass(Read))
    assert Read.count == 2


def test_it_grows_while_training_and_resumes_bit_for_bit(train: Train, tmp_path: Path) -> None:
    follows = grown(FOLLOWS, checkpoint={"every": 3, "keep": 9}, model={"dropout": 0.1}, train={"tokens": 5120})
    whole = train("whole", follows)
    taken = [count for _, count in steps(whole)]
    assert taken[0] == 1
    assert {2, 3} <= set(taken)
    assert sum(taken) == 20
    part = train("part", follows)
    (part / "model.safetensors").unlink()
    first, *later = sorted((part / "checkpoints").iterdir())
    for path in later:
        shutil.rmtree(path)
    train("part", follows, resume=True)
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert rows(part) == rows(whole)
    state = json.loads((first / "state.json").read_text())["growth"]
    assert state["batches"] == taken[state["state"]["steps"] - 1]


def test_a_user_s_growth(train: Train, tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(
        "class Odd:\n    slot = 'growth'\n\n    def __call__(self, step: int) -> int:\n        return 1 + step % 3\n"
    )
    run = train("run", grown(f"{tmp_path}/idea.py:Odd"))
    assert steps(run) == [(1, 1), (3, 2), (4, 1), (6, 2), (7, 1), (9, 2), (10, 1)]


# ---------------------------------------------------------------- refusals, plans, processes


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        ({"use": "Fixed", "batches": 0}, "train.growth.batches: 0 is out of range; make it at least 1"),
        ({"use": "Ramp", "tokens": 10, "most": 0}, "train.growth.most: 0 is out of range"),
        ({"use": "Ramp", "most": 2}, "train.growth.tokens"),
        ({"use": "GradientNorm", "rate": 0.0}, "train.growth.rate: 0 is out of range; make it above 0"),
        ({"use": "Rampp"}, "did you mean 'Ramp'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(train: Train, growth: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train("run", grown(growth))
    assert not (tmp_path / "run").exists()


def test_studies_that_go_by_steps_refuse_it() -> None:
    from gptlab.lab.studies.lr_find import range_test
    from gptlab.lab.studies.sweep.space import require_equal_lengths

    config = config_from(grown({"use": "Fixed", "batches": 2}))
    with pytest.raises(ConfigError, match=r"train.growth: a range test .*train.growth=null"):
        range_test(config, low=1e-3, high=10.0, steps=100)
    with pytest.raises(GptlabError, match=r"with train.growth a run validates where its steps end"):
        require_equal_lengths(config, {"optimizer.lr": [1e-3, 2e-3]})


def test_the_plan_says_what_is_known() -> None:
    from gptlab.planning.footprint import describe_growth

    def said(growth: Any) -> str:
        sizes = {"tokens": "100k", "batch_tokens": 1000, "sequence_length": 100}
        return describe_growth(config_from(grown(growth, train=sizes)), 10_000)

    assert said(None) == ""
    assert said({"use": "Fixed", "batches": 3}) == "in 34 steps"
    assert said({"use": "GradientNorm"}) == "as many a step as train.growth decides while it trains"


@pytest.mark.slow
def test_processes_agree(tmp_path: Path) -> None:
    """Two processes take the steps that one takes."""
    data = make_data(tmp_path / "source")
    settings = ["name=grown", "data.path=data", "system.micro_batch=2", f"train.growth={json.dumps(FOLLOWS)}"]
    settings += ["optimizer.weight_decay=4.0", "optimizer.perplexity_power=1.0"]
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        (folder / "data").symlink_to(data)
        (folder / "config.yaml").write_text(TINY)
        arguments = ["train", "config.yaml", *(part for each in settings for part in ("--set", each))]
        if processes == 1:
            gptlab(*arguments, cwd=folder)
        else:
            launcher = python_of(2)
            command = [*launcher, "-m", "gptlab", *arguments]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
        found.append(only_run(folder))
    one, two = found
    assert steps(one) == steps(two)
    assert len({count for _, count in steps(one)}) > 1
    last = [rows(run)[-1]["val/loss"] for run in found]
    assert last[0] == pytest.approx(last[1], abs=1e-4)


# ---------------------------------------------------------------- sequences that grow

SHORT_FIRST = {"data": {"stream": {"use": "GrowingSequences", "start": 8, "every": 600}}}


def test_sequences_grow_in_micro_batches_of_as_many_tokens(train: Train) -> None:
    one = train("one", merge(FLAT, SHORT_FIRST))
    cut = train("cut", merge(merge(FLAT, SHORT_FIRST), {"system": {"micro_batch": 2}}))
    plain = train("plain", FLAT)
    losses = [[row["train/loss"] for row in rows(run) if "train/loss" in row] for run in (one, cut, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][0] != pytest.approx(losses[2][0], abs=1e-5)  # the same tokens, with less to look back on
    assert one.name != plain.name
    assert [row["tokens"] for row in rows(one)] == [row["tokens"] for row in rows(plain)]


def test_sequences_that_grow_resume_bit_for_bit(train: Train) -> None:
    whole = train("whole", merge(merge(FLAT, SHORT_FIRST), {"train": {"tokens": 3072}}))
    run = train("run", merge(FLAT, SHORT_FIRST))
    train("run", merge(merge(FLAT, SHORT_FIRST), {"train": {"tokens": 3072}}), resume=True)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
