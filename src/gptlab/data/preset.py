"""Presets: well-known data sets by name, as YAML files beside this module."""

from __future__ import annotations

import dataclasses
import functools
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from gptlab.config.numbers import parse_number
from gptlab.data.sources import Input, Reading
from gptlab.errors import DataError, did_you_mean, option


def _count(value: Any) -> Any:
    return parse_number(value) if isinstance(value, str) else value


_COUNTS = ("max_bytes", "max_documents", "max_tokens", "min_length")


def _inputs(value: Any) -> Any:
    """A list of inputs: names, and tables with the fields of `Input`."""
    found: list[Any] = []
    for each in [value] if isinstance(value, str | dict) else value if isinstance(value, list) else []:
        if not isinstance(each, dict):
            found.append(each)
            continue
        known = [field.name for field in dataclasses.fields(Input)]
        for key in each:
            if key not in known:
                raise ValueError(f"{key}: is nothing that an input has; {did_you_mean(str(key), known)}")
        if not isinstance(each.get("source"), str):
            raise ValueError("an input has a `source`: a file, folder, glob, URL, hf://NAME or text:WORDS")
        values = {key: _count(item) if key in _COUNTS else item for key, item in each.items()}
        without = values.get("without", ())
        found.append(Input(**values | {"without": (without,) if isinstance(without, str) else tuple(without)}))
    return found


_VALIDATIONS = ("validation", "validation_fraction", "validation_tokens")
_TOKENIZERS = ("tokenizer", "train_tokenizer", "vocab_size")


class Preset(BaseModel):
    """A data set that `gptlab data prepare NAME` knows how to get. Fields as the arguments of `prepare`.

    Attributes:
        description: one line for people.
        inputs, validation: names of inputs, or tables with the fields of `Input`.
        ids: the column holds token ids, a document a row or "packed"; `Reading` says more.
        tokenizer: the one to use when none is asked for; None: one has to be named.
        train_tokenizer: "char" makes a character tokenizer of the inputs when none is asked for.
        vocab_size: a byte-pair tokenizer of so many ids is trained on the inputs when none is asked for.
        steps: before tokenizing, as of `prepare`.
        tokens: how many the whole of it has, about, where that is more than most runs read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    description: str = ""
    inputs: Annotated[list[str | Input], BeforeValidator(_inputs)]
    validation: Annotated[list[str | Input] | None, BeforeValidator(lambda v: None if v is None else _inputs(v))] = None
    validation_fraction: float | None = None
    validation_tokens: Annotated[int | None, BeforeValidator(_count)] = None
    text_column: str = "text"
    separator: str | None = None
    document_start: str | None = None
    ids: Literal["documents", "packed"] | None = None
    tokenizer: str | None = None
    train_tokenizer: Literal["char"] | None = None
    vocab_size: Annotated[int | None, BeforeValidator(_count)] = None
    tokens: Annotated[int | None, BeforeValidator(_count)] = None
    steps: list[str | dict[str, Any]] = []

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        for ways in (_VALIDATIONS, _TOKENIZERS):
            if sum(getattr(self, way) is not None for way in ways) > 1:
                raise ValueError(f"a preset has at most one of {', '.join(ways)}")
        return self

    def reading(self, errors: Literal["strict", "replace"] = "strict") -> Reading:
        """How its sources are to be understood."""
        return Reading(self.text_column, self.separator, self.document_start, errors, ids=self.ids)


@functools.cache
def _files() -> dict[str, Traversable]:
    folder = resources.files("gptlab.data").joinpath("presets")
    found = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def preset_names() -> list[str]:
    """The names of all presets."""
    return list(_files())


def is_own(name: str) -> bool:
    """Whether `name` is a preset's YAML file of one's own."""
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def load_preset(name: str) -> Preset:
    """The preset called `name`, or that of a YAML file of one's own.

    Raises DataError where there is none, or its file is no preset.
    """
    files: dict[str, Any] = dict(_files())
    if is_own(name):
        files = {name: Path(name)}
    if name not in files:
        raise DataError(f"no preset {name!r}; {did_you_mean(name, files)} Files are given with {option('input')}.")
    try:
        content = yaml.safe_load(files[name].read_text(encoding="utf-8"))
        if isinstance(content, dict) and (base := content.pop("base", None)) is not None:
            if base not in _files():
                raise DataError(f"{files[name]}: no preset {base!r} to stand on; {did_you_mean(str(base), _files())}")
            below = yaml.safe_load(_files()[base].read_text(encoding="utf-8"))
            for ways in (_TOKENIZERS, _VALIDATIONS):  # one way takes the place of another
                if not content.keys().isdisjoint(ways):
                    below = {key: value for key, value in below.items() if key not in ways}
            content = {**below, **content}
        return Preset.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise DataError(f"{files[name]}: is no preset ({' '.join(str(error).split())})") from None
