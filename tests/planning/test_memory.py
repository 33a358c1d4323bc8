"""What a machine's memory does not hold is refused with the number, before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.config import config_from, load_config
from gptlab.errors import ConfigError
from gptlab.model import build_model
from gptlab.planning import footprint as footprints
from gptlab.planning.footprint import _MARGIN, _rough_bytes, footprint, require_memory

CPU = torch.device("cpu")
V = 300
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "src/gptlab/config/presets").glob("*.yaml"))


def refusal(monkeypatch: pytest.MonkeyPatch, free: int, *, rows: Any = "auto", **changes: Any) -> str | None:
    values: dict[str, Any] = {
        "model": {"dim": 256, "layers": 4, "heads": 4} | changes.pop("model", {}),
        "train": {"batch_tokens": 2**18, "sequence_length": 1024, "dtype": "float32"} | changes,
        "system": {"micro_batch": rows},
    }
    monkeypatch.setattr(footprints, "available_memory", lambda _: free)
    try:
        require_memory(config_from(values), V, CPU)
    except ConfigError as error:
        return str(error)
    return None


def test_the_bytes_that_are_needed_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_from(
        {
            "model": {"dim": 256, "layers": 4, "heads": 4},
            "train": {"batch_tokens": 2**18, "sequence_length": 1024, "dtype": "float32"},
        }
    )
    for rows in (1, 4):
        needed = footprint(config, V, rows, dtype=torch.float32).total
        assert refusal(monkeypatch, needed, rows=rows) is None
        said = refusal(monkeypatch, needed - 2**20, rows=rows)
        assert said is not None
        assert "does not fit" in said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"model": {"dim": 16384, "layers": 40, "heads": 64}}, "weights and their gradients alone need"),
        ({"model": {"dim": 131072, "layers": 1024, "heads": 1024}}, "weights and their gradients alone need"),
        ({"rows": 2**16, "batch_tokens": 2**26}, "65536 sequences at once need"),
        ({"sequence_length": 2**21, "batch_tokens": 2**21}, "1 sequence at once needs"),
    ],
)
def test_a_size_that_no_machine_has_is_refused_with_the_number(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], cause: str
) -> None:
    said = refusal(monkeypatch, 32 * 2**30, **changes)
    assert said is not None
    assert cause in said
    assert "GiB" in said
    assert "lower" in said


def test_a_small_run_is_not_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprints, "footprint", None)  # would take seconds at every start
    assert refusal(monkeypatch, 32 * 2**30) is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_rough_count_passes_nothing_that_the_exact_one_refuses(path: Path) -> None:
    config = load_config(path, ["train.bad_step=stop", *(["model.layers=2"] if path.stem != "modded" else [])])
    model = build_model(config, V, device="meta")
    for rows in (1, 3):
        exact = footprint(config, V, rows).total
        assert exact <= _MARGIN * _rough_bytes(model, rows, config.train.sequence_length)
