"""A small trial of a large config: what shrinks, by how much, and what is left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data

from gptlab.config import load_config, presets
from gptlab.config.scale import scale_overrides, scaled
from gptlab.errors import GptlabError


def test_tokens_batch_and_sequence_shrink_together() -> None:
    whole = load_config("gpt2")
    small = load_config("gpt2", scale_overrides(whole, 0.01, []))
    assert whole.train.sequence_length == 1024
    assert small.train.sequence_length == 256  # the power of two below 1024 · 0.01^¼ = 324
    assert small.train.tokens == pytest.approx(0.01 * whole.train.tokens, rel=0.01)
    assert small.train.batch_tokens == pytest.approx(0.1 * whole.train.batch_tokens, rel=0.01)
    assert small.total_steps == pytest.approx(0.1 * whole.total_steps, rel=0.02)
    assert small.model.plain() == whole.model.plain()
    assert small.optimizer.plain() == whole.optimizer.plain()


@pytest.mark.parametrize("name", [name for name in presets() if name != "finetune-shakespeare"])
@pytest.mark.parametrize("scale", [0.5, 0.003, 1e-6])
def test_every_preset_has_a_small_trial(name: str, scale: float) -> None:
    whole = load_config(name)
    small = load_config(name, scale_overrides(whole, scale, []))
    assert small.train.sequence_length <= whole.train.sequence_length
    assert small.train.batch_tokens <= whole.train.batch_tokens
    assert 1 <= small.total_steps <= whole.total_steps


def test_what_is_set_by_hand_is_not_scaled() -> None:
    given = ["train.batch_tokens=8192"]
    small = load_config("gpt2", scale_overrides(load_config("gpt2", given), 0.01, given))
    assert small.train.batch_tokens == 8192
    assert scaled(load_config("gpt2"), 1.0) == {}


@pytest.mark.parametrize("scale", [0, -1, 2, float("nan")])
def test_another_share_is_refused(scale: float) -> None:
    with pytest.raises(GptlabError, match=r"give a share above 0 and at most 1, such as 0\.01"):
        scaled(load_config("gpt2"), scale)


def test_it_is_an_option_of_train_and_plan(tmp_path: Path) -> None:
    make_data(tmp_path)
    (tmp_path / "config.yaml").write_text(TINY + "data: {path: data}\n")
    done = gptlab("train", "config.yaml", "--scale", "0.25", cwd=tmp_path)
    assert "10 steps of 128 tokens" in done.stderr  # of 20 steps of 256
    assert "10 steps" in gptlab("plan", "config.yaml", "--scale", "0.25", "--no-probe", cwd=tmp_path).stdout
    (run,) = (tmp_path / "runs").glob("config-*")
    refused = gptlab("train", str(run), "--resume", "--scale", "0.5", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "is a run that has its own; name its config instead" in refused.stderr
