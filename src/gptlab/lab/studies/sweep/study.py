"""The study: trials that several processes may share, each trained as ordinary runs.

A trial in progress names the process that has it, which holds a lock as long as it lives: however it ends, whoever
comes next sees that and takes the trial up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gptlab.config import RunConfig
from gptlab.config.numbers import require_count
from gptlab.console import say
from gptlab.errors import ConfigError, GptlabError, option
from gptlab.files import exclusive, is_held
from gptlab.lab.experiment.metric import Metric, check_alike
from gptlab.lab.experiment.spec import hash_of, with_seed
from gptlab.lab.runs.execution import Device, RunError, train_all
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.lab.studies.sweep.space import (
    Space,
    apply_parameters,
    distributions,
    format_parameters,
    grid_points,
    require_equal_lengths,
)
from gptlab.record.metrics import read_columns

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

Sampler = Literal["tpe", "random", "grid"]
FIRST_SEED = 101
"""Where the seeds of trials begin: those by which experiments tune, and not those that are evidence."""

REASON = "reason"
_OWNER = "owner"
_RUNGS = 16  # a run may be stopped after 1/16, 1/8, 1/4 and 1/2 of its steps
_ACCESS_TIMEOUT = 60.0  # seconds to wait for others who look for a trial
_HEARTBEAT = 60.0  # seconds between heartbeats, for processes on other machines, which cannot see the lock
_HEARTBEAT_TIMEOUT = 600.0  # seconds without one after which a process elsewhere is taken for dead


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
    active: list[_ActiveTrial] = field(default_factory=list)
    name: str = field(default_factory=lambda: f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}")
    seen: float = -np.inf
    measured: Path | None = None  # a run of the study, whose metric was read from what that of all others must be

    def run(self, devices: Sequence[Device]) -> None:
        """Train until the study has its trials, those that other processes have taken among them.

        Nothing is tidied up on the way out: what an interrupt leaves is what a kill leaves, and is taken up as that.
        """
        with exclusive(self._lock, GptlabError(f"{self._lock}: held by another process; try again")):
            while True:
                try:
                    train_all(
                        lambda: self._queue(len(devices)), self.store, devices=devices, should_stop=self._should_prune
                    )
                except RunError as error:
                    if not self._fail_trial_of(error):
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
        """Numbers of the trials that a living process is training."""
        running = self.study.get_trials(deepcopy=False, states=(states().RUNNING,))
        return [trial.number for trial in running if _is_alive(trial)]

    @property
    def done(self) -> list[FrozenTrial]:
        """Trials with an outcome: a value, pruned, or failed."""
        known = states()
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state in (known.COMPLETE, known.PRUNED)
            or (trial.state == known.FAIL and REASON in trial.user_attrs)
        ]

    @property
    def n_distinct(self) -> int:
        """How many distinct points the trials with a value have: a sampler may draw the same again."""
        return len({json.dumps(trial.params, sort_keys=True) for trial in self.ranked})

    @property
    def ranked(self) -> list[FrozenTrial]:
        """Trials with a value, the best first."""
        complete = [trial for trial in self.done if trial.state == states().COMPLETE]
        return sorted(complete, key=lambda trial: value_of(trial), reverse=not self.metric.lower_is_better)

    def _queue(self, workers: int) -> list[RunSpec]:
        """The next run of every trial in progress; new trials are begun where a worker is free."""
        self._send_heartbeat()
        self._conclude_trials()
        with _exclusive_access(self.locks):
            while len(self.active) < workers and (trial := self._claim_trial()) is not None:
                if runs := self._runs(trial):
                    trial.set_user_attr("runs", [self.store.folder(run).name for run in runs])
                    reported = self.study.trials[trial.number].intermediate_values
                    self.active.append(_ActiveTrial(trial, runs, {*map(float, reported)}))
                    self._conclude_trials()
        missing = ([run for run in each.runs if self.store.finished(run) is None] for each in self.active)
        return [runs[0] for runs in missing if runs]

    def _claim_trial(self) -> Trial | None:
        """A trial for this process, within the number asked for; one that a dead process left comes before a new one.

        To be called in turn only: between counting and taking, no other process may take one.
        """
        mine = {each.trial.number for each in self.active}
        running = self.study.get_trials(deepcopy=False, states=(states().RUNNING,))
        others = [trial for trial in running if trial.number not in mine]
        left = [trial for trial in others if not _is_alive(trial)]
        room = self.trials - len(self.done) - len(mine) - (len(others) - len(left))
        for trial in left[max(0, room) :]:
            self.study.tell(trial.number, state=states().FAIL, skip_if_finished=True)
        if room <= 0:
            return None
        taken = self._adopt_trial(left[0]) if left else self.study.ask(distributions(self.space))
        taken.set_user_attr(_OWNER, self._owner())
        return taken

    def _adopt_trial(self, left: FrozenTrial) -> Trial:
        """Continue a trial whose process is gone."""
        from optuna.trial import Trial

        trial = Trial(self.study, left._trial_id)
        for key, distribution in distributions(self.space).items():
            trial._suggest(key, distribution)  # as `ask` does it, who may have been killed in the middle
        if (owner := left.user_attrs.get(_OWNER)) is not None:
            Path(owner["lock"]).unlink(missing_ok=True)  # a kill leaves the file, though nobody holds it
        say(f"trial {trial.number}: taken up, the process that had it is gone")
        return trial

    def _owner(self) -> dict[str, Any]:
        return {"host": platform.node(), "lock": str(self._lock.resolve()), "seen": time.time()}

    def _send_heartbeat(self) -> None:
        if time.monotonic() - self.seen > _HEARTBEAT:
            self.seen = time.monotonic()
            for each in self.active:
                each.trial.set_user_attr(_OWNER, self._owner())

    def _runs(self, trial: Trial) -> list[RunSpec]:
        """The runs of a trial; none where its values do not go together, which is said and is its outcome."""
        try:
            config = apply_parameters(self.config, trial.params)
        except ConfigError as error:
            self._fail(trial, str(error))
            return []
        if self.prune:
            rung = max(1, config.total_steps // _RUNGS)
            every = min(config.eval.every or rung, rung)
            config = config.model_copy(update={"eval": config.eval.model_copy(update={"every": every})})
        digest = hash_of(config)
        return [
            RunSpec(with_seed(config, init=seed, data=seed, dropout=seed), digest, f"trial {trial.number} seed {seed}")
            for seed in range(FIRST_SEED, FIRST_SEED + self.seeds)
        ]

    def _conclude_trials(self) -> None:
        """Report every trial that has ended to the study."""
        for each in list(self.active):
            failures = [found for run in each.runs if (found := self.store.failure(self.store.folder(run)))]
            if all(self.store.finished(run) is not None for run in each.runs):
                folders = [self.store.folder(run) for run in each.runs]
                self.measured = self.measured or folders[0]
                check_alike(self.metric, [self.measured, *folders])
                values = [self.metric.value(folder) for folder in folders]
                self.study.tell(each.trial, float(np.mean(values)), skip_if_finished=True)
                say(f"trial {each.trial.number}: {np.mean(values):.4f} with {format_parameters(each.trial.params)}")
            elif failures:
                self._fail(each.trial, failures[0].message)
            else:
                continue
            self.active.remove(each)

    def _fail(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=states().FAIL, skip_if_finished=True)
        say(f"trial {trial.number} with {format_parameters(trial.params)}: {reason}")

    def _fail_trial_of(self, error: RunError) -> bool:
        """Whether a run failed because of its trial's values; that is then the outcome of the trial.

        Three heads for a width of 64 are found out where the model is built, and the failure names the key. One of a
        section that is not searched, such as a device that is not there, would stop every other trial, too.
        """
        each = next((each for each in self.active if error.run in each.runs), None)
        key = error.failure.key
        if each is None or key is None or _section(key) not in map(_section, self.space):
            return False
        self.active.remove(each)
        self._fail(each.trial, error.failure.message)
        return True

    def _should_prune(self, run: RunSpec, folder: Path) -> bool:
        """Report new validations of the first run of a trial, and return whether ASHA prunes it."""
        self._send_heartbeat()
        each = next((each for each in self.active if self.prune and each.runs[0].suffix == run.suffix), None)
        if each is None:
            return False
        columns = read_columns(folder / "metrics.jsonl", ["step", self.metric.key])
        for step, value in zip(columns["step"], columns[self.metric.key], strict=True):
            if not np.isfinite(value) or step in each.reported or not 0 < step < run.config.total_steps:
                continue
            each.reported.add(step)
            each.trial.report(float(value), int(step))
            if each.trial.should_prune():
                self.study.tell(each.trial, state=states().PRUNED, skip_if_finished=True)
                self.active.remove(each)
                say(f"trial {each.trial.number}: pruned at step {step:.0f}")
                return True
        return False


@dataclass
class _ActiveTrial:
    trial: Trial
    runs: list[RunSpec]
    reported: set[float] = field(default_factory=set)


def _section(key: str) -> str:
    """`model` of `model.heads`."""
    return key.partition(".")[0]


def _is_alive(trial: FrozenTrial) -> bool:
    """Whether the process that has a trial is there. Where its lock is on another machine, by its last heartbeat."""
    owner = trial.user_attrs.get(_OWNER)
    if owner is None:  # killed before it could put its name down
        return False
    if owner["host"] != platform.node() or os.name == "nt":
        return bool(time.time() - owner["seen"] < _HEARTBEAT_TIMEOUT)
    return is_held(Path(owner["lock"]))


@contextlib.contextmanager
def _exclusive_access(locks: Path) -> Iterator[None]:
    """Exclusive access to the study among processes, to create it or to claim a trial."""
    busy = GptlabError(f"{locks}: other processes keep this study busy; try again")
    until = time.monotonic() + _ACCESS_TIMEOUT
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
    points = grid_points(space) if sampler == "grid" else []
    pruner = optuna.pruners.NopPruner()
    if prune:
        require_equal_lengths(config, space)
        rung = max(1, config.total_steps // _RUNGS)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=2)
    direction = "minimize" if metric.lower_is_better else "maximize"
    url, locks = _storage_and_locks(storage, store)
    try:
        with _exclusive_access(locks):
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
        raise GptlabError(f"{option('storage', url)}: {str(error).splitlines()[0]}") from None
    return Sweep(config, space, metric, len(points) or trials, sampler, prune, seeds, store, study, locks)


def _storage_and_locks(storage: str | None, store: Store) -> tuple[str, Path]:
    """The study's URL, and the folder for the locks of those who share it.

    Raises GptlabError for a file that is no study; nothing is made then, and nothing is written into it.
    """
    if storage is None:
        folder = (store.root / ".sweeps").resolve()
        return f"sqlite:///{folder / 'studies.db'}", folder
    if "://" not in storage:
        raise GptlabError(f"{option('storage', storage)}: no URL; for a file write sqlite:///{storage}")
    kind, _, rest = storage.partition(":///")
    if not kind.startswith("sqlite") or not rest:
        return storage, store.root / ".sweeps"
    path = Path(rest.partition("?")[0])
    if not path.parent.is_dir():
        raise GptlabError(f"{option('storage', storage)}: there is no folder {path.parent}")
    if path.exists() and not _holds_studies(path):
        raise GptlabError(f"{option('storage', storage)}: {path} is there and is no study; name another file")
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
    """What Optuna takes for a storage; SQLite waits for other writers as long as for exclusive access."""
    from optuna.storages import RDBStorage

    if not url.startswith("sqlite"):
        return url
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _ACCESS_TIMEOUT}})


def study_name(config: RunConfig, space: Space, metric: Metric, seeds: int) -> str:
    """The name of the study, with a hash over everything that makes it another search."""
    what = json.dumps([hash_of(config), {k: str(v) for k, v in sorted(space.items())}, metric.label, seeds])
    return f"{config.name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


def _check_numbers(trials: int, seeds: int) -> None:
    for name, number in (("trials", trials), ("seeds", seeds)):
        if number < 1:
            raise GptlabError(f"{option(name, number)}: nothing would be trained; give 1 or more")
        require_count(name, number, "runs")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise GptlabError("a sweep needs Optuna; install it with: pip install 'gptlab[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def states() -> Any:
    """Optuna's TrialState, imported when it is needed."""
    from optuna.trial import TrialState

    return TrialState


def value_of(trial: FrozenTrial) -> float:
    """The metric of a trial that has one."""
    assert trial.value is not None
    return trial.value
