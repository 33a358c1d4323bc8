"""Where else the numbers of a run go, as they come: TensorBoard, Weights & Biases, and a user's own hooks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gptlab.config import RunConfig
from gptlab.config.building import run_file
from gptlab.config.schema import Log
from gptlab.console import say
from gptlab.errors import ConfigError, GptlabError
from gptlab.record.metrics import Row


class Sink(Protocol):
    """What is given every row of a run, and every sample."""

    def write(self, row: Row) -> None:
        """Take a row of metrics.jsonl; what was not finite in it is None."""

    def samples(self, step: int, texts: Mapping[str, str]) -> None:
        """Take what the model wrote after `step` steps, by prompt."""

    def close(self) -> None:
        """The run ends, or stops."""


class TensorBoard:
    """Events in RUN/tensorboard."""

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was written after the checkpoint comes again: TensorBoard is told to forget it.
        purge = None if resume_step is None else resume_step + 1
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, row: Row) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                self._writer.add_scalar(key, value, row["step"])

    def samples(self, step: int, texts: Mapping[str, str]) -> None:
        for number, (prompt, text) in enumerate(texts.items()):
            self._writer.add_text(f"sample {number}", f"**{prompt}**{text}", step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases, with its config, as part of a group.

    Within an experiment the group is the experiment and the job type the arm, which `gptlab run` hands on in W&B's own
    environment variables; else the runs of one config and several seeds are a group. W&B then draws their mean.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        import wandb

        name, _, seed = folder.name.rpartition("-seed")
        self._run: Any = wandb.init(
            project=config.log.wandb_project,
            name=folder.name,
            id=folder.name,
            dir=str(folder),
            mode=config.log.wandb,
            resume="allow",
            config=config.plain(),
            group=os.environ.get("WANDB_RUN_GROUP") or name or folder.name,
            job_type=os.environ.get("WANDB_JOB_TYPE"),
            tags=[f"seed{seed}"] if name else None,
        )
        self._table: Callable[..., Any] = wandb.Table

    def write(self, row: Row) -> None:
        self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def samples(self, step: int, texts: Mapping[str, str]) -> None:
        rows = [[step, prompt, text] for prompt, text in texts.items()]
        self._run.log({"samples": self._table(columns=["step", "prompt", "text"], data=rows)}, step=step)

    def close(self) -> None:
        self._run.finish()


class Hook:
    """A logger of a user's own. What it raises is said, and it is given nothing more: a run of hours outlives it."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.target = name, target

    def _call(self, method: str, *arguments: Any) -> None:
        function = getattr(self.target, method, self.target if method == "write" else None)
        if not callable(function):
            return
        try:
            function(*arguments)
        except Exception as error:
            say(f"careful: the hook {self.name} failed ({type(error).__name__}: {error}); it is given nothing more")
            self.target = None

    def write(self, row: Row) -> None:
        self._call("write", dict(row))

    def samples(self, step: int, texts: Mapping[str, str]) -> None:
        self._call("samples", step, dict(texts))

    def close(self) -> None:
        self._call("close")


def require_sinks(log: Log) -> None:
    """Raise GptlabError where a sink that is asked for is not there; to be called before anything is written."""
    if log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise GptlabError("log.tensorboard is on but TensorBoard is missing; pip install 'gptlab[tensorboard]'")
    if log.wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise GptlabError(f"log.wandb is {log.wandb} but wandb is missing; pip install 'gptlab[wandb]'")
    for name in log.hooks:
        _find_hook(name)


def open_sinks(config: RunConfig, folder: Path, resume_step: int | None, hooks: Sequence[Any] = ()) -> list[Sink]:
    """The sinks of a run. `hooks`: a caller's own, beside those of the config. Raises ConfigError where a hook cannot
    be made."""
    log = config.log
    sinks: list[Sink] = [TensorBoard(folder, resume_step)] if log.tensorboard else []
    if log.wandb != "off":
        sinks.append(WeightsAndBiases(folder, config))
    sinks += [_make_hook(name, folder, config) for name in log.hooks]
    return [*sinks, *(Hook(getattr(hook, "__name__", type(hook).__name__), hook) for hook in hooks)]


def _find_hook(name: str) -> Any:
    """What a name in `log.hooks` stands for. Raises ConfigError where there is no such thing."""
    place, _, attribute = name.rpartition(":")
    if not place:
        raise ConfigError(f"log.hooks: {name!r} names no file; write ./file.py:Name or module:Name", key="log.hooks")
    try:
        if place.endswith(".py") and not Path(place).is_file():
            raise ConfigError(f"log.hooks: no file {place}; a file is relative to the YAML naming it", key="log.hooks")
        module = run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, attribute)
    except ImportError as error:
        raise ConfigError(f"log.hooks: {name}: {error}; install it or put it on PYTHONPATH", key="log.hooks") from None
    except AttributeError:
        raise ConfigError(f"log.hooks: nothing called {attribute!r} in {place}", key="log.hooks") from None


def _make_hook(name: str, folder: Path, config: RunConfig) -> Hook:
    """A function as it is; of a class an instance, made with the run's folder and config."""
    found = _find_hook(name)
    if not inspect.isclass(found):
        return Hook(name, found)
    try:
        return Hook(name, found(folder=folder, config=config.plain()))
    except Exception as error:
        raise ConfigError(
            f"log.hooks: {name} cannot be made with folder=… and config=…: {type(error).__name__}: {error}",
            key="log.hooks",
        ) from error
