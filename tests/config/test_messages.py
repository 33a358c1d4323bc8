"""What is wrong with a config, as a key and a sentence: nothing has to read the sentence to know the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest

from gptlab.config import load_config, require_range
from gptlab.config.messages import broken_rule, expected, validated
from gptlab.config.schema import PositiveInteger, Section
from gptlab.config.yamlfile import Origin
from gptlab.errors import ConfigError

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train: {tokns: 3}\n", "train.tokns"),
        ("train: {tokens: many, batch_tokens: many}\n", "train.tokens"),
        ("train: {tokens: 0, batch_tokens: 0}\n", "train.tokens"),
        ("train: {batch_tokens: 1000}\n", "train.batch_tokens"),
        ("system: {micro_batch: 0}\n", "system.micro_batch"),
        ("seed: x\n", "seed"),
        ("data: {path: x, sources: {a: y}}\n", "data"),
        ("optimizer: {betas: [0.9, x]}\n", "optimizer.betas.1"),
        ("optimizer: {betas: [0.9, 0.9, 0.9]}\n", "optimizer.betas"),
        ("model: {block: {mlp: {hiden: 3}}}\n", "model.block.mlp.hiden"),
        ("model: {block: {mlp: SwiGlu}}\n", "model.block.mlp.use"),
        ("train: {tokens: 3, tokens: 4}\n", "train.tokens"),
        ("base: nowhere.yaml\n", "base"),
    ],
)
def test_an_error_carries_the_key_it_is_about(write: Write, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write("wrong.yaml", text))
    assert caught.value.key == key


def test_a_number_out_of_range_carries_its_key() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr: -1 is out of range; make it at least 0") as caught:
        require_range("optimizer", "at least 0", lr=-1.0)
    assert caught.value.key == "optimizer.lr"


# ---------------------------------------------------------------- any model


class Inner(Section):
    size: PositiveInteger = 1


def _even(value: object) -> object:
    if isinstance(value, int) and value % 2:
        raise expected("an even number")
    return value


class Outer(Section):
    inner: Inner | None = None
    even: int = pydantic.Field(2)
    sizes: list[PositiveInteger] | PositiveInteger = 1

    _check_even = pydantic.field_validator("even", mode="before")(_even)

    @pydantic.model_validator(mode="after")
    def _small(self) -> Outer:
        if self.even > 10:
            raise broken_rule("more than ten", key="even")
        if self.even == 8:
            raise ValueError("eight is not liked")
        return self


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"inner": {"sice": 1}}, "inner.sice", "unknown key 'sice'; did you mean 'size'?"),
        ({"innr": {}}, "innr", "unknown key 'innr'; did you mean 'inner'?"),
        ({"bas": {}}, "bas", "unknown key 'bas'; did you mean 'base'?"),
        ({"even": 3}, "even", "3 does not fit: expected an even number"),
        ({"even": 12}, "even", "more than ten"),
        ({"even": 8}, None, "eight is not liked"),
        ({"sizes": [1, 0]}, "sizes.1", "0 does not fit: expected a number greater than 0"),
        ({"sizes": "x"}, "sizes", "'x' does not fit: expected a list or a whole number such as 1000 or 2M"),
        ({"inner": {"size": "x"}, "even": "x"}, "inner.size", "'x' does not fit: expected a whole number"),
    ],
)
def test_a_model_is_validated_in_our_words(values: dict[str, object], key: str | None, message: str) -> None:
    origins = {(name,): Origin("a.yaml", 7) for name in values}
    with pytest.raises(ConfigError) as caught:
        validated(Outer, values, origins, file="a.yaml", also=("base",))
    assert caught.value.key == key
    where = "a.yaml:7: " if key else "a.yaml: "
    assert str(caught.value).startswith(f"{where}{key + ': ' if key else ''}{message}")
