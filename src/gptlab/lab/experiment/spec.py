"""The specification of an experiment: hypothesis, arms, seeds, metric and decision rule, fixed before any run.

hypothesis: ReLU² gives a lower loss than SwiGLU at equal FLOPs.
baseline: gptlab:demo                      # or a path, relative to this file
common: {train: {tokens: 1M}}              # a diff that every arm shares, the baseline too
arms:
  swiglu: {model: {block: {mlp: SwiGLU}}}  # each a diff against the baseline, or a `./idea.py:Part` in one
  again: baseline                          # A/A: the baseline itself, from other initial weights
seeds: [1, 2, 3, 4, 5, 6]
metric: loss
match: {flops: 2%}
decision: {alpha: 0.05, smallest_effect: 0.01}
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from gptlab.config import RunConfig, config_hash, difference
from gptlab.config.load import absolute_paths, override, read_layers, require_optimizer, resolve
from gptlab.config.messages import broken_rule, expected, validated
from gptlab.config.numbers import BOUNDS
from gptlab.config.preset import PREFIX, find_config
from gptlab.config.schema import NonNegativeInteger, PositiveInteger, Section
from gptlab.config.types import Integer, Number, Text
from gptlab.config.yamlfile import KeyPath, Origin, read_yaml
from gptlab.data import measured_on, open_splits
from gptlab.data.dataset import load_manifest
from gptlab.errors import ConfigError, did_you_mean, option
from gptlab.files import not_a_folder
from gptlab.lab.experiment.metric import Metric
from gptlab.lab.experiment.preset import how_to_begin
from gptlab.record.measurement import Identity, differences

BASELINE = "baseline"
REPEAT_OFFSET = 1000
"""An A/A arm starts from the weights of seed + 1000: other luck, and nothing else."""

Quantity = Literal["tokens", "flops", "parameters", "time"]
TOLERANCES: dict[Quantity, float] = {"tokens": 0.0, "flops": 0.01, "parameters": 0.01, "time": 0.05}
"""By how much, as a share of the baseline's, an arm may differ where the experiment names no tolerance."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _seeds(value: Any) -> Any:
    if isinstance(value, list):
        return value
    try:
        return list(range(1, Integer_.validate_python(value) + 1))
    except pydantic.ValidationError:
        raise expected(f"a list of seeds, or how many ({BOUNDS['runs']:,} at most)") from None


def _metric(value: Any) -> Any:
    if value == {}:
        raise expected("`loss`, `bits_per_byte`, {accuracy: TASK} or another metric")
    return value


def _share(value: Any) -> Any:
    """`2%` as 0.02."""
    return float(value[:-1]) / 100 if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?%", value) else value


def _match(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    return {name: TOLERANCES.get(name) for name in names} if isinstance(names, list) else value


Integer_ = pydantic.TypeAdapter(Annotated[Integer, Field(gt=0, le=BOUNDS["runs"])])
Share = Annotated[Number, BeforeValidator(_share), Field(ge=0, lt=1)]


class DecisionRule(Section):
    """The decision rule, fixed before the first run."""

    alpha: Annotated[Number, Field(ge=1e-6, lt=0.5)] = Field(
        0.05, description="chance of a wrong better or worse, over all arms and however often one looks"
    )
    smallest_effect: Annotated[Number, Field(gt=0, le=BOUNDS["metric"])] = Field(
        description="the smallest difference that matters, in units of the metric"
    )
    minimum_seeds: Annotated[Integer, Field(ge=2, le=BOUNDS["runs"])] = Field(
        3, description="no verdict before this many pairs"
    )
    maximum_seeds: Annotated[Integer, Field(gt=0, le=BOUNDS["runs"])] | None = Field(
        None, description="no more than this; null: as many as `seeds`"
    )


class ComputeCurve(Section):
    """Further lengths of the baseline, from which a difference in loss is read as one in compute."""

    tokens: Annotated[list[PositiveInteger], Field(min_length=1, max_length=1000)] = Field(
        description="lengths of the baseline to train, its own may be among them"
    )
    seeds: Annotated[list[NonNegativeInteger], BeforeValidator(_seeds)] = Field(default=[1, 2])


class Statement(Section):
    """experiment.yaml as it is written."""

    hypothesis: Text = Field(description="a sentence that says what is expected; the report quotes it")
    baseline: Text = Field(description="the config to compare with, relative to this file, or gptlab:NAME")
    common: dict[str, Any] = Field({}, description="a diff that all arms share, the baseline too")
    arms: dict[str, dict[str, Any] | Literal["baseline"] | None] = Field(
        description="by name, each a diff against the baseline; the word `baseline` makes an A/A arm"
    )
    seeds: Annotated[list[NonNegativeInteger], BeforeValidator(_seeds)] = Field(
        description="a list, or how many; used in this order"
    )
    metric: Annotated[Metric, BeforeValidator(_metric)] = Field(
        default=Metric(), description="what is measured: loss, bits_per_byte, or one of `metric.…`"
    )
    match: Annotated[dict[Quantity, Share], BeforeValidator(_match)] = Field(
        default={"tokens": 0.0}, description="what must be equal for a verdict, and within which tolerance"
    )
    decision: DecisionRule = Field(description="the rule, see `decision.…`")
    tune: dict[str, list[Any]] = Field({}, description="a grid that every arm is tuned over; x0.5 is relative")
    tune_seeds: Annotated[list[NonNegativeInteger], Field(min_length=1), BeforeValidator(_seeds)] = Field(
        default=[101], description="seeds of the tuning runs; the comparison must not use them"
    )
    compute_curve: ComputeCurve | None = Field(
        None, description="further lengths of the baseline, from which a difference is read as compute"
    )
    dollars_per_hour: Annotated[Number, Field(ge=0)] | None = Field(
        None, description="what an hour of one device costs; null: by the table of GPUs"
    )

    @pydantic.model_validator(mode="after")
    def _seeds_make_sense(self) -> Statement:
        for name, seeds in (("seeds", self.seeds), ("tune_seeds", self.tune_seeds)):
            twice = [seed for seed in seeds if seeds.count(seed) > 1]
            if twice:
                raise broken_rule(
                    f"{twice[0]} is there twice; a repeated seed is the same run, not more evidence", key=name
                )
        shared = set(self.seeds) & set(self.tune_seeds)
        if self.tune and shared:
            raise broken_rule(
                f"{min(shared)} is one of `seeds`; what was tuned on must not be the evidence", key="tune_seeds"
            )
        if self.max_seeds < self.decision.minimum_seeds:
            raise broken_rule(f"{self.max_seeds} are fewer than decision.minimum_seeds", key="seeds")
        points = math.prod(len(values) for values in self.tune.values())
        for key, values in self.tune.items():
            if not values:
                raise broken_rule("an empty list tunes nothing; give it values, or remove the key", key=f"tune.{key}")
            if key.split(".")[0] in ("seed", "name", "base", "stages"):
                raise broken_rule(f"{key!r} is the experiment's to set; remove it", key=f"tune.{key}")
        if self.tune and points * len(self.tune_seeds) * (len(self.arms) + 1) > BOUNDS["runs"]:
            raise broken_rule(f"{points:,} points of the grid are too many runs; shorten the lists", key="tune")
        return self

    @property
    def max_seeds(self) -> int:
        """The maximum number of pairs of a verdict."""
        return self.decision.maximum_seeds or len(self.seeds)

    @property
    def max_runs(self) -> int:
        """How many runs it takes where no arm has a verdict early and none is there already."""
        conditions, points = len(self.arms) + 1, math.prod(len(values) for values in self.tune.values())
        tuning = points * len(self.tune_seeds) if self.tune else 0
        curve = len(self.compute_curve.tokens) * len(self.compute_curve.seeds) if self.compute_curve else 0
        return conditions * (self.max_seeds + tuning) + curve

    @property
    def all_seeds(self) -> list[int]:
        """The seeds in the order in which they are used; after those that are listed, the next free numbers."""
        taken = {*self.seeds, *self.tune_seeds}
        free = (number for number in itertools.count(1) if number not in taken)
        return [*self.seeds, *itertools.islice(free, max(0, self.max_seeds - len(self.seeds)))][: self.max_seeds]


@dataclass(frozen=True)
class Arm:
    """One condition of an experiment: a resolved config without its seed."""

    name: str
    config: RunConfig
    hash: str
    diff: list[tuple[str, Any, Any]]  # against the baseline: dotted key, there, here
    repeats_baseline: bool = False
    measured_on: Identity = field(default_factory=dict)  # what its validations will be read from

    @property
    def shared_documents(self) -> int:
        """How many documents of its validation text are training text too, as far as its data sets say."""
        data = self.config.data
        paths = list(data.sources.values()) if data.sources else [data.path] if data.path else []
        manifests = (load_manifest(Path(path)) for path in paths)
        return sum((one.shared_documents or {}).get("validation", 0) for one in manifests if one is not None)

    def seeded(self, seed: int) -> RunConfig:
        """The config of the run with `seed`."""
        init = seed + REPEAT_OFFSET if self.repeats_baseline else seed
        return with_seed(self.config, init=init, data=seed, dropout=init)


@dataclass(frozen=True)
class Experiment:
    """A resolved experiment: every arm is a config that has been validated."""

    folder: Path
    statement: Statement
    baseline: Arm
    arms: list[Arm]
    grid: list[dict[str, Any]] = field(default_factory=list)  # points of `tune`, each {dotted key: value}

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.resolve().name

    @property
    def all_arms(self) -> list[Arm]:
        """The baseline, then the others."""
        return [self.baseline, *self.arms]

    def only(self, names: Sequence[str]) -> Experiment:
        """The same experiment with a subset of its arms. Raises ConfigError for an unknown name."""
        known = {arm.name: arm for arm in self.arms}
        for name in names:
            if name not in known:
                raise ConfigError(f"{option('arms')}: no arm {name!r} in {self.folder}; {did_you_mean(name, known)}")
        return Experiment(self.folder, self.statement, self.baseline, [known[n] for n in names], self.grid)


def with_seed(config: RunConfig, *, init: int, data: int, dropout: int) -> RunConfig:
    """`config` with other seeds."""
    return config.model_copy(
        update={"seed": config.seed.model_copy(update={"init": init, "data": data, "dropout": dropout})}
    )


def read_statement(folder: str | Path) -> tuple[Statement, RunConfig]:
    """The statement in `folder` and the config of its baseline; data are not asked for.

    Raises ConfigError for what is wrong in either.
    """
    path, statement, origins, target = _read(folder)
    return statement, _resolve(BASELINE, path, target, [("common", statement.common)], origins)


def load_experiment(folder: str | Path) -> Experiment:
    """The experiment in `folder` (which holds experiment.yaml). Raises ConfigError, with file and line, for whatever
    is wrong in it or in a config that it leads to, so that nothing is found out after the first run.
    """
    path, statement, origins, target = _read(folder)
    baseline = _arm(BASELINE, path, target, [("common", statement.common)], origins, None)
    arms: list[Arm] = []
    for name, diff in statement.arms.items():
        place = origins[("arms", name)]
        if not _NAME.fullmatch(name) or name == BASELINE:
            raise ConfigError(f"{place}: {name!r} is no name for an arm; use letters, digits, . and -, not `baseline`")
        parts = [("common", statement.common), (f"arms.{name}", diff if isinstance(diff, dict) else {})]
        arm = _arm(name, path, target, parts, origins, baseline, repeat=diff == BASELINE)
        same = ((a, (a.hash, a.repeats_baseline) == (arm.hash, arm.repeats_baseline)) for a in [baseline, *arms])
        twin = next((a for a, found in same if found), None)
        if twin is not None:
            raise ConfigError(
                f"{place}: arm {name!r} resolves to the same config as {twin.name!r}; change something in it, or write "
                f"`{name}: baseline` for an A/A test"
            )
        _check_measured_alike(statement.metric, arm, baseline, place)
        arms.append(arm)
    if not arms:
        raise ConfigError(f"{path}: no arms; name at least one thing to compare with the baseline")
    grid = [dict(zip(statement.tune, point, strict=True)) for point in itertools.product(*statement.tune.values())]
    experiment = Experiment(path.parent, statement, baseline, arms, grid if statement.tune else [])
    for arm in experiment.all_arms:
        for point in experiment.grid:
            tuned = apply_tuning(arm, point)  # a key that an arm has not is found out now
            _check_measured_alike(statement.metric, tuned, baseline, f"{path}: tune")
    return experiment


def _read(folder: str | Path) -> tuple[Path, Statement, Mapping[KeyPath, Origin], Path]:
    """The file of the statement in `folder`, what it says and on which line, and the file of its baseline."""
    folder = Path(folder)
    path = folder if folder.suffix == ".yaml" else folder / "experiment.yaml"
    if not path.is_file():
        what = not_a_folder(folder, "an experiment's folder", "experiment.yaml")
        raise ConfigError(f"{what}; {how_to_begin(folder)}")
    values, origins = read_yaml(path)
    statement = _validate(values, origins, path)
    try:
        target = find_config(statement.baseline, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{origins[('baseline',)]}: {error}") from None
    if not target.exists():
        raise ConfigError(
            f"{origins[('baseline',)]}: no baseline config at {target}; the path is relative to this file, and "
            f"{PREFIX}NAME is one that comes with gptlab"
        )
    return path, statement, origins, target


def _check_measured_alike(metric: Metric, arm: Arm, baseline: Arm, place: object) -> None:
    """Raise ConfigError where the metric of an arm would be read from something else than the baseline's."""
    if metric.is_evaluated or not metric.key.startswith("val/"):
        return
    if changed := differences(arm.measured_on, baseline.measured_on, by_byte=metric.is_by_byte):
        by_byte = "" if metric.is_by_byte else ", or measure bits_per_byte over the whole text for another tokenizer"
        raise ConfigError(
            f"{place}: arm {arm.name!r} would be measured on something else than the baseline, {changed[0]}; keep data "
            f"and `eval` as they are there (eval.sequence_length sets the window){by_byte}"
        )


def apply_tuning(arm: Arm, point: Mapping[str, Any]) -> Arm:
    """`arm` with a point of the grid: `{"optimizer.lr": 3e-4}`, or `x0.5`, half of what the arm has.

    Raises ConfigError where the arm has no such key.
    """
    values = arm.config.plain()
    settings = []
    for key, value in point.items():
        if isinstance(value, str) and (factor := re.fullmatch(r"[x×]\s*(\d*\.?\d+(?:e[+-]?\d+)?)", value.strip())):
            current: Any = values
            for part in key.split("."):
                current = current.get(part) if isinstance(current, dict) else None
            if not isinstance(current, int | float) or isinstance(current, bool):
                raise ConfigError(f"tune.{key}: arm {arm.name!r} has no number there to multiply (it is {current!r})")
            value = float(f"{current * float(factor[1]):.6g}")
        settings.append(f"{key}={value}")
    try:
        config = override(arm.config, settings, {})
    except ConfigError as error:
        raise ConfigError(f"tune: arm {arm.name!r}: {error}") from None
    digest, identity = _identify(config)
    return Arm(arm.name, config, digest, arm.diff, arm.repeats_baseline, identity)


def hash_of(config: RunConfig) -> str:
    """The hash that names a run of `config`: over everything that changes results, the content of its data included."""
    return _identify(config)[0]


def _identify(config: RunConfig) -> tuple[str, Identity]:
    """The hash of `config`, and what its validations will be read from."""
    tokenizer, train_sets, validation = open_splits(config.data)
    digest = config_hash(config, {name: dataset.fingerprint for name, dataset in train_sets.items()})
    return digest, measured_on(config, tokenizer, validation)


def _arm(
    name: str,
    path: Path,
    target: Path,
    parts: list[tuple[str, dict[str, Any]]],
    origins: Mapping[KeyPath, Origin],
    baseline: Arm | None,
    *,
    repeat: bool = False,
) -> Arm:
    config = _resolve(name, path, target, parts, origins)
    changed = [] if baseline is None else difference(baseline.config.plain(), config.plain())
    digest, identity = _identify(config)
    return Arm(name, config, digest, [d for d in changed if d[0] != "name"], repeat, identity)


def _resolve(
    name: str, path: Path, target: Path, parts: list[tuple[str, dict[str, Any]]], origins: Mapping[KeyPath, Origin]
) -> RunConfig:
    """The config of the arm `name`: the file `target`, and over it the diffs `parts` of the statement at `path`."""
    layers = read_layers(target)
    if any("stages" in layer for _, layer, _ in layers):
        raise ConfigError(
            f"{target}: `stages` make several runs; an experiment compares single ones, so name one stage"
        )
    own = layers[-1][1]["name"]
    for prefix, diff in parts:
        for key in ("seed", "name", "base", "stages"):
            if key in diff:
                raise ConfigError(
                    f"{_place(origins, path, prefix, key)}: `{key}` is the experiment's to set; remove it"
                )
        start = tuple(prefix.split(".", 1))
        places = {where[len(start) :]: origin for where, origin in origins.items() if where[: len(start)] == start}
        layers.append((path, absolute_paths(dict(diff), path.parent), places))
    layers[-1][1]["name"] = own if name == BASELINE else _run_name(path.resolve().parent.name, name)
    config, written = resolve(layers)
    require_optimizer(config, {place[0] for place in written if place}, f"{path}: {name}")
    return config


def _run_name(experiment: str, arm: str) -> str:
    """What an arm's runs are called, without saying a name twice."""
    return arm if f"{arm}-".startswith(f"{experiment}-") else f"{experiment}-{arm}"


def _place(origins: Mapping[KeyPath, Origin], path: Path, prefix: str, key: str) -> str:
    return str(origins.get((*prefix.split(".", 1), key), path))


def _validate(values: dict[str, Any], origins: Mapping[KeyPath, Origin], path: Path) -> Statement:
    for missing in ("baseline", "hypothesis", "arms", "seeds", "decision"):
        if values.get(missing) in (None, {}):
            raise ConfigError(f"{path}: no `{missing}`; {_WHY[missing]}")
    return validated(Statement, values, origins, file=path)


_WHY = {
    "baseline": "name the config that the arms are compared with, relative to this file",
    "hypothesis": "say in a sentence what you expect, before you know",
    "arms": "name at least one thing to compare with the baseline",
    "seeds": "list the seeds (or their number) that the arms are paired by",
    "decision": "write decision: {smallest_effect: 0.01}, the smallest difference that would matter to you",
}
