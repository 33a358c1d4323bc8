"""A small untrained model whose weights are wild enough that its answers differ from row to row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.config import RunConfig, config_from, dump_yaml
from gptlab.model import build_model
from gptlab.run import Run, save_weights
from gptlab.tokenizer import Tokenizer, train_bpe

MakeRun = Callable[..., Run]


def wild_model(config: RunConfig, vocab_size: int) -> torch.nn.Module:
    model = build_model(config, vocab_size)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(tokenizer)` → a run with a folder on disk, as training leaves it."""

    def make(
        tokenizer: Tokenizer, *, name: str = "wild", context: int = 128, data: Path | None = None, mlp: str = "GELU"
    ) -> Run:
        config = config_from(
            {
                "name": name,
                "data": {"path": str(data) if data else None},
                "model": {"dim": 48, "layers": 2, "heads": 4, "block": {"mlp": mlp}},
                "train": {"sequence_length": context, "batch_tokens": context, "tokens": 10 * context},
                "system": {"device": "cpu"},
            }
        )
        model = wild_model(config, tokenizer.vocab_size)
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_yaml(config.plain()))
        tokenizer.save(folder / "tokenizer")
        save_weights(model, folder / "model.safetensors")
        (folder / "metrics.jsonl").touch()  # as every run that was trained has it
        return Run(folder, config, model, tokenizer, torch.device("cpu"), torch.float32, config.total_steps)

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Merges across letters, so that where a text is cut matters."""
    names = [(a, b, c, d) for a in ("man", "boy") for b in "xyz" for c in "pq" for d in "uv"]
    text = "".join(f"A {a} {b} is {c}ing on the {d}. " for a, b, c, d in names)
    return train_bpe([text * 3], [280], name="tiny")[0]


def question_lines(count: int = 6) -> list[dict[str, Any]]:
    """Made-up questions in the form whose contexts are ready."""
    return [
        {
            "ind": number,
            "activity_label": "Sitting",
            "ctx": f"A man sits on {number} chairs. he",
            "endings": ["stands up.", "is a chair made of wood.", "sleeps.", f"counts to {number}, twice."],
            "label": number % 4,
        }
        for number in range(count)
    ]


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """A folder of questions."""
    folder = tmp_path / "benchmarks" / "hellaswag"
    folder.mkdir(parents=True)
    lines = "\n".join(json.dumps(row) for row in question_lines())
    (folder / "hellaswag_val.jsonl").write_text(lines + "\n", encoding="utf-8")
    return tmp_path / "benchmarks"
