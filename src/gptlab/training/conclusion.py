"""What is written when a session of training ends: views of the numbers, and the facts of a finished run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gptlab.config import RunConfig
from gptlab.hardware.device import describe
from gptlab.model.component import training_flops
from gptlab.parallel import World
from gptlab.record.facts import Facts
from gptlab.record.fingerprint import code_fingerprint
from gptlab.record.metrics import metrics_digest, read_metrics, write_csv
from gptlab.record.runfolder import digest_of_weights, read_sessions
from gptlab.systems.plot import plot_loss
from gptlab.version import __version__


def write_views(folder: Path) -> None:
    """metrics.csv and loss.png of a run."""
    rows = read_metrics(folder / "metrics.jsonl")
    write_csv(rows, folder / "metrics.csv")
    if rows:
        plot_loss(rows, folder / "loss.png", folder.name)


def gather_facts(
    folder: Path, config: RunConfig, model: nn.Module, device: torch.device, dtype: torch.dtype, world: World, step: int
) -> Facts:
    """The facts of a run that ends after `step` steps, but for times and memory, which only its loop knows: zero."""
    hardware = describe(device)
    return Facts(
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_token=training_flops(model, config.train.sequence_length),
        tokens=step * config.train.batch_tokens,
        steps=step,
        seconds=0.0,
        wall_seconds=0.0,
        sessions=len(read_sessions(folder)),
        peak_memory_bytes=0,
        hardware=hardware.get("gpu", hardware["cpu"]),
        world_size=world.size,
        dtype=str(dtype).removeprefix("torch."),
        code=code_fingerprint(),
        versions={"python": hardware["python"], "torch": hardware["torch"], "gptlab": __version__},
        weights=digest_of_weights(folder),
        metrics=metrics_digest((folder / "metrics.jsonl").read_bytes()),
    )
