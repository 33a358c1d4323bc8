"""Checkpoints that survive what happens to machines.

A checkpoint is a folder `step-00001000/`: tensors of model and optimizer as safetensors (of several processes each
writes its part, by `torch.distributed.checkpoint`, which any other number of them can read), `state.json` with the few
numbers beside them, and `manifest.json` with a SHA-256 for each file. Nothing in it is a pickle.

It is written under another name, synced, and renamed last: a folder with the right name is whole. No random
state is kept, because there is none: batches and dropout are functions of (seed, step).
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import TypedDict

from gptlab.config import RunConfig, difference
from gptlab.config.jsonfile import read_json
from gptlab.console import say
from gptlab.errors import CheckpointError, GptlabError, option
from gptlab.files import fsync_directory, fsync_file, sha256_file, write_atomic
from gptlab.model.component import declared
from gptlab.model.pieces import in_order, lay_out, local
from gptlab.parallel import World
from gptlab.seal import sealed_json
from gptlab.systems.tensorfile import write_tensors

_NAME = re.compile(r"step-(\d{8})")


def checkpoint_step(path: Path) -> int:
    """The step that a checkpoint folder's name tells."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint folder (step-00000000); name one, or the run folder")
    return int(match[1])


class Checkpoints:
    """The checkpoints of one run, in `folder`: the newest `keep`, and the best."""

    def __init__(self, folder: Path, *, keep: int, world: World) -> None:
        self.folder, self.keep, self.world = folder, keep, world

    def all(self) -> list[Path]:
        """Whole checkpoints, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
        """Write a checkpoint of `step`. Every process calls it.

        Raises CheckpointError where the disk refuses; what was saved before is then untouched.
        """
        # Imported here and below: DCP takes half a second, and `gptlab sample` of a finished run needs none of it.
        from torch.distributed.checkpoint.api import CheckpointException

        target = self.folder / f"step-{step:08d}"
        aside = self.folder / f".{target.name}.tmp"
        error = ""
        try:
            if self.world.is_main:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            self.world.barrier()
            _write_tensors(aside, {**model_tensors(model), **optimizer_tensors(model, optimizer)}, self.world)
            if self.world.is_main:
                write_atomic(aside / "state.json", sealed_json(state))
                _write_manifest(aside)
        except (Exception, CheckpointException) as problem:  # DCP's wrapper around what failed is no Exception
            error = _reason(problem)
        if self.world.broadcast(error) or error:
            if self.world.is_main:
                shutil.rmtree(aside, ignore_errors=True)
            kept = f"{self.all()[-1].name} is untouched" if self.all() else "there is no earlier one"
            raise CheckpointError(f"cannot save a checkpoint in {self.folder}: {error}; free some space ({kept})")
        if self.world.is_main:
            if target.exists():  # the same step again: bitwise the same, unless it was damaged
                shutil.rmtree(target)
            aside.rename(target)
            fsync_directory(self.folder)
        self.world.barrier()
        return target

    def prune(self, best: int | None) -> None:
        """Delete all but the newest `keep` and the one of step `best`."""
        if self.world.is_main:
            for path in self.all()[: -self.keep]:
                if checkpoint_step(path) != best:
                    shutil.rmtree(path)

    def newest_whole(self) -> Path | None:
        """The newest checkpoint whose files are all as they were written; None where there has never been one.

        Raises CheckpointError where there are checkpoints and every one is damaged.
        """
        found = self.all()
        for path in reversed(found):
            problem = verify(path)
            if problem is None:
                return path
            if self.world.is_main:
                say(f"checkpoint {path} is damaged ({problem}); trying the one before it")
        if found:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged; restore one, or delete the run folder to start again"
            )
        return None


@dataclass(frozen=True)
class _Manifest:
    sha256: dict[str, str]


class _State(TypedDict, total=False):
    """What `Checkpoints.save` is given; tests and other programs may give it more or less."""

    __pydantic_config__ = pydantic.ConfigDict(extra="allow")  # type: ignore[misc]

    step: Annotated[int, Ge(0)]
    tokens: Annotated[int, Ge(0)]
    seconds: float
    recent: list[float]
    scaler: dict[str, Any]
    micro_batch: Annotated[int, Ge(1)]
    world_size: Annotated[int, Ge(1)]
    identity: dict[str, Any]


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = read_json(path / "manifest.json", _Manifest, mend="use another checkpoint").sha256
        for name, digest in sums.items():
            if Path(name).name != name:
                return f"manifest.json names {name!r}, which is not a file of the checkpoint"
            if sha256_file(path / name) != digest:
                return f"{name} does not match its checksum"
        read = {"state.json", *(file.name for file in path.glob("*.safetensors"))}
        if unknown := read - set(sums):
            return f"manifest.json does not name {min(unknown)}"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, GptlabError) as error:
        return f"manifest.json cannot be read: {error}"
    return None


def read_state(path: Path) -> dict[str, Any]:
    """The numbers beside the tensors: what `save` was given as `state`."""
    try:
        found = read_json(path / "state.json", _State, mend="use an earlier checkpoint", error=CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path / 'state.json'} is missing; use an earlier checkpoint") from None
    return dict(found)


def read_matching_state(path: Path, identity: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """What a checkpoint says of itself, where it is one of this config's: `identity` is what must not have changed.

    Raises CheckpointError where it is another's, or lies beyond the run's end.
    """
    state = read_state(path)
    changed = difference(state["identity"], identity)
    if changed:
        key, old, new = changed[0]
        raise CheckpointError(
            f"{path} is from another config: {key} was {old!r} and is now {new!r}; resume with the config it was "
            f"trained with, or start a new run with {option('set', 'name=NAME')}"
        )
    if state["step"] > config.total_steps:
        raise CheckpointError(
            f"{path} is beyond the end: step {state['step']} of {config.total_steps}; set train.tokens to at least "
            f"{state['step'] * config.train.batch_tokens}"
        )
    return state


def load_tensors(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, world: World) -> None:
    """Read a checkpoint into a model, and into its optimizer where one is given; the world may have another size.

    Raises CheckpointError where names or shapes are not those of this model.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    tensors = model_tensors(model)
    if optimizer is not None:
        _create_optimizer_state(optimizer)
        tensors |= optimizer_tensors(model, optimizer)
    reader = HuggingFaceStorageReader(str(path))
    try:
        stored = {name: tuple(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    except Exception as error:
        raise CheckpointError(f"cannot read the tensors of {path}: {_reason(error)}") from None
    for name, tensor in tensors.items():
        if stored.get(name) != tuple(tensor.shape):
            have = f"has shape {list(stored[name])}" if name in stored else "does not exist"
            raise CheckpointError(
                f"{path} is from another model: {name} should have shape {list(tensor.shape)} and {have}; "
                "load it with the config it was trained with"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=world.size == 1)
    for name, tensor, parameter in _reordered(model, optimizer):
        local(tensor).copy_(lay_out(tensors[name], parameter))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (a shared one once) and saved buffers, by name. What lies in another order over processes
    (`gptlab.model.pieces`) is a whole copy; every process calls this."""
    saved = set(model.state_dict())
    buffers = {f"model.{name}": b.detach() for name, b in model.named_buffers() if name in saved}
    parameters = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    return parameters | buffers | {name: in_order(tensor, p) for name, tensor, p in _reordered(model, None)}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, by the name of the parameter it belongs to. Rates and the like follow from the config."""
    found = {
        name: value if value.ndim else value.view(1)  # the same memory, so loads land in it
        for name, value, _ in _optimizer_state(model, optimizer)
    }
    names = {name for name, _, _ in _optimizer_state(model, optimizer)}
    return found | {name: in_order(t, p) for name, t, p in _reordered(model, optimizer) if name in names}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names, tensors, and the parameters that they belong to."""
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"optimizer.{name}.{key}", value, parameter


def _reordered(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of these, and of the parameters themselves, what lies in another order than the model's."""
    own = [(f"model.{name}", parameter.detach(), parameter) for name, parameter in model.named_parameters()]
    state = [] if optimizer is None else _optimizer_state(model, optimizer)
    for name, tensor, parameter in (*own, *state):
        if declared(parameter, "order") is not None and tensor.shape == parameter.shape:
            yield name, tensor, parameter


def _create_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state tensors exist, by one step with no gradient at rate 0; what they hold is read next."""
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _write_tensors(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """One process writes the file itself, piece by piece; of several each writes its share, which DCP first makes whole
    in memory."""
    if world.size == 1:
        write_tensors(tensors, folder / "model.safetensors")
        return
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP announces that a single process is a single process
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(tensors, storage_writer=writer)


def _write_manifest(folder: Path) -> None:
    """Sync every file and write their checksums."""
    digests = {}
    for file in sorted(folder.iterdir()):
        fsync_file(file)
        digests[file.name] = sha256_file(file)
    write_atomic(folder / "manifest.json", json.dumps({"format": 1, "sha256": digests}, indent=1))


def _reason(problem: BaseException) -> str:
    """The innermost cause, in one line."""
    failures = getattr(problem, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        problem = first[0] if isinstance(first, tuple) else first
    while problem.__cause__ is not None:
        problem = problem.__cause__
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return " ".join(str(text).split())[:200] or type(problem).__name__
