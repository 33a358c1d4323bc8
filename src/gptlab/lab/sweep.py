"""Search: many trials of a config by Optuna, each an ordinary run that is found again by its hash.

The study lives in SQLite, so that the same command goes on with it, and several at once share it. A trial in progress
names the process that has it, which holds a lock as long as it lives: however it ends, whoever comes next sees that and
takes the trial up. What is best of many trials is best partly by luck: its value here is too good, and the runs that
chose it are no evidence for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gptlab.config import RunConfig, dump_yaml
from gptlab.config.identity import UNHASHED
from gptlab.config.load import override
from gptlab.config.yamlfile import parse_yaml
from gptlab.console import say
from gptlab.errors import ConfigError, GptlabError
from gptlab.files import atomic_folder, exclusive, is_held, write_atomic
from gptlab.lab.execution import Device, train_all
from gptlab.lab.experiment import hash_of, with_seed
from gptlab.lab.metric import Metric
from gptlab.lab.report.drawing import COLOURS, GREY, image
from gptlab.lab.store import Store, Wanted
from gptlab.record.metrics import read_columns

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

Sampler = Literal["tpe", "random", "grid"]
Value = str | int | float | bool | None
FIRST_SEED = 101
"""Where the seeds of trials begin: those by which experiments tune, and not those that are evidence."""

ENOUGH = 20
"""Different trials with a value before importances are shown. In made-up studies of two to four things of which one
matters, that one came out first in 95 of 100 with this many, and in 85 with half of them."""

_FRESH_SEEDS = [1, 2, 3, 4, 5, 6, 7, 8]  # of the experiment that a sweep suggests: none of its own
_RUNGS = 16  # a run may be stopped after 1/16, 1/8, 1/4 and 1/2 of its steps
_RANGE = re.compile(r"\s*([^:\s\[]+?)\.\.([^:\s]+?)\s*(?::\s*(log|step=(\S+)))?\s*")
_NO_RESULT = tuple(key for key in UNHASHED if key not in ("data.path", "data.sources", "data.tokenizer"))
_REASON = "reason"
_OWNER = "owner"
_TURN = 60.0  # seconds to wait for others who look for a trial
_BEAT = 60.0  # seconds between signs of life, for those who cannot see the lock: other machines
_SILENT = 600.0  # seconds without one after which a process elsewhere is taken for dead


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole where both are; drawn in the logarithm, or in steps."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)


Space = dict[str, Range | list[Value]]


def parse_space(texts: Sequence[str], config: RunConfig) -> Space:
    """`optimizer.lr=1e-4..1e-2:log`, `model.dim=64..128:step=32` or `model.block.mlp=[GELU, SwiGLU]`, by dotted key.

    Raises GptlabError for what is none of these, an empty range or list, keys or values that `config` cannot take, and
    keys that change no result.
    """
    space: Space = {}
    for text in texts:
        key, equals, written = (part.strip() for part in text.partition("="))
        if not equals or not key or not written:
            raise GptlabError(f"--param {text}: write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=[A, B]")
        if any(f"{key}.".startswith(f"{same}.") for same in _NO_RESULT):
            raise GptlabError(f"--param {text}: {key} changes no result, or is not a trial's to set; leave it out")
        if key in space:
            raise GptlabError(f"--param {text}: {key} is there twice; give it once")
        values = _range(text, match) if (match := _RANGE.fullmatch(written)) else _choices(text, written)
        for value in _extremes(values):
            try:
                override(config, [_setting(key, value)], {})
            except ConfigError as error:
                message = str(error).removeprefix(f"--set {_setting(key, value)}: ")
                raise GptlabError(f"--param {text}: {message}") from None
        space[key] = values
    if not space:
        raise GptlabError("nothing to search over; give --param, for example --param optimizer.lr=1e-4..1e-2:log")
    return space


def _extremes(values: Range | list[Value]) -> Sequence[Value]:
    return [values.low, values.high] if isinstance(values, Range) else values


def _range(text: str, match: re.Match[str]) -> Range:
    low, high, kind, step = match.groups()
    try:
        found = Range(_number(low), _number(high), kind == "log", None if step is None else _number(step))
    except ValueError:
        raise GptlabError(f"--param {text}: the ends of a range are numbers, such as 1e-4..1e-2:log") from None
    if not found.low < found.high or (found.log and found.low <= 0) or (found.step is not None and found.step <= 0):
        raise GptlabError(f"--param {text}: the range is empty; low must be below high (and above 0 for log)")
    if found.step is not None and found.step > found.high - found.low:
        raise GptlabError(f"--param {text}: the step is wider than the range, so that only {low} would be tried")
    return found


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _choices(text: str, written: str) -> list[Value]:
    values, _ = parse_yaml(written, f"--param {text}")
    if not isinstance(values, list) or not values:
        raise GptlabError(f"--param {text}: give a range LOW..HIGH, or choices in brackets: [GELU, SwiGLU]")
    return [value if isinstance(value, Value) else json.dumps(value) for value in values]


def _setting(key: str, value: Value) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _configured(config: RunConfig, parameters: Mapping[str, Any]) -> RunConfig:
    """`config` with a trial's values. Raises ConfigError where they do not go together."""
    return override(config, [_setting(key, value) for key, value in parameters.items()], {})


# ---------------------------------------------------------------- the study


@dataclass
class Sweep:
    """A search in progress.

    `seeds`: runs a trial, whose mean counts. `prune`: stop trials that fall behind, by ASHA.
    """

    config: RunConfig
    space: Space
    metric: Metric
    trials: int
    sampler: Sampler
    prune: bool
    seeds: int
    store: Store
    study: optuna.Study
    locks: Path
    active: list[_Active] = field(default_factory=list)
    name: str = field(default_factory=lambda: f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}")
    seen: float = -np.inf

    def run(self, devices: Sequence[Device]) -> None:
        """Train until the study has its trials, those that other processes have taken among them.

        Nothing is tidied up on the way out: what an interrupt leaves is what a kill leaves, and is taken up as that.
        """
        with exclusive(self._lock, GptlabError(f"{self._lock}: held by another process; try again")):
            while True:
                try:
                    train_all(lambda: self._wanted(len(devices)), self.store, devices=devices, watch=self._falls_behind)
                except GptlabError as error:
                    if not self._is_of_a_trial(str(error)):
                        raise
                    continue
                if self.active:  # another process was faster; its run is as good, and is told of now
                    continue
                if len(self.done) >= self.trials or not (others := self._running()):
                    return
                say(f"waiting for {', '.join(f'trial {number}' for number in others)}, in training by another process")
                while self._running() == others:
                    time.sleep(1)

    @property
    def _lock(self) -> Path:
        return self.locks / f".{self.name}.lock"

    def _running(self) -> list[int]:
        """Trials that a living process has in hand."""
        running = self.study.get_trials(deepcopy=False, states=(_states().RUNNING,))
        return [trial.number for trial in running if _is_alive(trial)]

    @property
    def done(self) -> list[FrozenTrial]:
        """Trials with an outcome: a value, pruned, or stopped by themselves."""
        states = _states()
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state in (states.COMPLETE, states.PRUNED)
            or (trial.state == states.FAIL and _REASON in trial.user_attrs)
        ]

    @property
    def different(self) -> int:
        """How many of the trials with a value were of different values: a sampler may draw the same again."""
        return len({json.dumps(trial.params, sort_keys=True) for trial in self.ranked})

    @property
    def ranked(self) -> list[FrozenTrial]:
        """Trials with a value, the best first."""
        complete = [trial for trial in self.done if trial.state == _states().COMPLETE]
        return sorted(complete, key=lambda trial: _value(trial), reverse=not self.metric.lower_is_better)

    def _wanted(self, workers: int) -> list[Wanted]:
        """The next run of every trial in progress; new trials are begun where a worker is free."""
        self._give_sign_of_life()
        self._settle()
        with _turn(self.locks):
            while len(self.active) < workers and (trial := self._next()) is not None:
                if runs := self._runs(trial):
                    trial.set_user_attr("runs", [self.store.folder(run).name for run in runs])
                    reported = self.study.trials[trial.number].intermediate_values
                    self.active.append(_Active(trial, runs, {*map(float, reported)}))
                    self._settle()
        missing = ([run for run in each.runs if self.store.finished(run) is None] for each in self.active)
        return [runs[0] for runs in missing if runs]

    def _next(self) -> Trial | None:
        """A trial for this process, within the number asked for; one that a dead process left comes before a new one.

        To be called in turn only: between counting and taking, no other process may take one.
        """
        mine = {each.trial.number for each in self.active}
        running = self.study.get_trials(deepcopy=False, states=(_states().RUNNING,))
        others = [trial for trial in running if trial.number not in mine]
        left = [trial for trial in others if not _is_alive(trial)]
        room = self.trials - len(self.done) - len(mine) - (len(others) - len(left))
        for trial in left[max(0, room) :]:
            self.study.tell(trial.number, state=_states().FAIL, skip_if_finished=True)
        if room <= 0:
            return None
        taken = self._take_up(left[0]) if left else self.study.ask(_distributions(self.space))
        taken.set_user_attr(_OWNER, self._owner())
        return taken

    def _take_up(self, left: FrozenTrial) -> Trial:
        """Go on with a trial whose process is gone."""
        from optuna.trial import Trial

        trial = Trial(self.study, left._trial_id)
        for key, distribution in _distributions(self.space).items():
            trial._suggest(key, distribution)  # as `ask` does it, who may have been killed in the middle
        if (owner := left.user_attrs.get(_OWNER)) is not None:
            Path(owner["lock"]).unlink(missing_ok=True)  # a kill leaves the file, though nobody holds it
        say(f"trial {trial.number}: taken up, the process that had it is gone")
        return trial

    def _owner(self) -> dict[str, Any]:
        return {"host": platform.node(), "lock": str(self._lock.resolve()), "seen": time.time()}

    def _give_sign_of_life(self) -> None:
        if time.monotonic() - self.seen > _BEAT:
            self.seen = time.monotonic()
            for each in self.active:
                each.trial.set_user_attr(_OWNER, self._owner())

    def _runs(self, trial: Trial) -> list[Wanted]:
        """The runs of a trial; none where its values do not go together, which is said and is its outcome."""
        try:
            config = _configured(self.config, trial.params)
        except ConfigError as error:
            self._fail(trial, str(error))
            return []
        if self.prune:
            rung = max(1, config.total_steps // _RUNGS)
            every = min(config.eval.every or rung, rung)
            config = config.model_copy(update={"eval": config.eval.model_copy(update={"every": every})})
        digest = hash_of(config)
        return [
            Wanted(with_seed(config, init=seed, data=seed, dropout=seed), digest, f"trial {trial.number} seed {seed}")
            for seed in range(FIRST_SEED, FIRST_SEED + self.seeds)
        ]

    def _settle(self) -> None:
        """Tell the study of every trial that has come to its end."""
        for each in list(self.active):
            failures = [found for run in each.runs if (found := self.store.failure(self.store.folder(run)))]
            if all(self.store.finished(run) is not None for run in each.runs):
                values = [self.metric.value(self.store.folder(run)) for run in each.runs]
                self.study.tell(each.trial, float(np.mean(values)), skip_if_finished=True)
                say(f"trial {each.trial.number}: {np.mean(values):.4f} with {_parameters(each.trial.params)}")
            elif failures:
                self._fail(each.trial, failures[0].reason)
            else:
                continue
            self.active.remove(each)

    def _fail(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr(_REASON, reason)
        self.study.tell(trial, state=_states().FAIL, skip_if_finished=True)
        say(f"trial {trial.number} with {_parameters(trial.params)}: {reason}")

    def _is_of_a_trial(self, error: str) -> bool:
        """Whether a run could not be trained because of its trial's values, which is that trial's outcome.

        Three heads for a width of 64 are found out where the model is built. The error begins with a key then; one of
        a section that is not searched, such as a device that is not there, would stop every other trial, too.
        """
        sections = {key.partition(".")[0] for key in self.space}
        for each in self.active:
            for run in each.runs:
                reason = error.removeprefix(f"{run.label}: ")
                if reason != error and reason.partition(":")[0].partition(".")[0] in sections:
                    self.active.remove(each)
                    self._fail(each.trial, reason)
                    return True
        return False

    def _falls_behind(self, run: Wanted, folder: Path) -> bool:
        """Report new validations of a run, the first of its trial, and say whether it is to be stopped."""
        self._give_sign_of_life()
        each = next((each for each in self.active if self.prune and each.runs[0].suffix == run.suffix), None)
        if each is None:
            return False
        columns = read_columns(folder / "metrics.jsonl", ["step", self.metric.key])
        for step, value in zip(columns["step"], columns[self.metric.key], strict=True):
            if not np.isfinite(value) or step in each.reported or step >= run.config.total_steps:
                continue
            each.reported.add(step)
            each.trial.report(float(value), int(step))
            if each.trial.should_prune():
                self.study.tell(each.trial, state=_states().PRUNED, skip_if_finished=True)
                self.active.remove(each)
                say(f"trial {each.trial.number}: pruned at step {step:.0f}")
                return True
        return False


@dataclass
class _Active:
    trial: Trial
    runs: list[Wanted]
    reported: set[float] = field(default_factory=set)


def _is_alive(trial: FrozenTrial) -> bool:
    """Whether the process that has a trial is there. Where its lock cannot be seen, its last sign of life says so."""
    owner = trial.user_attrs.get(_OWNER)
    if owner is None:  # killed before it could put its name down
        return False
    if owner["host"] != platform.node() or os.name == "nt":
        return bool(time.time() - owner["seen"] < _SILENT)
    return is_held(Path(owner["lock"]))


@contextlib.contextmanager
def _turn(locks: Path) -> Iterator[None]:
    """Hold what only one process at a time may: to create a study, and to take a trial of one."""
    busy = GptlabError(f"{locks}: other processes keep this study busy; try again")
    until = time.monotonic() + _TURN
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(locks / ".turn.lock", busy))
                break
            except GptlabError:
                if time.monotonic() > until:
                    raise
        yield


def open_sweep(
    config: RunConfig,
    space: Space,
    store: Store,
    *,
    trials: int = 20,
    sampler: Sampler = "tpe",
    metric: Metric,
    prune: bool = False,
    seeds: int = 1,
    storage: str | None = None,
    seed: int = 0,
) -> Sweep:
    """The study of a config, a space, a metric and a number of seeds: begun, or gone on with.

    `storage`: an Optuna URL; by default sqlite in the store's `.sweeps`. `seed`: of the sampler of a new study.
    Raises GptlabError without Optuna, for a grid with a range, for pruning where trials differ in length, and for a
    storage that cannot be opened.
    """
    optuna = _optuna()
    _check_numbers(trials, seeds)
    name = study_name(config, space, metric, seeds)
    points = _points(space) if sampler == "grid" else []
    pruner = optuna.pruners.NopPruner()
    if prune:
        _require_one_length(config, space)
        rung = max(1, config.total_steps // _RUNGS)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=2)
    direction = "minimize" if metric.lower_is_better else "maximize"
    url, locks = _place(storage, store)
    try:
        with _turn(locks):
            opened = _connect(url)
            try:
                study = optuna.create_study(study_name=name, storage=opened, direction=direction, pruner=pruner)
            except optuna.exceptions.DuplicatedStudyError:
                study = optuna.load_study(study_name=name, storage=opened, pruner=pruner)
                # Who goes on, or joins, must not draw again what was drawn first.
                seed = int(np.random.SeedSequence([seed, len(study.trials), os.getpid()]).generate_state(1)[0])
            samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
            study.sampler = samplers.get(sampler, optuna.samplers.RandomSampler)(seed=seed)
            for point in points:
                study.enqueue_trial(point, skip_if_exists=True)
    except GptlabError:
        raise
    except Exception as error:  # whatever a driver of a database raises
        raise GptlabError(f"--storage {url}: {str(error).splitlines()[0]}") from None
    return Sweep(config, space, metric, len(points) or trials, sampler, prune, seeds, store, study, locks)


def _place(storage: str | None, store: Store) -> tuple[str, Path]:
    """The study's URL, and the folder for the locks of those who share it.

    Raises GptlabError for a file that is no study; nothing is made then, and nothing is written into it.
    """
    if storage is None:
        folder = (store.root / ".sweeps").resolve()
        return f"sqlite:///{folder / 'studies.db'}", folder
    if "://" not in storage:
        raise GptlabError(f"--storage {storage}: no URL; for a file write sqlite:///{storage}")
    kind, _, rest = storage.partition(":///")
    if not kind.startswith("sqlite") or not rest:
        return storage, store.root / ".sweeps"
    path = Path(rest.partition("?")[0])
    if not path.parent.is_dir():
        raise GptlabError(f"--storage {storage}: there is no folder {path.parent}")
    if path.exists() and not _holds_studies(path):
        raise GptlabError(f"--storage {storage}: {path} is there and is no study; name another file")
    return storage, path.parent.resolve()


def _holds_studies(path: Path) -> bool:
    """Whether a file is Optuna's, or empty: into a database of something else Optuna would put its own tables."""
    import sqlite3

    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return False
    return not tables or "studies" in tables


def _connect(url: str) -> Any:
    """What Optuna takes for a storage; SQLite waits for other writers for as long as a turn may last."""
    from optuna.storages import RDBStorage

    if not url.startswith("sqlite"):
        return url
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _TURN}})


def study_name(config: RunConfig, space: Space, metric: Metric, seeds: int) -> str:
    """Unlike for whatever makes another search of it."""
    what = json.dumps([hash_of(config), {k: str(v) for k, v in sorted(space.items())}, metric.label, seeds])
    return f"{config.name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


def _check_numbers(trials: int, seeds: int) -> None:
    for name, number in (("trials", trials), ("seeds", seeds)):
        if number < 1:
            raise GptlabError(f"--{name} {number}: nothing would be trained; give 1 or more")


def _require_one_length(config: RunConfig, space: Space) -> None:
    """A rung is a step: at the same one, a short run has come further in its schedule than a long one."""
    for key, values in space.items():
        for value in _extremes(values):
            steps = override(config, [_setting(key, value)], {}).total_steps
            if steps != config.total_steps:
                raise GptlabError(
                    f"--prune asha: {_setting(key, value)} makes a run of {steps} steps, and the config has "
                    f"{config.total_steps}; pruning compares trials at the same step, which says nothing where their "
                    f"lengths differ; leave out --prune, or {key}"
                )


def _points(space: Space) -> list[dict[str, Value]]:
    """Every combination of choices."""
    for key, values in space.items():
        if isinstance(values, Range):
            raise GptlabError(f"--param {key}: a grid needs choices, not a range; write {key}=[A, B], or --sampler tpe")
    lists = [values for values in space.values() if isinstance(values, list)]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, values in space.items():
        if isinstance(values, Range) and values.step is not None:
            # Steps that do not meet `high` end below it. Optuna would do the same, and warn each time.
            low, high, step = (Decimal(str(number)) for number in (values.low, values.high, values.step))
            values = replace(values, high=type(values.high)(low + (high - low) // step * step))
        if not isinstance(values, Range):
            found[key] = CategoricalDistribution(values)
        elif values.whole:
            found[key] = IntDistribution(int(values.low), int(values.high), values.log, int(values.step or 1))
        else:
            found[key] = FloatDistribution(values.low, values.high, values.log, values.step)
    return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise GptlabError("a sweep needs Optuna; install it with: pip install 'gptlab[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


# ---------------------------------------------------------------- for people


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _parameters(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(sweep: Sweep, most: int = 10) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the best trials: number, value, and what was set."""
    keys = list(sweep.space)
    rows = [
        [str(trial.number), f"{_value(trial):.4f}", *(_short(trial.params[key]) for key in keys)]
        for trial in sweep.ranked[:most]
    ]
    return ["trial", sweep.metric.label, *keys], rows


def best_diff(sweep: Sweep) -> dict[str, Any]:
    """What the best trial sets, as a nested dictionary for a YAML file. Raises GptlabError where none has a value."""
    if not sweep.ranked:
        raise GptlabError("no trial came to its end; widen the space, or see what the trials said")
    found: dict[str, Any] = {}
    for key, value in sweep.ranked[0].params.items():
        *parents, last = key.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = parse_yaml(value, key)[0] if isinstance(value, str) else value
    return found


def importances(sweep: Sweep) -> dict[str, float]:
    """The share of each thing that was varied in whether a trial comes into the better half, the largest first.

    By PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv:2304.10255), which compares where the better half lies with
    where all trials lie, one thing at a time. Empty with fewer than `ENOUGH` different trials, or than two things that
    vary.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    values = [_value(trial) for trial in sweep.ranked]
    varied = [key for key, choices in sweep.space.items() if len(set(map(str, _extremes(choices)))) > 1]
    if sweep.different < ENOUGH or len(varied) < 2 or len(set(values)) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older versions call it experimental
        found = get_param_importances(
            sweep.study, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.5), params=varied
        )
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def remarks(sweep: Sweep) -> list[str]:
    """What a careful reader wants to know beside the table of trials."""
    finished, said = sweep.different, []
    if finished < len(sweep.ranked):
        said.append(
            f"{len(sweep.ranked) - finished} of {len(sweep.ranked)} trials drew what another had drawn, and are its "
            "run; --sampler grid takes each combination of choices once"
        )
    if importances(sweep):
        said.append(
            f"importance: the share in whether a trial is in the better half of {finished}, among what was varied and "
            "where; of few trials it is rough"
        )
    elif len(sweep.space) > 1 and finished < ENOUGH:
        said.append(
            f"no importances: they need {ENOUGH} trials with a value, and there are {finished}; of fewer, the "
            "order is too often chance"
        )
    if finished > 1:
        said.append(
            f"the best of {finished} trials is best partly by luck: its number is too good (the winner's curse), and "
            "the seeds that chose it are no evidence"
        )
    return said


def confirmation(sweep: Sweep) -> Path | None:
    """The folder of an experiment, of the best trial against the config on other seeds, written where it is not there.

    None where the best trial is the config itself. Raises GptlabError where no trial has a value.
    """
    diff, best = best_diff(sweep), sweep.ranked[0]
    if hash_of(_configured(sweep.config, best.params)) == hash_of(sweep.config):
        return None
    folder = sweep.store.root / ".sweeps" / f"{sweep.study.study_name}-trial{best.number}"
    if (folder / "experiment.yaml").exists():
        return folder
    statement = {
        "hypothesis": f"The best trial of a sweep ({_parameters(best.params)}) is better than the config.",
        "baseline": "baseline.yaml",
        "arms": {"best": diff},
        "seeds": _FRESH_SEEDS,
        "metric": sweep.metric.model_dump(exclude_none=True),
        "decision": {"smallest_effect": 0.01},
    }
    with atomic_folder(folder) as aside:
        (aside / "baseline.yaml").write_text(dump_yaml(sweep.config.plain()), encoding="utf-8")
        head = "# Before the first run, set smallest_effect: what is smaller would not change what you do.\n"
        (aside / "experiment.yaml").write_text(head + dump_yaml(statement), encoding="utf-8")
    return folder


def write_sweep(sweep: Sweep, picture: Path | None = None) -> list[Path]:
    """Write the picture (to `picture`, or beside the studies) and all trials as JSON; returns both paths."""
    place = sweep.store.root / ".sweeps"
    picture = picture or place / f"{sweep.study.study_name}.png"
    results = place / f"{sweep.study.study_name}.json"
    best = sweep.ranked[0]
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state == _states().COMPLETE else None,
            "parameters": trial.params,
            "reason": trial.user_attrs.get(_REASON),
            "runs": trial.user_attrs.get("runs", []),
        }
        for trial in sweep.done
    ]
    content = {
        "study": sweep.study.study_name,
        "config": sweep.config.name,
        "metric": sweep.metric.label,
        "seeds": sweep.seeds,
        "best": {"trial": best.number, "value": best.value, "settings": best_diff(sweep)},
        "importances": importances(sweep) or None,
        "remarks": remarks(sweep),
        "trials": trials,
    }
    write_atomic(results, json.dumps(content, indent=1) + "\n")
    write_atomic(picture, draw(sweep))
    return [picture, results]


def draw(sweep: Sweep) -> bytes:
    """The value against the trial, with the best so far, and against each thing that was varied, as PNG."""
    return image(lambda figure, paint: _draw(sweep, figure), "png")


def _draw(sweep: Sweep, figure: Figure) -> None:
    trials = sorted(sweep.ranked, key=lambda trial: trial.number)
    values = np.array([_value(trial) for trial in trials])
    columns = min(3, 1 + len(sweep.space))
    rows = -(-(1 + len(sweep.space)) // columns)
    figure.set_size_inches(3.6 * columns, 3.0 * rows)
    plots = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    numbers = [trial.number for trial in trials]
    best = (np.minimum if sweep.metric.lower_is_better else np.maximum).accumulate(values)
    plots[0].plot(numbers, best, color=GREY, linewidth=1.2, drawstyle="steps-post", label="best so far")
    plots[0].scatter(numbers, values, color=COLOURS[0], s=22, zorder=3)
    plots[0].set_xlabel("trial")
    plots[0].xaxis.get_major_locator().set_params(integer=True)
    plots[0].legend(frameon=False, fontsize=8)
    shares = importances(sweep)
    for axes, (key, choices) in zip(plots[1:], sweep.space.items(), strict=False):
        if key in shares:
            axes.set_title(f"importance {shares[key]:.0%}", fontsize=8, loc="right")
        chosen = [trial.params[key] for trial in trials]
        if isinstance(choices, Range):
            axes.scatter(chosen, values, color=COLOURS[0], s=22)
            axes.set_xscale("log" if choices.log else "linear")
        else:
            axes.scatter([choices.index(value) for value in chosen], values, color=COLOURS[0], s=22)
            axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
            axes.set_xlim(-0.5, len(choices) - 0.5)
        axes.set_xlabel(key)
    for axes in plots[1 + len(sweep.space) :]:
        axes.set_visible(False)
    for axes in plots[::columns]:
        axes.set_ylabel(sweep.metric.label)
