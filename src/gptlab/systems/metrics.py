"""Where the numbers of a run are written: metrics.jsonl, and what else was asked for. Reading is `record.metrics`."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.record.metrics import Row, read_metrics


class MetricsLog:
    """Appends rows to metrics.jsonl and to the optional sinks (`require_sinks` says whether they are installed)."""

    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int | None = None,
        tensorboard: bool = False,
        wandb: str = "off",
        project: str = "gptlab",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        if resume_step is None:
            write_atomic(self.path, "")
        else:
            # What was logged after the checkpoint will be computed again; keeping it would count it twice.
            kept = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self._tensorboard = _open_tensorboard(folder, resume_step) if tensorboard else None
        self._wandb = _open_wandb(folder, wandb, project, config or {}) if wandb != "off" else None

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; numbers that are not finite become null, which JSON can say."""
        for row in rows:
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            self._file.write(json.dumps(clean) + "\n")
            for key, value in clean.items():
                if self._tensorboard is not None and isinstance(value, int | float) and key != "step":
                    self._tensorboard.add_scalar(key, value, row["step"])
            if self._wandb is not None:
                self._wandb.log({k: v for k, v in clean.items() if k != "step"}, step=row["step"])
        self._file.flush()

    def sync(self) -> None:
        """Make everything written so far durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync, and close the sinks."""
        if self._file.closed:
            return
        self.sync()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def require_sinks(*, tensorboard: bool, wandb: str) -> None:
    """Raise GptlabError where a sink that is asked for is not installed; to be called before anything is written."""
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise GptlabError("log.tensorboard is on but TensorBoard is missing; pip install 'gptlab[tensorboard]'")
    if wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise GptlabError(f"log.wandb is {wandb} but wandb is missing; pip install 'gptlab[wandb]'")


def _open_tensorboard(folder: Path, resume_step: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # What was written after the checkpoint comes again: TensorBoard is told to forget it.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1)


def _open_wandb(folder: Path, mode: str, project: str, config: Mapping[str, Any]) -> Any:
    """The runs of one config and several seeds are a group: W&B then draws their mean."""
    import wandb

    name, _, seed = folder.name.rpartition("-seed")
    return wandb.init(
        project=project,
        name=folder.name,
        id=folder.name,
        dir=str(folder),
        mode=mode,
        resume="allow",
        config=dict(config),
        group=name or folder.name,
        tags=[f"seed{seed}"] if name else None,
    )
