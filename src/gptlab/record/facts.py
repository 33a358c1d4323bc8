"""facts.json: size, cost and provenance of a finished run, so that runs are compared without rebuilding them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from gptlab.config.jsonfile import parse_json, read_json
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.seal import sealed_json

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
SCHEMA = 1
"""Raised when a field changes its meaning; a folder of another schema is refused by name."""


@dataclass(frozen=True)
class Facts:
    """Size, cost and provenance of a finished run."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    parameters: Count
    flops_per_token: Amount  # of training: forward and backward, as model.counting counts
    tokens: Count  # trained on
    steps: Count
    seconds: Amount  # of training alone, over all sessions, as in metrics.jsonl
    wall_seconds: Amount  # of the last session: start-up, validation and checkpoints too
    sessions: Annotated[int, Field(ge=1)]  # how many it took; 1: never interrupted
    peak_memory_bytes: Count  # CUDA: the most allocated on one device; CPU: the most resident in one process
    hardware: str  # the GPU, else the CPU
    world_size: Annotated[int, Field(ge=1)]
    dtype: str
    code: str  # gptlab.record.fingerprint
    versions: dict[str, str]  # python, torch, gptlab
    weights: str | None = None  # 16 digits of SHA-256 of model.safetensors; None: by gptlab before 0.4
    metrics: str | None = None  # the same of metrics.jsonl

    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return self.flops_per_token * self.tokens


def write_facts(folder: Path, facts: Facts) -> None:
    """Write RUN/facts.json."""
    write_atomic(folder / "facts.json", sealed_json({"schema": SCHEMA, **dataclasses.asdict(facts)}))


def read_facts(folder: Path) -> Facts:
    """The facts of a finished run. Raises GptlabError where it has none, or they are of another schema or damaged."""
    path = folder / "facts.json"
    mend = "restore it, or delete the run and train it again"
    try:
        values = read_json(path, dict[str, Any], mend=mend)
        if (schema := values.pop("schema", SCHEMA)) != SCHEMA:
            raise GptlabError(
                f"{path}: of schema {schema!r}, this gptlab reads {SCHEMA}; use the gptlab that made it, or train it "
                "again"
            )
        return parse_json(json.dumps(values), Facts)
    except FileNotFoundError:
        raise GptlabError(
            f"{folder} has no facts.json: it is not finished, or was trained by gptlab before 0.3; train it again"
        ) from None
    except ValueError as problem:
        raise GptlabError(f"{path}: damaged ({problem}); {mend}") from None
