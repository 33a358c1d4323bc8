"""Presets: well-known data sets by name, as YAML files beside this module."""

from __future__ import annotations

import functools
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from gptlab.config.numbers import parse_number
from gptlab.data.sources import Reading
from gptlab.errors import DataError, did_you_mean, option


def _count(value: Any) -> Any:
    return parse_number(value) if isinstance(value, str) else value


class Preset(BaseModel):
    """A data set that `gptlab data prepare NAME` knows how to get. Fields as the arguments of `prepare`.

    Attributes:
        description: one line for people.
        tokenizer: the one to use when none is asked for; None: one has to be named.
        train_tokenizer: "char" makes a character tokenizer of the inputs when none is asked for.
        vocab_size: a byte-pair tokenizer of so many ids is trained on the inputs when none is asked for.
        tokens: how many the whole of it has, about, where that is more than most runs read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    inputs: list[str]
    validation: list[str] | None = None
    validation_fraction: float | None = None
    validation_tokens: Annotated[int | None, BeforeValidator(_count)] = None
    text_column: str = "text"
    separator: str | None = None
    document_start: str | None = None
    tokenizer: str | None = None
    train_tokenizer: Literal["char"] | None = None
    vocab_size: Annotated[int | None, BeforeValidator(_count)] = None
    tokens: Annotated[int | None, BeforeValidator(_count)] = None

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        given = (self.validation, self.validation_fraction, self.validation_tokens)
        if sum(value is not None for value in given) != 1:
            raise ValueError("a preset has exactly one of validation, validation_fraction, validation_tokens")
        return self

    def reading(self, errors: Literal["strict", "replace"] = "strict") -> Reading:
        """How its sources are to be understood."""
        return Reading(self.text_column, self.separator, self.document_start, errors)


@functools.cache
def _files() -> dict[str, Traversable]:
    folder = resources.files("gptlab.data").joinpath("presets")
    found = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def preset_names() -> list[str]:
    """The names of all presets."""
    return list(_files())


def load_preset(name: str) -> Preset:
    """The preset called `name`. Raises DataError where there is none, or its file is no preset."""
    files = _files()
    if name not in files:
        raise DataError(f"no preset {name!r}; {did_you_mean(name, files)} Files are given with {option('input')}.")
    try:
        content = yaml.safe_load(files[name].read_text(encoding="utf-8"))
        if base := content.pop("base", None):  # the same text, otherwise tokenized
            content = {**yaml.safe_load(files[base].read_text(encoding="utf-8")), **content}
        return Preset.model_validate(content)
    except (yaml.YAMLError, ValidationError) as error:
        raise DataError(f"{files[name]}: is no preset ({' '.join(str(error).split())})") from None
