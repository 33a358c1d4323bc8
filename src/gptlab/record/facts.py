"""facts.json: size, cost and provenance of a finished run, so that runs are compared without rebuilding them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError
from gptlab.files import write_atomic

SCHEMA = 1
"""Raised when a field changes its meaning; a folder of another schema is refused by name."""


@dataclass(frozen=True)
class Facts:
    """Size, cost and provenance of a finished run."""

    parameters: int
    flops_per_token: float  # of training: forward and backward, as model.counting counts
    tokens: int  # trained on
    steps: int
    seconds: float  # of training alone, over all sessions, as in metrics.jsonl
    wall_seconds: float  # of the last session: start-up, validation and checkpoints too
    sessions: int  # how many it took; 1: never interrupted
    peak_memory_bytes: int  # CUDA: the most allocated on one device; CPU: the most resident in one process
    hardware: str  # the GPU, else the CPU
    world_size: int
    dtype: str
    code: str  # gptlab.record.fingerprint
    versions: dict[str, str]  # python, torch, gptlab

    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return self.flops_per_token * self.tokens


def write_facts(folder: Path, facts: Facts) -> None:
    """Write RUN/facts.json."""
    write_atomic(folder / "facts.json", json.dumps({"schema": SCHEMA, **dataclasses.asdict(facts)}, indent=1) + "\n")


def read_facts(folder: Path) -> Facts:
    """The facts of a finished run. Raises GptlabError where it has none, or they are of another schema or damaged."""
    path = folder / "facts.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = values.pop("schema")
    except FileNotFoundError:
        raise GptlabError(
            f"{folder} has no facts.json: it is not finished, or was trained by gptlab before 0.3; train it again"
        ) from None
    except (ValueError, KeyError, AttributeError):
        raise GptlabError(f"{path}: damaged; restore it, or delete the run and train it again") from None
    if schema != SCHEMA:
        raise GptlabError(
            f"{path}: of schema {schema}, this gptlab reads {SCHEMA}; use the gptlab that made it, or train it again"
        )
    names = {field.name for field in dataclasses.fields(Facts)}
    if set(values) != names:
        odd = sorted(names ^ set(values))[0]
        raise GptlabError(f"{path}: {odd!r} is {'missing' if odd in names else 'unknown'}; restore the file")
    return Facts(**values)
