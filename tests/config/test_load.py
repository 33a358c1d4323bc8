"""From files and --set to a config: base chains, merging, errors that name the place, and JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlab.config import (
    RunConfig,
    config_from,
    difference,
    dump_yaml,
    json_schema,
    load_config,
)
from gptlab.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "src/gptlab/config/presets"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def refused(source: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- base


def test_a_base_chain_with_relative_paths(write: Write) -> None:
    write("configs/sizes/small.yaml", "model: {dim: 64, layers: 3}\ntrain: {tokens: 1M}\n")
    write("configs/middle.yaml", "base: sizes/small.yaml\nmodel: {layers: 4}\n")
    top = write("experiments/wide/idea.yaml", "base: ../../configs/middle.yaml\nmodel: {heads: 8}\n")
    config = load_config(top)
    assert (config.model.dim, config.model.layers, config.model.heads) == (64, 4, 8)
    assert config.train.tokens == 1_000_000
    assert config.name == "idea"


def test_the_name_is_the_file_s_own_and_is_not_inherited(write: Write) -> None:
    write("base.yaml", "name: grandmother\n")
    assert load_config(write("child.yaml", "base: base.yaml\n")).name == "child"
    assert load_config(write("other.yaml", "base: base.yaml\nname: mine\n")).name == "mine"
    assert load_config(write("_my idea (2).yaml", "base: base.yaml\n")).name == "my-idea-2-"


def test_circles_are_told(write: Write) -> None:
    a = write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: ./a.yaml\n")
    error = refused(a)
    assert "goes in a circle: a.yaml -> b.yaml" in error
    assert "b.yaml" in error
    assert "circle" in refused(write("self.yaml", "base: self.yaml\n"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("base: nowhere.yaml\n", "c.yaml:1: no base config at"),
        ("name: x\nbase: [a.yaml]\n", "c.yaml:2: `base` must be the path of one YAML file"),
    ],
)
def test_a_base_that_is_none(write: Write, text: str, complaint: str) -> None:
    assert complaint in refused(write("c.yaml", text))


def test_changing_use_drops_old_arguments_and_other_keys_merge(write: Write) -> None:
    write(
        "base.yaml",
        "model: {dim: 96, block: {mlp: {use: GELU, hidden: 100, bias: true}, attention: {bias: true}}}\n"
        "optimizer: {use: AdamW, lr: 5e-4, weight_decay: 0.3}\n",
    )
    config = load_config(
        write("diff.yaml", "base: base.yaml\nmodel: {block: {mlp: {use: SwiGLU, ratio: 2}}}\noptimizer: {lr: 1e-4}\n")
    )
    mlp = config.model.block.mlp
    assert (mlp.use, mlp.ratio, mlp.hidden, mlp.bias) == ("SwiGLU", 2.0, None, False)
    assert config.model.dim == 96
    assert config.model.block.attention.bias is True
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-4, 0.3)
    # The same `use` spelled out is no change, and a name alone means the same.
    for mlp_text in ("{use: GELU, ratio: 3}", "GELU"):
        kept = load_config(write("same.yaml", f"base: base.yaml\nmodel: {{block: {{mlp: {mlp_text}}}}}\n"))
        assert kept.model.block.mlp.hidden == 100
    assert load_config(write("muon.yaml", "base: base.yaml\noptimizer: Muon\n")).optimizer.weight_decay == 0.0


def test_a_default_component_counts_as_named(write: Write) -> None:
    """`mlp: {ratio: 3}` over a base that names no MLP speaks of the default one; another `use` drops it again."""
    write("base.yaml", "model: {block: {mlp: {approximate: none}}}\n")
    assert load_config(
        write("a.yaml", "base: base.yaml\nmodel: {block: {mlp: {ratio: 3}}}\n")
    ).model.block.mlp.plain() == {
        "use": "GELU",
        "ratio": 3.0,
        "hidden": None,
        "multiple_of": 1,
        "bias": False,
        "hidden_dropout": 0.0,
        "approximate": "none",
    }
    assert (
        "approximate"
        not in load_config(write("b.yaml", "base: base.yaml\nmodel: {block: {mlp: ReLU2}}\n")).model.block.mlp
    )


def test_null_takes_an_optional_slot_away(write: Write) -> None:
    write("base.yaml", "model: {block: {attention: {qk_norm: RMSNorm}}}\n")
    assert load_config(write("a.yaml", "base: base.yaml\n")).model.block.attention.qk_norm.use == "RMSNorm"
    gone = load_config(write("b.yaml", "base: base.yaml\nmodel: {block: {attention: {qk_norm: null}}}\n"))
    assert gone.model.block.attention.qk_norm is None


# ---------------------------------------------------------------- --set


def test_set_reaches_everything_in_order(write: Write) -> None:
    path = write("c.yaml", "train: {tokens: 1M}\n")
    config = load_config(
        path,
        [
            "train.tokens=2M",
            "train.tokens=3M",
            "model.block.mlp=SwiGLU",
            "model.block.mlp.hidden=7",
            "optimizer={use: Muon, lr: 0.5}",
            "optimizer.betas=[0.8, 0.9]",
            "seed=4",
            "seed.data=5",
            "eval.tokens=null",
            "name=set-here",
            "data.sources={a: b=c}",
            "data.mix=Weights",
            "data.mix.weights={a: 1}",
            "model.block.attention.qk_norm=RMSNorm",
            "model.block.attention.qk_norm.eps=0.1",
        ],
    )
    assert config.train.tokens == 3_000_000
    assert (config.model.block.mlp.use, config.model.block.mlp.hidden) == ("SwiGLU", 7)
    assert (config.optimizer.use, config.optimizer.lr, config.optimizer.betas) == ("Muon", 0.5, (0.8, 0.9))
    assert (config.seed.init, config.seed.data, config.seed.dropout) == (4, 5, 4)
    assert (config.eval.tokens, config.name, config.data.sources) == (None, "set-here", {"a": "b=c"})
    assert config.data.mix is not None
    assert config.data.mix.plain() == {"use": "Weights", "weights": {"a": 1.0}}
    assert config.model.block.attention.qk_norm.eps == 0.1
    assert str(config.seed) == "4-5-4"
    assert str(load_config(path).seed) == "1"


def test_a_slot_by_name_then_by_another_drops_what_was_set_between(write: Write) -> None:
    path = write("c.yaml", "")
    config = load_config(path, ["model.block.mlp=SwiGLU", "model.block.mlp.hidden=7", "model.block.mlp=ReLU2"])
    assert config.model.block.mlp.hidden is None


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("nonsense", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("a..b=3", "write it as section.key=value"),
        ("train.tokns=3", "overrides=['train.tokns=3']: train.tokns: unknown key 'tokns'; did you mean 'tokens'?"),
        ("trian.tokens=3", "overrides=['trian.tokens=3']: trian: unknown key 'trian'; did you mean 'train'?"),
        ("train.tokens=x", "overrides=['train.tokens=x']: train.tokens: 'x' does not fit"),
        ("train.tokens=", "overrides=['train.tokens=']: train.tokens: None does not fit"),
        ("train=3", "overrides=['train=3']: train: 3 does not fit: expected a mapping"),
        (
            "model.block.mlp=GeLUX",
            "overrides=['model.block.mlp=GeLUX']: model.block.mlp.use: mlp: nothing called 'GeLUX'",
        ),
        ("model.dim={", "overrides=['model.dim={']:1: not valid YAML"),
        ("base=x.yaml", "`base` is for files"),
    ],
)
def test_a_wrong_set_is_named(write: Write, override: str, complaint: str) -> None:
    assert complaint in refused(write("c.yaml", "train: {tokens: 1M}\n"), override)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\n\ntrain:\n  tokns: 3\n", "{}:4: train.tokns: unknown key 'tokns'; did you mean 'tokens'?"),
        ("modle: {dim: 3}\n", "{}:1: modle: unknown key 'modle'; did you mean 'model'?"),
        ("model:\n  block:\n    mlp: {hiden: 3}\n", "{}:3: model.block.mlp.hiden: GELU has no argument 'hiden'; did"),
        ("model: {block: {mlp: {use: Swiglu}}}\n", "did you mean 'SwiGLU'?"),
        ("model:\n  dim: wide\n", "{}:2: model.dim: 'wide' does not fit: expected a whole number"),
        ("model: {block: null}\n", "{}:1: model.block: expected a component name"),
        ("loss:\n  chunk: some\n", "{}:2: loss.chunk: 'some' does not fit: expected a whole number"),
        ("optimizer:\n  betas: [0.9,\n    x]\n", "optimizer.betas.1: 'x' does not fit: expected a number"),
        ("schedule: Cosine\ndata: {mix: {use: Weight}}\n", "{}:2: data.mix.use: mix: nothing called 'Weight'"),
        ("data: {sources: {a: x, b: y}}\n", "{}:1: data: several `sources` need `mix`"),
        ("data: {path: x, sources: {a: y}}\n", "{}:1: data: `path` and `sources` exclude each other"),
        ("data: {mix: Weights}\n", "{}:1: data: `mix` needs `sources`"),
        ("train: {batch_tokens: 1000}\n", "is not a multiple of train.sequence_length (256); use 768"),
        ("seed: {dat: 3}\n", "{}:1: seed.dat: unknown key 'dat'; did you mean 'data'?"),
        ("system: {micro_batch: 0}\n", "{}:1: system.micro_batch: 0 does not fit: expected 'auto' or a number"),
        ("name: ../x\n", "{}:1: name: '../x' does not fit: expected text that matches"),
        ("checkpoint: {keep: 0}\n", "{}:1: checkpoint.keep: 0 does not fit: expected a number greater than 0"),
        ("log: {wandb: maybe}\n", "{}:1: log.wandb: 'maybe' does not fit: expected 'off', 'offline' or 'online'"),
    ],
)
def test_errors_name_file_line_and_the_nearest_valid_name(write: Write, text: str, expected: str) -> None:
    path = write("wrong.yaml", text)
    assert expected.format(path) in refused(path)


def test_an_error_in_the_base_names_the_base(write: Write) -> None:
    base = write("base.yaml", "train:\n  tokens: many\n")
    assert f"{base}:2: train.tokens" in refused(write("top.yaml", "base: base.yaml\n"))
    good = write("base.yaml", "model:\n  heads: 4\n")
    top = write("top.yaml", "base: base.yaml\nname: t\nmodel:\n  heads: few\n")
    assert str(good) not in (error := refused(top))
    assert f"{top}:4: model.heads" in error


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_survive_being_written_out(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    (tmp_path / "again.yaml").write_text(dump_yaml(config.plain()))
    assert load_config(tmp_path / "again.yaml") == config


def test_a_run_folder_is_a_config(write: Write, tmp_path: Path) -> None:
    write("run/config.yaml", "name: ran\ntrain: {tokens: 7K}\n")
    config = load_config(tmp_path / "run")
    assert (config.name, config.train.tokens) == ("ran", 7000)


def test_a_config_is_frozen() -> None:
    config = config_from({})
    with pytest.raises(Exception, match="frozen"):
        config.train.tokens = 3  # type: ignore[misc]


def test_config_from_takes_overrides_and_refuses_like_a_file() -> None:
    config = config_from({"model": {"block": {"mlp": {"hidden": 5}}}}, ["model.block.mlp=SwiGLU", "seed=7"])
    assert (config.model.block.mlp.hidden, config.seed.init) == (None, 7)
    with pytest.raises(ConfigError, match="did you mean 'tokens'"):
        config_from({"train": {"tokn": 3}})


def test_total_steps_round_up() -> None:
    config = config_from({"train": {"tokens": 1001, "batch_tokens": 512, "sequence_length": 128}})
    assert (config.total_steps, config.sequences_per_step) == (2, 4)


def test_difference_takes_a_changed_component_as_one() -> None:
    a = config_from({})
    b = config_from({"model": {"block": {"mlp": "SwiGLU"}, "dim": 512}, "data": {"path": "x"}})
    found = {key: (old, new) for key, old, new in difference(a.plain(), b.plain())}
    assert set(found) == {"model.block.mlp", "model.dim", "data.path"}
    assert found["model.dim"] == (256, 512)
    assert found["data.path"] == (None, "x")
    assert found["model.block.mlp"][1]["use"] == "SwiGLU"
    assert difference({"a": 1, "x": 2}, {"b": 1, "x": 2}) == [("a", 1, None), ("b", None, 1)]


# ---------------------------------------------------------------- JSON Schema

ANNOTATIONS = {"$schema", "$defs", "title", "description", "default"}


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether `value` is valid under the keywords of JSON Schema 2020-12 that gptlab's schema uses.

    A keyword that this does not know is an error, so that nothing passes by being overlooked.
    """

    def is_type(name: str) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {
            "object": isinstance(value, dict),
            "array": isinstance(value, list),
            "string": isinstance(value, str),
            "boolean": isinstance(value, bool),
            "null": value is None,
            "number": number,
            "integer": number and float(value).is_integer(),
        }[name]

    def holds(keyword: str, rule: Any) -> bool:
        number = is_type("number")
        match keyword:
            case "$ref":
                return fits(value, root["$defs"][rule.removeprefix("#/$defs/")], root)
            case "type":
                return any(is_type(name) for name in ([rule] if isinstance(rule, str) else rule))
            case "anyOf":
                return any(fits(value, option, root) for option in rule)
            case "enum":
                return value in rule
            case "const":
                return bool(value == rule)
            case "pattern":
                return not isinstance(value, str) or re.search(rule, value) is not None
            case "multipleOf":
                return not number or float(value / rule).is_integer()
            case "minimum":
                return not number or value >= rule
            case "exclusiveMinimum":
                return not number or value > rule
            case "required":
                return not isinstance(value, dict) or set(rule) <= set(value)
            case "properties":
                return not isinstance(value, dict) or all(
                    fits(value[key], part, root) for key, part in rule.items() if key in value
                )
            case "additionalProperties":
                known = schema.get("properties", {})
                extra = {k: v for k, v in value.items() if k not in known} if isinstance(value, dict) else {}
                return not extra if rule is False else rule is True or all(fits(v, rule, root) for v in extra.values())
            case "items":
                rest = value[len(schema.get("prefixItems", [])) :] if isinstance(value, list) else []
                return not rest if rule is False else all(fits(item, rule, root) for item in rest)
            case "prefixItems":
                return not isinstance(value, list) or all(
                    fits(item, part, root) for item, part in zip(value, rule, strict=False)
                )
            case "minItems":
                return not isinstance(value, list) or len(value) >= rule
            case "maxItems":
                return not isinstance(value, list) or len(value) <= rule
            case _:
                raise AssertionError(f"the schema uses {keyword!r}, which this test does not know")

    return all(holds(keyword, rule) for keyword, rule in schema.items() if keyword not in ANNOTATIONS)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(json_schema()))
    return loaded


def raw(path: Path) -> Any:
    """The file as an editor's YAML parser sees it, numbers such as 6e-4 included."""
    from gptlab.config.yamlfile import read_yaml

    return read_yaml(path)[0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_config(schema: dict[str, Any], path: Path) -> None:
    assert fits(raw(path), schema, schema)
    assert fits(yaml.safe_load(path.read_text()), schema, schema)  # as a reader of YAML 1.1 sees it
    assert fits(json.loads(json.dumps(load_config(path).plain())), schema, schema)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({}, {"modle": {}}),
        ({"train": {"tokens": "2M"}}, {"train": {"tokns": 3}}),
        ({"train": {"tokens": 5}}, {"train": {"tokens": "many"}}),
        ({"model": {"dim": 64}}, {"model": {"dmi": 64}}),
        ({"model": {"block": {"mlp": "ReLU2"}}}, {"model": {"block": {"mlp": "ReLU3"}}}),
        ({"model": {"block": {"mlp": {"use": "SwiGLU", "ratio": 2}}}}, {"model": {"block": {"mlp": {"rtio": 2}}}}),
        ({"model": {"block": {"mlp": {"use": "./i.py:M", "own": 2}}}}, {"optimizer": {"use": "AdamW", "momentum": 1}}),
        ({"seed": 3, "base": "x.yaml"}, {"seed": {"dat": 3}}),
        ({"train": {"dtype": "float32"}}, {"train": {"dtype": "float8"}}),
        ({"data": {"sources": {"a": "x"}, "mix": "Weights"}}, {"data": {"sources": {"a": 3}}}),
        ({"checkpoint": {"best": True}}, {"checkpoint": {"best": "maybe"}}),
    ],
)
def test_the_schema_tells_good_from_bad(schema: dict[str, Any], good: Any, bad: Any) -> None:
    assert fits(good, schema, schema)
    assert not fits(bad, schema, schema)


def test_the_schema_describes_every_field(schema: dict[str, Any]) -> None:
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    for name, section in sections.items():
        for field in getattr(section, "model_fields", {}):
            definition = schema["$defs"][section.__name__]  # type: ignore[union-attr]
            definition = definition.get("anyOf", [{}, definition])[1]
            assert field in definition["properties"], f"{name}.{field}"
