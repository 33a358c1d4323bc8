"""`gptlab run`: an experiment from its statement to its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.confirm import ask_before_training
from gptlab.cli.data import bring_data
from gptlab.cli.options import DryRun, ExperimentFolder, Jobs, Prepare, Yes
from gptlab.console import output, say, waiting
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptlab.lab.experiment.evidence import Evidence
    from gptlab.lab.experiment.run_queue import CostEstimate
    from gptlab.lab.experiment.spec import Experiment
    from gptlab.lab.runs.store import RunSpec, Store


def run(
    folder: ExperimentFolder,
    yes: Yes = False,
    dry_run: DryRun = False,
    arms: Annotated[str | None, typer.Option(help="comma-separated: only these arms")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="no more than the first so many seeds, this time")] = None,
    jobs: Jobs = None,
    probe: Annotated[bool, typer.Option(help="measure speed and memory before asking")] = True,
    prepare: Prepare = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse to pair runs of different code, libraries or hardware")
    ] = False,
) -> None:
    """Train the runs that an experiment still needs, and say what they show, after every seed."""
    from gptlab.lab.experiment.evidence import evaluate_experiment
    from gptlab.lab.experiment.ledger import Ledger
    from gptlab.lab.experiment.run_queue import estimate_cost, missing_runs, predict_mismatches
    from gptlab.lab.experiment.spec import load_experiment, read_statement
    from gptlab.lab.runs.execution import find_devices, train_all
    from gptlab.lab.runs.predictions import kept_plans, predict_runs
    from gptlab.lab.runs.store import Store

    bring_data([read_statement(folder)[1]], prepare)
    experiment = load_experiment(folder)
    if arms is not None:
        experiment = experiment.only([name.strip() for name in arms.split(",")])
    with waiting("building the model of each arm"):
        _check_models(experiment)
    store = Store()
    with waiting(f"reading the runs of {folder}"):
        ledger = Ledger.read(experiment, store)
        evidence = evaluate_experiment(ledger, strict=strict)
    missing = missing_runs(evidence, seeds=seeds)
    if missing:
        if (grade := experiment.statement.metric.grade) is not None:
            grade.request.check_ready()
        predictions = predict_runs(missing, store, probe=probe)
        rate = _hourly_rate(experiment, [prediction.hardware for prediction in predictions.values()])
        devices = find_devices(jobs)
        _show_plan(experiment, estimate_cost(ledger, missing, predictions, rate), len(devices))
        _show_power(experiment, store)
        plans = kept_plans([arm.hash for arm in experiment.all_arms], store)
        for name, wrong in predict_mismatches(experiment, plans).items():
            say(f"careful: {name} will get no verdict, {'; '.join(map(str, wrong))}")
        if dry_run:
            return
        if not yes:
            ask_before_training()
        shown = {found.arm.name: len(found.pairs) for found in evidence.arms}

        def queue() -> list[RunSpec]:
            """What is still missing now that a run has ended; `evidence` is what all runs show by then."""
            nonlocal evidence
            evidence = evaluate_experiment(Ledger.read(experiment, store), strict=strict)
            missing = missing_runs(evidence, seeds=seeds)
            if missing:  # the last news is the result, which is printed in any case
                _show_news(evidence, shown)
            return missing

        train_all(queue, store, devices=devices, predictions=predictions)
    _show_verdicts(evidence)
    say(f"next: gptlab report {folder}")


def _check_models(experiment: Experiment) -> None:
    """Raise GptlabError where the model of an arm, tuned or not, cannot be built or does not fit this machine: before
    anything is trained."""
    from gptlab.data import open_splits
    from gptlab.hardware.device import pick_device
    from gptlab.lab.experiment.spec import apply_tuning
    from gptlab.planning.footprint import require_memory

    for arm in experiment.all_arms:
        for config in [arm.config, *(apply_tuning(arm, point).config for point in experiment.grid)]:
            vocabulary = next(iter(open_splits(config.data)[1].values())).vocab_size
            try:
                require_memory(config, vocabulary or 1, pick_device(config.system.device))
            except GptlabError as error:
                raise GptlabError(f"arm {arm.name!r}: {error}") from None


def _hourly_rate(experiment: Experiment, hardware: Sequence[str]) -> float | None:
    from gptlab.hardware.gpus import gpu_of_driver, read_gpus

    if experiment.statement.dollars_per_hour is not None:
        return experiment.statement.dollars_per_hour
    cards = [gpu_of_driver(name, read_gpus()) for name in set(hardware)]
    return next((card.dollars_per_hour for card in cards if card is not None), None)


def _show_plan(experiment: Experiment, estimate: CostEstimate, devices: int) -> None:
    """What will be trained, in the worst case of every seed, and what that takes."""
    from gptlab.planning.formatting import format_bytes, format_dollars, format_seconds

    say(f"{experiment.name}: {experiment.statement.hypothesis}")
    runs = ", ".join(f"{count} of {arm}" for arm, count in estimate.runs.items())
    reused = f"; {estimate.reused} are there already and are used" if estimate.reused else ""
    say(f"at most {sum(estimate.runs.values())} runs to train ({runs}){reused}")
    if (grade := experiment.statement.metric.grade) is not None:
        budget = "" if grade.budget is None else f", for {format_dollars(grade.budget)} a run at most"
        say(f"each of them is graded by {grade.model} after training{budget}")
    if estimate.seconds is not None:
        each = f" on {devices} devices" if devices > 1 else ""
        cost = "" if estimate.dollars is None else f", {format_dollars(estimate.dollars)}"
        memory = "" if estimate.peak_memory is None else f", {format_bytes(estimate.peak_memory)} of memory each"
        say(
            f"about {format_seconds(estimate.seconds / devices)}{each}{cost}{memory}; less, where fewer seeds settle it"
        )


def _show_power(experiment: Experiment, store: Store) -> None:
    """What the experiment can find, where `gptlab noise` has measured its baseline."""
    from gptlab.lab.experiment.evidence import decision_rule
    from gptlab.lab.stats.power import minimum_detectable_effect
    from gptlab.lab.studies.noise import read_noise

    known, statement = read_noise(store, experiment.baseline.hash), experiment.statement
    if known is None or known.metric != statement.metric.label or not known.paired_sd:
        return
    maximum, arms = statement.max_seeds, len(statement.arms)
    with_noise = f"with a noise of {known.paired_sd:.2g} a difference and {maximum} seeds"
    try:
        least = minimum_detectable_effect(known.paired_sd, decision_rule(experiment), maximum=maximum, arms=arms)
        say(f"{with_noise}, this experiment finds differences of {least:.2g} or more in 80% of cases")
    except GptlabError as error:
        say(f"careful: {with_noise}: {error}")


def _show_news(evidence: Evidence, shown: dict[str, int]) -> None:
    """A line for each arm that has a pair more than when it was last `shown`."""
    from gptlab.lab.experiment.verdict import verdict_line

    for found in evidence.arms:
        if len(found.pairs) > shown.get(found.arm.name, 0):
            shown[found.arm.name] = len(found.pairs)
            say(verdict_line(evidence, found))


def _show_verdicts(evidence: Evidence) -> None:
    """The result: a line for each arm, and what a careful reader wants to know beside it."""
    from gptlab.lab.experiment.verdict import verdict_line, verdict_notes

    for found in evidence.arms:
        output().print(verdict_line(evidence, found), markup=False)
        for note in verdict_notes(evidence, found):
            say(f"  {note}")
