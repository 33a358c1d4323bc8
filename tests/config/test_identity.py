"""The hash of a run covers what changes results, all of it, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab.config import (
    RunConfig,
    component_files,
    component_names,
    config_from,
    config_hash,
    dump_yaml,
    hashed_values,
    load_config,
    run_name,
)
from gptlab.config.identity import UNHASHED
from gptlab.errors import ConfigError

DATA = {"a": "fingerprint of a", "b": "fingerprint of b"}
START: dict[str, Any] = {
    "data": {"sources": {"a": "data/a", "b": "data/b"}, "mix": {"use": "Weights", "weights": {"a": 1, "b": 2}}},
    "model": {"block": {"attention": {"qk_norm": "RMSNorm"}}},
    "optimizer": "Muon",
    "schedule": "WSD",
}
# What a leaf is changed to: the first that is another value and is valid there.
OTHERS: list[Any] = [
    {"dim": 64},
    *(True, False, 1, 2, 3, 64, 512, 0.5, 0.25, 1024, 16384, [0.5, 0.6], [1]),
    *(
        "skip",
        "float32",
        "none",
        "width",
        "head",
        "flex",
        "sandwich",
        "match_rms_adamw",
        "runs/gpt2-0a1b2c3d@0123456789abcdef",
        "zero",
        "RMSNorm",
        "offline",
        "elsewhere",
        "gptlab.data.batches:BatchStream",
        "GradientNorm",
        "auto",
        "full",
    ),
    ["accuracy"],
    ["mine.py:Mine"],
]


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def slot_kind(path: tuple[str, ...]) -> str:
    return {"qk_norm": "norm"}.get(path[-2], path[-2])


def changed(config: RunConfig, path: tuple[str, ...]) -> RunConfig:
    """The config with the leaf at `path`, and nothing else but what depends on it, set to another valid value."""
    candidates = component_names(slot_kind(path)) if path[-1] == "use" else OTHERS
    if path[-1] == "use" and len(candidates) == 1:
        candidates = ["gptlab.model.position:NoPosition"]  # any class will do: nothing is built
    before = at(config.plain(), path)
    for candidate in candidates:
        if candidate == before and isinstance(candidate, bool) == isinstance(before, bool):
            continue
        values = config.plain()
        parent = at(values, path[:-1])
        if path[-1] == "use":
            parent.clear()
        parent[path[-1]] = candidate
        if path == ("data", "path"):
            values["data"] |= {"sources": None, "mix": None}
        if path[-1] == "use" and candidate == "Schedule":
            parent["stages"] = [{"at": 0, "weights": {"a": 1, "b": 1}}]
        try:
            found = config_from(values)
        except ConfigError:
            continue
        if at(found.plain(), path) != before:
            return found
    raise AssertionError(f"no other valid value is known for {'.'.join(path)}; add one to OTHERS")


def is_hashed(path: tuple[str, ...]) -> bool:
    return not any(path[: len(key)] == key for key in (tuple(dotted.split(".")) for dotted in UNHASHED))


CONFIG = config_from(START)
LEAVES = list(leaves(CONFIG.plain()))


@pytest.mark.parametrize("path", [path for path in LEAVES if is_hashed(path)], ids=".".join)
def test_whatever_changes_results_changes_the_hash(path: tuple[str, ...]) -> None:
    assert config_hash(changed(CONFIG, path), DATA) != config_hash(CONFIG, DATA)


@pytest.mark.parametrize("path", [path for path in LEAVES if not is_hashed(path)], ids=".".join)
def test_whatever_does_not_leaves_it(path: tuple[str, ...]) -> None:
    expected = config_from({**START, "data": {"path": "x"}}) if path == ("data", "path") else CONFIG
    assert config_hash(changed(CONFIG, path), DATA) == config_hash(expected, DATA)


def test_what_stays_outside_is_what_was_agreed() -> None:
    """A new key is hashed unless somebody decides otherwise here."""
    outside = {".".join(path) for path in LEAVES if not is_hashed(path)}
    sections = {name for name in outside if name.split(".")[0] in ("system", "parallel", "checkpoint", "log", "seed")}
    assert outside - sections == {
        "name",
        "eval.every",
        "eval.at_start",
        "eval.also",
        "eval.tasks",
        "eval.limit",
        "data.path",
        "data.sources.a",
        "data.sources.b",
        "data.tokenizer",
        "data.epochs",
    }


def test_the_tokens_count_and_not_where_they_are() -> None:
    one = config_from({"data": {"path": "here/data"}})
    other = config_from({"data": {"path": "/there"}})
    assert config_hash(one, {"data": "x"}) == config_hash(other, {"data": "x"})
    assert config_hash(one, {"data": "x"}) != config_hash(one, {"data": "y"})
    assert config_hash(CONFIG, dict(reversed(DATA.items()))) == config_hash(CONFIG, DATA)
    assert config_hash(CONFIG, {"a": DATA["b"], "b": DATA["a"]}) != config_hash(CONFIG, DATA)


def test_equal_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("train: {tokens: 2M}\nmodel: {block: {mlp: SwiGLU}}\n")
    (tmp_path / "long.yaml").write_text("base: short.yaml\ntrain: {tokens: 2_000_000}\nmodel: {use: GPT, dim: 256}\n")
    configs = [load_config(tmp_path / name) for name in ("short.yaml", "long.yaml")]
    (tmp_path / "full.yaml").write_text(dump_yaml(configs[0].plain()))
    configs.append(load_config(tmp_path / "full.yaml"))
    assert len({config_hash(config, DATA) for config in configs}) == 1


IDEA = "class Mine:\n    def __init__(self, dim, *, width: int = 3): ...\n"


def test_an_idea_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.yaml").write_text("model: {block: {mlp: './idea.py:Mine'}}\n")
    (tmp_path / "one/idea.py").write_text(IDEA)
    shutil.copy(tmp_path / "one/idea.py", tmp_path / "two/idea.py")
    one, two = (load_config(tmp_path / folder / "c.yaml") for folder in ("one", "two"))
    kept = config_hash(one, DATA)
    assert config_hash(two, DATA) == kept
    assert component_files(one) == {str(tmp_path / "one/idea.py"): tmp_path / "one/idea.py"}
    (tmp_path / "two/idea.py").write_text(IDEA + "# another word\n")
    assert config_hash(two, DATA) != kept
    assert config_hash(one, DATA) == kept
    # Renamed, too; but another class of the same file is another component.
    (tmp_path / "one/idea.py").rename(tmp_path / "one/renamed.py")
    (tmp_path / "one/c.yaml").write_text("model: {block: {mlp: './renamed.py:Mine'}}\n")
    assert config_hash(load_config(tmp_path / "one/c.yaml"), DATA) == kept
    (tmp_path / "one/renamed.py").write_text(IDEA + IDEA.replace("Mine", "Other"))
    hashes = set()
    for name in ("Mine", "Other"):
        (tmp_path / "one/c.yaml").write_text(f"model: {{block: {{mlp: './renamed.py:{name}'}}}}\n")
        hashes.add(config_hash(load_config(tmp_path / "one/c.yaml"), DATA))
    assert len(hashes | {kept}) == 3


@pytest.mark.parametrize(
    ("section", "slot"),
    [
        ("model: {{block: '{}:Mine'}}", "block"),
        ("model: {{norm: '{}:Mine'}}", "norm"),
        ("model: {{block: {{attention: {{qk_norm: '{}:Mine'}}}}}}", "norm"),
        ("loss: '{}:Mine'", "loss"),
        ("schedule: '{}:Mine'", "schedule"),
        ("optimizer: '{}:Mine'", "optimizer"),
        ("data: {{sources: {{a: x}}, mix: '{}:Mine'}}", "mix"),
    ],
)
def test_ideas_of_every_slot_are_found(tmp_path: Path, section: str, slot: str) -> None:
    (tmp_path / "idea.py").write_text("class Mine:\n    def __init__(self, *, width: int = 3): ...\n")
    (tmp_path / "c.yaml").write_text(section.format("./idea.py") + "\n")
    config = load_config(tmp_path / "c.yaml")
    assert list(component_files(config).values()) == [tmp_path / "idea.py"]
    kept = config_hash(config, DATA)
    (tmp_path / "idea.py").write_text("class Mine:\n    def __init__(self, *, width: int = 4 - 0 * 0): ...\n"[:-1])
    assert config_hash(config, DATA) != kept


def test_the_name_of_a_run() -> None:
    digest = config_hash(CONFIG, DATA)
    assert len(digest) == 8
    assert run_name(CONFIG, DATA) == f"run-{digest}-seed1"
    mixed = config_from({**START, "name": "n", "seed": {"data": 7}})
    assert run_name(mixed, DATA) == f"n-{digest}-seed1-7-1"


def test_what_is_given_out_may_be_changed_without_changing_the_config() -> None:
    before = json.dumps(CONFIG.plain())
    for values in (hashed_values(CONFIG, DATA), CONFIG.plain()):
        values["train"].clear()
        values["data"]["mix"]["weights"]["a"] = 9
        values["optimizer"]["betas"][0] = 9
    plain = CONFIG.plain()
    plain["data"]["sources"]["a"] = "changed"
    assert json.dumps(CONFIG.plain()) == before


def test_a_key_that_came_later_leaves_older_hashes_as_they_were() -> None:
    """Runs of 0.3 were hashed without `data.stream`."""
    spelled_out = config_from({**START, "data": {**START["data"], "stream": "BatchStream"}})
    assert "stream" not in hashed_values(CONFIG, DATA)["data"]
    assert config_hash(spelled_out, DATA) == config_hash(CONFIG, DATA)


def test_what_a_component_imports_of_its_users_own_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor that stands in a file beside the idea changes the run as much as one that stands in it."""
    source = "from {0} import FACTOR\nclass A:\n    def __init__(self, dim, *, f: int = 2): pass\n"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for file in ("own/__init__.py", "own/more.py", "beside.py"):
        (tmp_path / file).write_text("")
    (tmp_path / "beside.py").write_text("from own.more import FACTOR\n")
    (tmp_path / "idea.py").write_text(source.format("beside"))
    (tmp_path / "own/idea.py").write_text(source.format(".more"))
    seen = set()
    for factor in (1, 2):
        (tmp_path / "own/more.py").write_text(f"FACTOR = {factor}{'  #' * factor}\n")
        for use in ("./idea.py:A", "own/idea.py:A", "own.idea:A"):
            seen.add(config_hash(config_from({"model": {"block": {"mlp": use}}}), DATA))
    assert len(seen) == 4  # of two files, and two factors: by which path one is named does not matter


def test_components_that_are_installed_keep_their_hash(tmp_path: Path) -> None:
    """Of gptlab's own and of installed packages the name says it all; what a file imports of them changes nothing."""
    named = config_from({"optimizer": {"use": "torch.optim.sgd:SGD", "lr": 0.1}})
    assert hashed_values(named, DATA)["optimizer"]["use"] == "torch.optim.sgd:SGD"
    file = tmp_path / "idea.py"
    file.write_text("import torch, os.path\nfrom gptlab.model.mlp import SwiGLU\nclass A(SwiGLU): pass\n")
    values = hashed_values(config_from({"model": {"block": {"mlp": f"{file}:A"}}}), DATA)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert values["model"]["block"]["mlp"]["use"] == f"{digest}:A"
