"""Models of transformers with wild random weights: a wrong detail shows in the logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import MODELS

from gptlab.cli import main
from gptlab.tokenizer import load_tokenizer

WildModel = Callable[..., torch.nn.Module]


@pytest.fixture(scope="session")
def wild_model() -> WildModel:
    """A function: name of MODELS and changes of its config → a model with large random weights, biases and gains."""
    transformers = pytest.importorskip("transformers")

    def make(name: str, *, vocab_size: int = 257, **changes: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        family, sizes = MODELS[name]
        options = {**sizes, "vocab_size": vocab_size, "initializer_range": 0.2, **changes}
        kind = f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
        made = getattr(transformers, kind)
        model = made(made.config_class(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    return make


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the byte tokenizer in `bytes/`."""
    monkeypatch.chdir(tmp_path)
    load_tokenizer("byte").save(tmp_path / "bytes")
    return tmp_path


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with one line and exit code 2, and leave no file; return what it printed."""

    def files() -> list[Path]:
        return sorted(path for path in Path.cwd().rglob("*") if path.is_file())

    def attempt(*arguments: str) -> str:
        before = files()
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        printed = capsys.readouterr().err
        lines = printed.strip().splitlines()
        assert exit_info.value.code == 2, printed
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert "Traceback" not in printed
        assert files() == before
        return printed

    return attempt
