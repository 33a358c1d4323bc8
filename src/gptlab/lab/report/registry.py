"""The registry of everything that was tried: experiments with whatever came of them, and runs.

There is no list to keep: an experiment is a folder with experiment.yaml, a run is a folder in runs/. Where the runs are
not, as in a fresh clone, the report.json that `gptlab report` left beside the statement says what they showed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.config import RunConfig
from gptlab.config.jsonfile import read_json
from gptlab.config.yamlfile import read_yaml
from gptlab.errors import GptlabError
from gptlab.files import not_a_folder
from gptlab.lab.experiment.preset import shipped
from gptlab.lab.experiment.spec import Experiment, Statement, load_experiment, read_statement
from gptlab.lab.report.compare import read_plain_config
from gptlab.lab.report.tables import SCHEMA
from gptlab.lab.runs.store import Store
from gptlab.record.facts import read_facts
from gptlab.record.metrics import Row, last_row
from gptlab.record.runfolder import DIVERGED, Session, State, is_edited, made_elsewhere, read_sessions, state


@dataclass(frozen=True)
class ExperimentEntry:
    """An experiment, as far as it is known.

    Attributes:
        name: the folder's.
        hypothesis: empty where the statement cannot be read.
        state: "12 runs", "no runs yet", "12 runs, by its report", or "cannot be read".
        runs: how many there are, or were by its report.
        arms: a line an arm: the verdict, or that there is none yet.
        seconds, dollars: what its runs took; None where that is not known.
        last_run: the day of the youngest run, ISO 8601; empty where there is none.
        error: what is wrong with it; empty for a sound one.
    """

    name: str
    hypothesis: str
    state: str
    runs: int
    arms: list[str]
    seconds: float | None
    dollars: float | None
    last_run: str
    error: str


def list_experiments(root: Path, store: Store) -> list[ExperimentEntry]:
    """Every experiment in the folders of `root`, the youngest runs last, those without runs first.

    One that is broken is an entry that says so. Raises GptlabError where there is no folder `root`.
    """
    if not root.is_dir():
        what = not_a_folder(root, "a folder of experiments")
        raise GptlabError(
            f"{what}; name the one that holds yours; `gptlab new` begins one, `gptlab experiment list` names some"
        )
    found = [_entry(path.parent, store) for path in sorted(root.glob("*/experiment.yaml"))]
    return sorted(found, key=lambda entry: (entry.last_run, entry.name))


@dataclass(frozen=True)
class ShippedExperiment:
    """An experiment that comes with gptlab.

    Attributes:
        baseline: the config that its arms are compared with, seed and data as they are written there.
        reported: what came of it where it was run; None where no report lies beside it.
    """

    name: str
    statement: Statement
    baseline: RunConfig
    reported: ExperimentEntry | None


def list_shipped() -> list[ShippedExperiment]:
    """Every experiment that comes with gptlab, by name."""
    return [
        ShippedExperiment(name, *read_statement(folder), _from_report(folder)) for name, folder in shipped().items()
    ]


def _entry(folder: Path, store: Store) -> ExperimentEntry:
    try:
        entry = _from_runs(load_experiment(folder), store)
        if entry.seconds is not None:
            return entry
        return _from_report(folder) or entry
    except GptlabError as error:
        # The data or the runs may simply not be on this machine; then what was reported still stands.
        return _from_report(folder) or ExperimentEntry(
            folder.name, _hypothesis(folder), "cannot be read", 0, [], None, None, "", str(error)
        )


def _from_runs(experiment: Experiment, store: Store) -> ExperimentEntry:
    from gptlab.lab.experiment.verdict import verdict_line
    from gptlab.lab.report.findings import read_findings

    findings = read_findings(experiment, store)
    count = len(findings.runs)
    return ExperimentEntry(
        name=experiment.name,
        hypothesis=experiment.statement.hypothesis,
        state=f"{count} run{'' if count == 1 else 's'}" if count else "no runs yet",
        runs=count,
        arms=[verdict_line(findings.evidence, found) for found in findings.evidence.arms] if count else [],
        seconds=findings.seconds if count else None,
        dollars=findings.dollars,
        last_run=findings.last_run,
        error="",
    )


def _from_report(folder: Path) -> ExperimentEntry | None:
    """What the last report says; None where there is none."""
    path, mend = folder / "report.json", "write it again with `gptlab report`"
    try:
        content = read_json(path, dict[str, Any], mend=mend)
        if content.get("schema") != SCHEMA:
            raise GptlabError(f"{path}: not a report of this version of gptlab; {mend}")
        return ExperimentEntry(
            name=folder.name,
            hypothesis=str(content["hypothesis"]),
            state=f"{content['runs']} runs, by its report",
            runs=int(content["runs"]),
            arms=[str(arm["line"]) for arm in content["arms"]],
            seconds=float(content["seconds"]),
            dollars=content["dollars"],
            last_run=str(content["last_run"]),
            error="",
        )
    except FileNotFoundError:
        return None
    except GptlabError as error:
        problem = str(error)
    except (ValueError, KeyError, TypeError):
        problem = f"{path}: damaged (a field is missing or of another type); {mend}"
    return ExperimentEntry(folder.name, _hypothesis(folder), "report cannot be read", 0, [], None, None, "", problem)


def _hypothesis(folder: Path) -> str:
    try:
        return str(read_yaml(folder / "experiment.yaml")[0].get("hypothesis") or "")
    except GptlabError:
        return ""


@dataclass(frozen=True)
class RunEntry:
    """A run, or why it cannot be read. `loss` is the last validation loss; None for what is not known."""

    name: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    tokens: int
    seconds: float | None
    started: str


def list_runs(store: Store) -> Iterator[RunEntry]:
    """Every run in the store, by when it began."""
    folders = [path.parent for path in store.root.glob("*/config.yaml") if not path.parent.name.startswith(".")]
    yield from sorted((_run_entry(folder, store) for folder in folders), key=lambda run: (run.started, run.name))


def _origin(sessions: Sequence[Session]) -> str:
    """How the weights of a run that is finished came about."""
    last: Session = sessions[-1] if sessions else {}
    if "imported" in last:
        return f"imported from {last['imported'].get('from', 'elsewhere')}"
    return f"a soup of {len(last['soup'].get('runs', []))} runs" if "soup" in last else "finished"


def _run_entry(folder: Path, store: Store) -> RunEntry:
    started, row = "", Row()
    try:
        sessions = read_sessions(folder)
        started = str(sessions[0].get("started", ""))[:16] if sessions else ""
        row = last_row(folder / "metrics.jsonl", 2**14) or {}
        training = read_plain_config(folder / "config.yaml")["train"]
        steps = -(-int(training["tokens"]) // int(training["batch_tokens"]))
        if (folder / "facts.json").is_file():
            steps = read_facts(folder).steps
    except (GptlabError, ValueError, TypeError) as error:
        return RunEntry(folder.name, f"broken: {error}", int(row.get("step", 0)), None, None, 0, None, started)
    step = int(row.get("step", 0))
    reached, failure = state(folder), store.failure(folder)
    if failure is not None:
        shown = f"{'diverged' if failure.kind == DIVERGED else 'failed'}: {failure.message}"
    elif store.is_busy(folder):
        shown = f"training, step {step:,} of {steps:,}"
    elif reached is State.DAMAGED:
        shown = "broken: a file is missing or cut short"
    elif reached in (State.FINISHED, State.RECONFIGURED):
        shown = _origin(sessions) + ("; its config.yaml was edited since" if is_edited(folder) else "")
    else:
        shown = f"unfinished, step {step:,} of {steps:,}"
    return RunEntry(
        name=folder.name,
        state=shown,
        step=step,
        steps=None if made_elsewhere(sessions) else steps,  # of an import nobody planned any
        loss=row.get("val/loss"),
        tokens=int(row.get("tokens", 0)),
        seconds=row.get("seconds"),
        started=started,
    )
