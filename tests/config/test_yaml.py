"""YAML as people write it: numbers, words, mistakes with the line they stand on, and the way back to text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gptlab.config import config_from, dump_yaml, format_count, parse_number
from gptlab.config.yamlfile import parse_yaml, read_yaml
from gptlab.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6e-4", 6e-4),
        ("1e9", 1e9),
        ("1_000", 1000),
        ("0123", 123),
        (".5", 0.5),
        ("-1.", -1.0),
        ("+7", 7),
        ("-.inf", -math.inf),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("2M", "2M"),
        ("0x10", "0x10"),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ("a: [1, {b: c}]", {"a": [1, {"b": "c"}]}),
        ("", {}),
    ],
)
def test_scalars_resolve_as_yaml_1_2_says(text: str, expected: Any) -> None:
    value, _ = parse_yaml(text, "x.yaml")
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("100_000", 100_000),
        ("2M", 2_000_000),
        ("1.5B", 1_500_000_000),
        ("1.5g", 1_500_000_000),
        ("3T", 3 * 10**12),
        ("1e9", 10**9),
        ("6e-4", 6e-4),
        (".5K", 500),
        ("-2k", -2000),
        ("1.5", 1.5),
        (" 7 ", 7),
    ],
)
def test_parse_number(text: str, expected: float) -> None:
    value = parse_number(text)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("text", ["", "M", "2MM", "1,000", "two", "0x10", "1e", "2 M", "--2", "nan", "inf"])
def test_parse_number_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        parse_number(text)


@given(st.integers(-(10**15), 10**15))
def test_parse_number_reads_every_integer(number: int) -> None:
    assert parse_number(str(number)) == number
    assert parse_number(f"{number:_}") == number


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (999, "999"), (1200, "1.2K"), (124_439_808, "124.4M")])
def test_format_count(value: float, shown: str) -> None:
    assert format_count(value) == shown
    assert format_count(1.5e9) == "1.5B"


@pytest.mark.parametrize("text", ["2M", "2_000_000", "2e6", "2.0e6", "'2M'", "2000K"])
def test_a_whole_number_has_many_spellings(text: str) -> None:
    tokens, _ = parse_yaml(text, "x")
    config = config_from({"train": {"tokens": tokens}})
    assert config.train.tokens == 2_000_000
    assert type(config.train.tokens) is int


@pytest.mark.parametrize(("text", "expected"), [("6e-4", 6e-4), ("1", 1.0), ("'1e-3'", 1e-3), ("2K", 2000.0)])
def test_a_fraction_has_many_spellings(text: str, expected: float) -> None:
    value, _ = parse_yaml(text, "x")
    config = config_from({"optimizer": {"lr": value}, "train": {"gradient_clip": value}})
    assert config.optimizer.lr == config.train.gradient_clip == expected
    assert type(config.optimizer.lr) is type(config.train.gradient_clip) is float


@pytest.mark.parametrize("word", ["no", "off", "false", "No"])
def test_no_is_text_where_text_is_asked_for_and_false_where_a_boolean_is(word: str) -> None:
    value, _ = parse_yaml(word, "x")
    assert config_from({"checkpoint": {"best": value}}).checkpoint.best is False
    assert config_from({"model": {"tied": value}}).model.tied is False
    if isinstance(value, str):
        assert config_from({"name": value}).name == word


@pytest.mark.parametrize(
    ("section", "key", "value", "wanted"),
    [
        ("train", "tokens", 1.5, "a whole number"),
        ("train", "tokens", True, "a whole number"),
        ("train", "tokens", "1e400", "a whole number"),
        ("train", "tokens", 0, "a number greater than 0"),
        ("train", "gradient_clip", math.nan, "a finite number"),
        ("train", "gradient_clip", 0, "a number greater than 0"),
        ("train", "spike", -1.0, "a number greater than 0"),
        ("optimizer", "lr", math.inf, "a finite number"),
        ("optimizer", "lr", False, "not true or false"),
        ("checkpoint", "best", 1, "true or false"),
        ("checkpoint", "best", "maybe", "true or false"),
        ("data", "path", 7, "text (put it in quotes)"),
        ("data", "sources", ["a"], "a mapping"),
        ("optimizer", "betas", 0.9, "a list"),
    ],
)
def test_values_of_another_type_are_refused(section: str, key: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from({section: {key: value}})
    assert str(caught.value).startswith(f"{section}.{key}: ")
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: key 'a' is given twice"),
        ("a:\n  b: {c: 1,\n   c: 2}\n", "x.yaml:3: key 'c' is given twice"),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "x.yaml:1: not valid YAML: could not determine a constructor",
        ),
        ("a: 1\nb: !!python/name:os.system ''\n", "x.yaml:2: not valid YAML"),
        ("a: !mine 3\n", "x.yaml:1: not valid YAML"),
        ("a: [1\nb: 2\n", "x.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: not valid YAML"),
        ("a: b\x00\n", "x.yaml: not valid YAML"),
        ("a: {1: 2}\n", "x.yaml:1: a key must be text, found '1'"),
        ("b: 1\ntrue: 2\n", "x.yaml:2: a key must be text, found 'true'"),
        ("? [a]\n: 1\n", "x.yaml:1: a key must be text, found seq"),
        ("a: &it\n  b: *it\n", "aliases that contain themselves"),
        ("a: &it [*it]\n", "aliases that contain themselves"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefg", "bcdefgh", strict=True)),
            "aliases that contain themselves or each other",
        ),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_is_fine() -> None:
    assert parse_yaml("a: &it {b: 1}\nc: *it\n", "x")[0] == {"a": {"b": 1}, "c": {"b": 1}}


def test_origins_tell_the_line_of_every_key() -> None:
    _, origins = parse_yaml("a: 1\nb:\n  c: [x,\n      {d: 2}]\n", "x.yaml")
    lines = {".".join(path): str(origin) for path, origin in origins.items()}
    assert lines["a"] == "x.yaml:1"
    assert lines["b.c"] == "x.yaml:3"
    assert lines["b.c.1.d"] == "x.yaml:4"


def test_files_that_are_no_config(tmp_path: Path) -> None:
    for content, complaint in ((b"- a\n- b\n", "a config is a mapping"), (b"\xff\xfea", "not UTF-8 text (byte 0)")):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_yaml(tmp_path / "x.yaml")
        assert complaint in str(caught.value)
        assert "x.yaml" in str(caught.value)
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="no config file at"):
        read_yaml(tmp_path / "none.yaml")


NASTY = ["no", "1e5", "6e-4", "1_000", "0x10", "12:30", "~", "", " a ", "a: b", "#", "- x", "null", "2024-01-01", "é\n"]
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=12) | st.sampled_from(NASTY)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PRINTABLE
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(PRINTABLE, VALUES, max_size=4))
def test_dump_yaml_reads_back_unchanged(value: dict[str, Any]) -> None:
    again, _ = parse_yaml(dump_yaml(value), "x")
    assert again == value
    assert repr(again) == repr(value)  # 1 is not 1.0, and keys keep their order


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_dumped_numbers_are_numbers_to_yaml_1_1_too(number: float) -> None:
    assert yaml.safe_load(dump_yaml({"lr": number}))["lr"] == number
