"""A footprint, a probe and a config that the tests of plans share."""

from __future__ import annotations

from typing import Any

from gptlab.config import config_from
from gptlab.planning.plan import Footprint, Probe

FOOTPRINT = Footprint(
    vocab_size=1000,
    parameters=100,
    parameters_without_embeddings=90,
    flops_per_token=600.0,
    micro_batch=4,
    compiled=False,
    weights=400,
    gradients=400,
    optimizer=800,
    activations=1000,
    logits=500,
)
PROBE = Probe(
    hardware="Abacus",
    accelerator=False,
    dtype="float32",
    micro_batch=4,
    launch_seconds=3.0,
    startup_seconds=2.0,
    warmup_seconds=1.0,
    step_seconds=0.5,
    step_low=0.4,
    step_high=0.6,
    steps=10,
    validation_tokens=100,
    validation_seconds=2.0,
    saving_seconds=0.25,
    weights_seconds=0.5,
    closing_seconds=1.5,
    peak_memory=10_000,
)


def config(**changes: Any) -> Any:
    values = {"train": {"tokens": 256 * 100, "batch_tokens": 256, "sequence_length": 32}, "eval": {"every": 30}}
    return config_from(values, [f"{key}={value}" for key, value in changes.items()])
