"""Configs by name: from any folder, as a base, copied; and what stands beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import gptlab

from gptlab.config import config_hash, find_config, load_config, presets
from gptlab.config.preset import description, reference
from gptlab.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_is_a_config_from_any_folder() -> None:
    config = load_config("books-mini", ["train.tokens=40k"])
    assert (config.name, config.model.dim, config.train.tokens) == ("books-mini", 96, 40_000)
    assert load_config("gptlab:books-mini").model == config.model


def test_a_file_of_ones_own_is_never_passed_over(elsewhere: Path) -> None:
    Path("gpt2").mkdir()  # a folder of that name which is no run
    assert find_config("gpt2") == presets()["gpt2"]
    Path("gpt2/config.yaml").write_text("name: mine\nmodel: {dim: 32}\n")
    assert load_config("gpt2").name == "mine"
    assert load_config("gptlab:gpt2").model.dim == 768
    Path("demo").write_text("model: {dim: 48}\n")
    assert load_config("demo").model.dim == 48


def test_a_base_by_name_is_the_same_run_as_a_copy(elsewhere: Path) -> None:
    Path("mine.yaml").write_text("base: gptlab:gptlab-s\ntrain: {tokens: 1M}\n")
    shutil.copy(presets()["gptlab-s"], "theirs.yaml")
    Path("theirs.yaml").write_text(
        Path("theirs.yaml").read_text().replace("base: ", "base: gptlab:").replace(".yaml", "")
    )
    theirs = load_config("theirs.yaml", ["train.tokens=1M", "name=mine"])
    assert load_config("mine.yaml") == theirs
    assert config_hash(load_config("mine.yaml"), {}) == config_hash(theirs, {})


def test_what_there_is_not_says_what_there_is() -> None:
    for name, message in (
        ("gpt-2", "no config file at gpt-2; did you mean 'gpt2'?"),
        ("configs/gpt2.yaml", "the config that comes with gptlab goes by its name: gpt2"),
        ("gptlab:gtp2", "no config gptlab:gtp2; did you mean 'gpt2'?"),
        ("mine/none.yaml", "no config file at mine/none.yaml; check the path, or take one of `gptlab config list`"),
    ):
        with pytest.raises(ConfigError) as found:
            load_config(name)
        assert message in str(found.value)
    Path("mine.yaml").write_text("base: gptlab:none\n")
    with pytest.raises(ConfigError, match=r"^mine.yaml:1: no config gptlab:none"):
        load_config("mine.yaml")


def test_files_refer_to_a_preset_by_name_and_to_others_by_the_way(elsewhere: Path) -> None:
    Path("base.yaml").write_text("model: {dim: 32}\n")
    assert reference("demo", elsewhere / "a") == "gptlab:demo"
    assert reference("base.yaml", Path("a/b")) == "../../base.yaml"


@pytest.mark.parametrize("name", sorted(presets()))
def test_each_says_what_it_is(name: str) -> None:
    assert 20 < len(description(name)) < 120


def test_list_and_copy(elsewhere: Path) -> None:
    shown = gptlab("config", "list", cwd=elsewhere)
    rows = {line.split()[0]: line for line in shown.stdout.splitlines()[1:]}
    assert set(rows) == set(presets())
    assert "85.06M" in rows["gpt2"]
    assert "data/openwebtext" in rows["gpt2"]
    gptlab("config", "copy", "gptlab-s", cwd=elsewhere)
    assert load_config("gptlab-s.yaml") == load_config("gptlab:gptlab-s")
    for name, message in (("gptlab-s", "gptlab-s.yaml exists already"), ("nope", "no config gptlab:nope")):
        done = gptlab("config", "copy", name, cwd=elsewhere, check=False)
        assert (done.returncode, message in done.stderr) == (2, True)
    assert [path.name for path in elsewhere.iterdir()] == ["gptlab-s.yaml"]
