"""Model soups: one model whose weights are the average of several runs' (Wortsman et al. 2022, arXiv:2203.05482).

Runs that began at the same weights and were trained on different orders of the data end in one basin of the loss;
their average lies nearer to its bottom than any of them, at the cost of one model. Runs that began apart have no such
average: what comes of it is evaluated beside them, always.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.config import (
    RunConfig,
    config_from,
    config_hash,
    difference,
    dump_yaml,
    hashed_values,
    starting_run,
)
from gptlab.config.yamlfile import read_yaml
from gptlab.console import track, waiting
from gptlab.errors import CheckpointError, ConfigError, DataError, option
from gptlab.evals.benchmark import Evaluation, Options, evaluate
from gptlab.evals.validation import validation_sets
from gptlab.files import sha256_file, write_atomic
from gptlab.hardware.device import describe
from gptlab.interop.runs import new_folder, save_tensors
from gptlab.record import runfolder
from gptlab.run import load, save_weights
from gptlab.shown import Sheet, Shown, cells
from gptlab.tokenizer import Tokenizer, load_tokenizer

RECORD = "soup.yaml"
_HEAD = "# The average of the weights of these runs. Losses are nats a token, all on the same validation tokens."
_SHAPELESS = ("init_from", "initialization", "dropout")  # arguments of a model that trained weights do not depend on


@dataclass(frozen=True)
class Ingredient:
    """A run of a soup.

    Attributes:
        folder: the run.
        sha256: of its weights file.
        weight: its share; 0 for one that the greedy soup left out.
        loss: on the validation tokens, nats a token.
        standard_error: of `loss`, over windows; None for one window.
    """

    folder: Path
    sha256: str
    weight: float
    loss: float
    standard_error: float | None


@dataclass(frozen=True, repr=False)
class Soup(Shown):
    """What came of it: a run folder, and the losses of all on the same tokens (nats a token)."""

    folder: Path
    method: str
    ingredients: tuple[Ingredient, ...]
    loss: float
    standard_error: float | None

    def sheet(self) -> Sheet:
        """Each run with its share and loss, their mean, and the soup."""
        rows = [
            [str(one.folder), f"{one.weight:.4g}", *cells([one.loss, one.standard_error])] for one in self.ingredients
        ]
        rows.append(["mean of the runs", "", f"{self.mean_loss:.4f}", ""])
        rows.append([str(self.folder), "", *cells([self.loss, self.standard_error])])
        return Sheet(f"{self.method} soup", rows, ("run", "weight", "loss", "standard error"))

    @property
    def mean_loss(self) -> float:
        """The mean of the runs' losses, that of a run picked blindly."""
        return math.fsum(one.loss for one in self.ingredients) / len(self.ingredients)


def soup(
    runs: Sequence[str | Path],
    name: str,
    *,
    weights: Sequence[float] | None = None,
    greedy: bool = False,
    checkpoint: str | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    folder: str | Path = "runs",
    reuse: bool = False,
) -> Soup:
    """Average the weights of `runs` into `folder`/NAME-HASH, a run folder, and evaluate all on the same tokens.

    `weights`: shares in the order of `runs`, scaled to sum to 1; equal by default. `greedy`: the runs from the best to
    the worst, each kept where the average with it is no worse than without (recipe 1 of the paper). `checkpoint`: a
    folder of each RUN/checkpoints in the place of final weights. The tokens are the first `eval.tokens` of the runs'
    own validation data, in the first run's sequence length; `limit` sets a number of windows, `data` another data set.
    Averages are in float64, one tensor at a time. HASH stands for the runs' weights and the method. `reuse`: give the
    soup that is there already instead of refusing.

    Raises GptlabError, before anything is averaged, for fewer than two runs, a run given twice, and runs that differ
    in architecture, tokenizer or validation data; then for weights or an average that are not finite.
    """
    shares = _shares(weights, len(runs), greedy=greedy)
    inputs = SoupInputs.read([Path(run) for run in runs], name, data=Path(data) if data else None, limit=limit)
    with _weights_files(inputs.folders, checkpoint) as files:
        digests = [sha256_file(file) for file in track(files, "reading weights", total=len(files), unit="runs")]
        _refuse_twins(inputs.folders, digests)
        _refuse_other_shapes(inputs.folders, files)
        method = "greedy" if greedy else "uniform" if weights is None else "weighted"
        target = Path(folder) / f"{name}-{inputs.digest(method, shares, digests)}"
        if reuse and (target / RECORD).is_file():
            return read_soup(target)
        if target.exists():
            raise CheckpointError(f"{target} exists already, of these very weights; use it, or delete it first")
        evaluator = _Evaluator(inputs, device, checkpoint)
        found = [evaluator.evaluate(files[n], str(each)) for n, each in enumerate(inputs.folders)]
        if greedy:
            shares = _greedy_shares(found, files, evaluator)
        # In the order of their digests, so that the same runs in another order give the same bytes.
        tensors = average([pair for _, pair in sorted(zip(digests, zip(files, shares, strict=True), strict=True))])
        evaluation = evaluator.evaluate(tensors, str(target))
    ingredients = tuple(
        Ingredient(each, digest, share, loss_of(one), one.standard_errors["loss"])
        for each, digest, share, one in zip(inputs.folders, digests, shares, found, strict=True)
    )
    made = Soup(target, method, ingredients, loss_of(evaluation), evaluation.standard_errors["loss"])
    _write(made, inputs, tensors, evaluation, checkpoint)
    return made


def average(parts: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """Σ share · weights over safetensors `files` of the same names and shapes, in float64, then in the files' dtype.

    `parts`: (file, share); files of share 0 are not read. One tensor of one file is in memory beside the result.
    Raises CheckpointError where the average is not finite, or where tensors of whole numbers differ.
    """
    with contextlib.ExitStack() as stack:
        opened = [(stack.enter_context(_open(file)), share) for file, share in parts if share]
        names = list(opened[0][0].keys())
        return {
            name: _average_tensor(name, opened) for name in track(names, "averaging", total=len(names), unit="tensors")
        }


def _average_tensor(name: str, opened: Sequence[tuple[Any, float]]) -> Tensor:
    first = opened[0][0].get_tensor(name)
    if not first.is_floating_point():
        if not all(torch.equal(first, file.get_tensor(name)) for file, _ in opened[1:]):
            raise CheckpointError(f"tensor {name} holds {first.dtype} and differs between the runs; it has no average")
        return first
    total = torch.zeros(first.shape, dtype=torch.float64)
    for file, share in opened:
        total += share * file.get_tensor(name).double()
    if not (result := total.to(first.dtype)).isfinite().all():
        raise CheckpointError(
            f"the average of tensor {name} is not finite; evaluate the runs one by one, and leave out"
        )
    return result


def loss_of(found: Evaluation) -> float:
    """The loss of an evaluation, nats a token."""
    return float(found.results["loss"])


def read_soup(folder: Path) -> Soup:
    """A soup from its record. Raises ConfigError where that cannot be read."""
    record, _ = read_yaml(folder / RECORD)
    try:
        ingredients = tuple(
            Ingredient(Path(one["run"]), one["sha256"], one["weight"], one["loss"], one["standard_error"])
            for one in record["runs"]
        )
        return Soup(folder, record["method"], ingredients, record["loss"], record["standard_error"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder / RECORD} is damaged ({error}); delete {folder} and make the soup again") from None


# ---------------------------------------------------------------- what goes in


@dataclass(frozen=True)
class SoupInputs:
    """Runs that can be averaged, and what they are evaluated on."""

    folders: list[Path]
    configs: list[RunConfig]
    tokenizer: Tokenizer
    config: RunConfig  # the soup's
    options: Options
    fingerprints: dict[str, str]  # fingerprints of the validation data

    @classmethod
    def read(cls, folders: Sequence[Path], name: str, *, data: Path | None, limit: int | None) -> SoupInputs:
        """Read configs and tokenizers. Raises GptlabError for the first thing that does not fit."""
        if len(folders) < 2:
            raise CheckpointError(f"a soup is made of two runs or more, {len(folders)} given; name more run folders")
        for number, folder in enumerate(folders):
            runfolder.require_run(folder)
            if folder.resolve() in [other.resolve() for other in folders[:number]]:
                raise CheckpointError(
                    f"{folder} is given twice; give it once, with a weight of its own: {option('weights', '2,1')}"
                )
        configs = [runfolder.read_config(folder) for folder in folders]
        tokenizers = [load_tokenizer(folder / "tokenizer") for folder in folders]
        fingerprints = []
        for folder, config, tokenizer in zip(folders, configs, tokenizers, strict=True):
            _refuse_other_architecture(folders[0], configs[0], folder, config)
            if tokenizer.hash != tokenizers[0].hash:
                raise DataError(
                    f"{folders[0]} has tokenizer {tokenizers[0].name} ({tokenizers[0].hash}) and {folder} "
                    f"{tokenizer.name} ({tokenizer.hash}); only runs of one tokenizer have an average"
                )
            sets = validation_sets(folder, config.data, tokenizer, data)
            fingerprints.append({source: one.fingerprint for source, one in sets.items()})
            if fingerprints[-1] != fingerprints[0]:
                raise DataError(
                    f"{folders[0]} and {folder} have different validation data; name one for all: "
                    f"{option('data', 'FOLDER')}"
                )
        train, tokens = configs[0].train, configs[0].eval.tokens
        if limit is None and tokens is not None and data is None:
            limit = -(-tokens // train.sequence_length)
        options = Options(limit=limit, data=data)
        return cls(list(folders), configs, tokenizers[0], _soup_config(configs, name), options, fingerprints[0])

    def digest(self, method: str, shares: Sequence[float], digests: Sequence[str]) -> str:
        """Eight hex digits for what decides the soup's weights: those of the runs, the shares, and how they came."""
        values: dict[str, Any] = {
            "method": method,
            "config": config_hash(self.config, {}),
            "tokenizer": self.tokenizer.hash,
        }
        values["runs"] = sorted(zip(digests, shares, strict=True))
        if method == "greedy":
            values |= {"validation": self.fingerprints, "limit": self.options.limit}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _soup_config(configs: Sequence[RunConfig], name: str) -> RunConfig:
    """That of the first run under another name; `init_from` stays where all runs began there."""
    config_from({"name": name})  # raises for a name that is none
    config = configs[0].model_copy(update={"name": name})
    starts = {starting_run(each.model.get("init_from")) for each in configs}
    if "init_from" not in config.model or len({start and start[1] for start in starts}) == 1:
        return config
    return config.model_copy(update={"model": config.model.replace(init_from=None)})


def _refuse_other_architecture(first: Path, ours: RunConfig, folder: Path, theirs: RunConfig) -> None:
    models = [hashed_values(config, {})["model"] for config in (ours, theirs)]
    for model in models:
        for argument in _SHAPELESS:
            model.pop(argument, None)
    if changed := difference(*models, "model."):
        key, here, there = changed[0]
        raise ConfigError(
            f"{first} and {folder} are not of one architecture: {key} is {_short(here)} and {_short(there)}; only runs "
            "of one architecture have an average"
        )


def _short(value: Any) -> str:
    return str(value["use"]) if isinstance(value, Mapping) and "use" in value else json.dumps(value, default=str)


def _refuse_twins(folders: Sequence[Path], digests: Sequence[str]) -> None:
    for number, digest in enumerate(digests):
        if digest in digests[:number]:
            twin = folders[digests.index(digest)]
            raise CheckpointError(f"{twin} and {folders[number]} hold the very same weights; leave one of them out")


def _refuse_other_shapes(folders: Sequence[Path], files: Sequence[Path]) -> None:
    """Configs may agree where files do not: one was edited, or a component of the user's reads something else."""
    shapes = []
    for folder, path in zip(folders, files, strict=True):
        with _open(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            shapes.append({name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()})
        for name in {**shapes[0], **shapes[-1]}:
            here, there = (side.get(name, ("absent",)) for side in (shapes[0], shapes[-1]))
            if here != there:
                raise CheckpointError(f"{folders[0]} and {folder} differ in tensor {name}: {here} and {there}")


def _shares(weights: Sequence[float] | None, count: int, *, greedy: bool) -> list[float]:
    """Shares that sum to 1, one a run."""
    if weights is None:
        return [1 / max(1, count)] * count
    if greedy:
        raise ConfigError(
            f"{option('weights')} and {option('greedy')} exclude each other: greedy finds its own; leave one "
            f"of them out"
        )
    if len(weights) != count:
        raise ConfigError(f"{option('weights')}: {len(weights)} given for {count} runs; give one a run, in their order")
    if not all(1e-100 < weight < 1e100 for weight in weights):  # beyond, their sum or a share is no number
        raise ConfigError(
            f"{option('weights')}: {list(weights)} must be above 0 and below 1e100; leave out a run that should have "
            "none"
        )
    return [weight / math.fsum(weights) for weight in weights]


@contextlib.contextmanager
def _weights_files(folders: Sequence[Path], checkpoint: str | None) -> Iterator[list[Path]]:
    """A safetensors file a run: the final weights, or those of a checkpoint, written aside one after the other."""
    if checkpoint is None:
        files = [folder / "model.safetensors" for folder in folders]
        for file in files:
            if not file.is_file():
                raise CheckpointError(
                    f"{file.parent} is not finished; train it to its end, or give a {option('checkpoint')}"
                )
        yield files
        return
    with tempfile.TemporaryDirectory() as aside:
        files = [Path(aside) / f"{number}.safetensors" for number in range(len(folders))]
        for folder, file in zip(folders, files, strict=True):
            save_weights(load(folder, device="cpu", checkpoint=checkpoint).model, file)
        yield files


def _open(path: Path) -> Any:
    """A safetensors file to read tensors of one by one. Raises CheckpointError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); take a {option('checkpoint')} of the runs instead"
        ) from None


# ---------------------------------------------------------------- what comes of it


class _Evaluator:
    """Evaluates weights, all on the same tokens: one model, into which each set of weights is copied."""

    def __init__(self, inputs: SoupInputs, device: str, checkpoint: str | None) -> None:
        self.run = load(inputs.folders[0], device=device, checkpoint=checkpoint)
        self.options = inputs.options

    def evaluate(self, weights: Path | Mapping[str, Tensor], label: str) -> Evaluation:
        """Loss of `weights`, a file or tensors. Raises CheckpointError naming `label` where one is not finite."""
        with _open(weights) if isinstance(weights, Path) else contextlib.nullcontext() as file, torch.no_grad():
            for name, parameter in self.run.model.named_parameters():
                tensor = weights[name] if file is None else file.get_tensor(name)
                if not tensor.isfinite().all():
                    raise CheckpointError(f"{label}: tensor {name} is not finite; leave this run out")
                parameter.copy_(tensor)
        return evaluate(dataclasses.replace(self.run, folder=Path(label), step=None, final=False), "loss", self.options)


def _greedy_shares(found: Sequence[Evaluation], files: Sequence[Path], evaluator: _Evaluator) -> list[float]:
    """Recipe 1 of Wortsman et al. (2022) by validation loss: equal shares of the runs kept, 0 for the others."""
    order = sorted(range(len(files)), key=lambda n: loss_of(found[n]))
    kept, best = order[:1], loss_of(found[order[0]])
    for number in order[1:]:
        trial = [*kept, number]
        loss = loss_of(evaluator.evaluate(average([(files[n], 1 / len(trial)) for n in trial]), f"{len(trial)} runs"))
        if loss <= best:
            kept, best = trial, loss
    return [1 / len(kept) if number in kept else 0.0 for number in range(len(files))]


def _write(
    made: Soup, inputs: SoupInputs, tensors: Mapping[str, Tensor], evaluation: Evaluation, checkpoint: str | None
) -> None:
    """The run folder, in one atomic step."""
    config = inputs.config
    record = {
        "method": made.method,
        "checkpoint": checkpoint,
        "runs": [
            {
                "run": str(one.folder),
                "sha256": one.sha256,
                "weight": one.weight,
                "loss": one.loss,
                "standard_error": one.standard_error,
            }
            for one in made.ingredients
        ],
        "mean_loss": made.mean_loss,
        "loss": made.loss,
        "standard_error": made.standard_error,
        "tokens": evaluation.results["tokens"],
        "data": evaluation.settings["data"],
    }
    names = ", ".join(str(one.folder) for one in made.ingredients if one.weight)
    session = runfolder.session_record(config_hash(config, {}), config, describe(torch.device("cpu")), 1)
    with waiting(f"writing {made.folder}"), new_folder(made.folder) as aside:
        save_tensors(tensors, aside / "model.safetensors")
        session = {**session, "weights": runfolder.digest_of_weights(aside), "soup": record}
        runfolder.write_run_folder(aside, config, session)
        inputs.tokenizer.save(aside / "tokenizer")
        evaluation.write(aside / "evals" / "loss.json")
        write_atomic(aside / RECORD, f"{_HEAD}\n{dump_yaml(record)}")
        runfolder.log_line(aside, f"{made.method} soup of {names}: validation loss {made.loss:.4f}")
