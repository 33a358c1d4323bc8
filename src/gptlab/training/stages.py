"""Training in stages: the runs of a config with `stages:`, one after the other, each with the one training loop.

Every run is an ordinary run folder, known by its hash, which covers the content of the weights that it starts from. So
a finished stage is found and not trained again, and whatever changes in a stage makes new runs of it and of what
follows it, and of nothing before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gptlab.config import RunConfig, Stage, build, difference, hashed_values, pin, run_name
from gptlab.console import say
from gptlab.data import open_splits, open_stream, validation_batches
from gptlab.errors import CheckpointError, ConfigError, DataError
from gptlab.hardware.device import pick_device
from gptlab.model import build_model
from gptlab.parallel import destroy_distributed, find_world, init_distributed
from gptlab.record import runfolder
from gptlab.shown import Sheet, Shown
from gptlab.training.loop import train
from gptlab.training.setup import build_growth
from gptlab.training.soup import Soup, soup

_RUNS = Path("runs")


@dataclass(frozen=True, repr=False)
class StageResult(Shown):
    """What came of a stage.

    Attributes:
        name: the stage's.
        runs: the folders of its branches, in the order of its seeds; fewer where training was interrupted.
        soup: their average, where the stage has one.
        finished: whether all of it is there.
    """

    name: str
    runs: tuple[Path, ...]
    soup: Soup | None
    finished: bool

    def sheet(self) -> Sheet:
        """Its runs, and what it ends with."""
        rows = [("run", str(run)) for run in self.runs]
        rows += [("soup", f"{self.soup.folder}, loss {self.soup.loss:.4f}")] if self.soup is not None else []
        return Sheet(f"stage {self.name}{'' if self.finished else ', not finished'}", rows)

    @property
    def folder(self) -> Path:
        """The run that the stage ends with: the soup, or its last branch."""
        return self.soup.folder if self.soup is not None else self.runs[-1]


def train_stages(stages: Sequence[Stage], *, resume: bool = False) -> list[StageResult]:
    """Train `stages` (of `load_stages`) in their order, into runs/; what is finished already is taken as it is.

    `resume`: go on in the run that was interrupted. Returns early, with a result that is not `finished`, where
    training is stopped by a signal. Raises GptlabError for everything a user can mend: for all stages before the
    first trains, where that can be known.
    """
    check_stages(stages)
    world = find_world()
    joined = init_distributed(world, pick_device(stages[0].config.system.device, world.local_rank))  # once for all runs
    try:
        return _train_in_order(stages, resume=resume)
    finally:
        destroy_distributed(joined)


def _train_in_order(stages: Sequence[Stage], *, resume: bool) -> list[StageResult]:
    results: dict[str, StageResult] = {}
    for number, stage in enumerate(stages, 1):
        branches = f", {len(stage.seeds)} runs" if len(stage.seeds) > 1 else ""
        begin = f", from {stage.start}" if stage.start is not None else ""
        _say(f"stage {number} of {len(stages)}: {stage.name}{branches}{begin}")
        start = pin(str(results[stage.start].folder)) if stage.start is not None else None
        results[stage.name] = _train_stage(stage, start, resume=resume)
        if not results[stage.name].finished:
            break
    return list(results.values())


def _train_stage(stage: Stage, start: str | None, *, resume: bool) -> StageResult:
    folders = []
    for config in stage.runs(start):
        folder = _finished_run(config, resume=resume)
        if folder is None:
            run = train(config, resume=resume)
            folder = run.folder
            if not run.finished:
                return StageResult(stage.name, (*folders, folder), None, finished=False)
        else:
            _say(f"{folder} is finished already")
        folders.append(folder)
    made = _soup(stage, folders) if stage.soup is not None else None
    return StageResult(stage.name, tuple(folders), made, finished=True)


def _finished_run(config: RunConfig, *, resume: bool) -> Path | None:
    """The folder of `config` where it is trained to its end. Raises CheckpointError where it became another run.

    One that was killed between its weights and its curve is finished too; `resume` has its curve drawn.
    """
    fingerprints = {name: dataset.fingerprint for name, dataset in open_splits(config.data)[1].items()}
    folder = _RUNS / run_name(config, fingerprints)
    if not (folder / "model.safetensors").is_file() or (resume and not (folder / "loss.png").is_file()):
        return None
    there = runfolder.read_config(folder)
    if changed := difference(hashed_values(config, fingerprints), hashed_values(there, fingerprints)):
        key, wanted, found = changed[0]
        raise CheckpointError(
            f"{folder} is no longer this stage's: {key} is {found!r} there and {wanted!r} here; rename the folder"
        )
    return folder


def _soup(stage: Stage, folders: Sequence[Path]) -> Soup:
    """The average of a stage's branches, made by the main process while the others wait."""
    world, system = find_world(), stage.config.system
    if system.threads is not None:
        torch.set_num_threads(system.threads)
    made = None
    if world.is_main:
        greedy, device = stage.soup == "greedy", str(pick_device(system.device, world.local_rank))
        made = soup(folders, f"{stage.config.name}-soup", greedy=greedy, device=device, folder=_RUNS, reuse=True)
        say(f"{made.folder}: validation loss {made.loss:.4f}, its runs' mean {made.mean_loss:.4f}")
    made = world.broadcast(made)
    assert made is not None
    return made


# ---------------------------------------------------------------- what can be known before


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise GptlabError for data, tokenizers and shapes that do not fit together, in any stage.

    Says where a stage would read the text in an order in which a stage before it did.
    """
    described: dict[str, _Described] = {}
    for stage in stages:
        found = _describe(stage)
        for name in found.ancestors(described):
            before = described[name]
            if before.tokenizer != found.tokenizer:
                raise DataError(
                    f"stage {stage.name!r} has data of another tokenizer than {name!r}, which it comes from; prepare "
                    "all data with one"
                )
            if again := sorted(before.orders & found.orders):
                _say(
                    f"stage {stage.name!r} reads {again[0][0]} from its beginning, in the very order of {name!r}; give "
                    "it another seed.data, or `seeds`"
                )
        if stage.start is not None:
            _compare_shapes(stage, found, described[stage.start])
        described[stage.name] = found


@dataclass(frozen=True)
class _Described:
    """What must fit between a stage and the one that it starts from."""

    start: str | None
    tokenizer: str
    shapes: dict[str, tuple[int, ...]]
    orders: set[tuple[str, str, int, int]]  # path, fingerprint, data seed, T: together they are an order of reading

    def ancestors(self, described: dict[str, _Described]) -> list[str]:
        """The stages whose weights went into it."""
        return [] if self.start is None else [self.start, *described[self.start].ancestors(described)]


def _describe(stage: Stage) -> _Described:
    """Open the data of a stage and build its model without memory: most of what could fail later fails here."""
    config, length = stage.config, stage.config.train.sequence_length
    tokenizer, sets, validation = open_splits(config.data)
    for dataset in validation.values():
        next(validation_batches(dataset, config.validation_length, 1, config.eval.tokens))
    open_stream(config, sets)
    build("schedule", config.schedule, total_steps=config.total_steps)
    model = build_model(config, tokenizer.vocab_size, device="meta")
    build_growth(config, model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    seeds = stage.seeds or (config.seed.data,)
    orders = {(str(one.path), one.fingerprint, seed, length) for one in sets.values() for seed in seeds}
    return _Described(stage.start, tokenizer.hash, shapes, orders)


def _compare_shapes(stage: Stage, here: _Described, there: _Described) -> None:
    positions = "position.embedding.weight"  # of these, the beginning may be taken
    for name in {**here.shapes, **there.shapes}:
        ours, theirs = here.shapes.get(name), there.shapes.get(name)
        cropped = name == positions and ours is not None and theirs is not None and ours[0] <= theirs[0]
        if ours != theirs and not cropped:
            raise ConfigError(
                f"stage {stage.name!r} cannot start from {stage.start!r}: {name} is {_shape(ours)} here and "
                f"{_shape(theirs)} there; leave what shapes the model as it is"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _say(text: str) -> None:
    if find_world().is_main:
        say(text)
