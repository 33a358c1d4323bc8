"""A run of ten steps in this process, on the smallest of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import TINY, make_data

import gptlab
from gptlab.config import config_from
from gptlab.config.load import merge

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    make_data(folder / "a")
    make_data(folder / "b", seed=1)
    return folder


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Train:
    """`train("name", {"train": {…}}, resume=…)` → the run's folder; ten steps unless it says otherwise."""

    def run(name: str, changes: dict[str, Any] | None = None, *, resume: bool = False, **options: Any) -> Path:
        start = yaml.safe_load(TINY.replace("1e-3", "0.001")) | {"data": {"path": str(data / "a/data")}}
        start["train"]["tokens"] = 2560
        start["system"]["micro_batch"] = 8
        config = config_from(merge(start, changes or {}))
        gptlab.train(config, folder=tmp_path / name, resume=resume, **options)
        return tmp_path / name

    return run
