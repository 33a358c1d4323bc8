"""Two small runs, and a server of both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving.place import TEMPLATE, Place, make_run, running

from gptlab.run import Run
from gptlab.tokenizer import byte_tokenizer


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A base model, and one whose tokenizer knows conversations."""
    folder = tmp_path_factory.mktemp("runs")
    talks = byte_tokenizer()
    talks.config["chat_template"] = TEMPLATE
    return [make_run(folder / "base", byte_tokenizer()), make_run(folder / "talks", talks, seed=7)]


@pytest.fixture(scope="session")
def place(runs: list[Run]) -> Iterator[Place]:
    """The server that most tests ask."""
    with running(runs) as here:
        yield here
