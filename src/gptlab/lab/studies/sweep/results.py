"""The results of a sweep: table, importances, files, and an experiment that would confirm the best trial."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.config import dump_yaml
from gptlab.config.yamlfile import parse_yaml
from gptlab.errors import GptlabError, option
from gptlab.files import atomic_folder, write_atomic
from gptlab.lab.experiment.spec import hash_of
from gptlab.lab.studies.sweep.space import Range, apply_parameters, extremes, format_parameters, format_value
from gptlab.lab.studies.sweep.study import REASON, Sweep, states, value_of
from gptlab.plotting import COLOURS, GREY, image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_TRIALS = 20
"""Different trials with a value before importances are shown. In made-up studies of two to four things of which one
matters, that one came out first in 95 of 100 with this many, and in 85 with half of them."""

_CONFIRMATION_SEEDS = [1, 2, 3, 4, 5, 6, 7, 8]  # of the experiment that a sweep suggests: none of its own


def table(sweep: Sweep, most: int = 10) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the best trials: number, value, and what was set."""
    keys = list(sweep.space)
    rows = [
        [str(trial.number), f"{value_of(trial):.4f}", *(format_value(trial.params[key]) for key in keys)]
        for trial in sweep.ranked[:most]
    ]
    return ["trial", sweep.metric.label, *keys], rows


def best_settings(sweep: Sweep) -> dict[str, Any]:
    """The settings of the best trial, nested as in a YAML file. Raises GptlabError where none has a value."""
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
    where all trials lie, one thing at a time. Empty with fewer than `MIN_TRIALS` distinct trials, or than two things
    that vary.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    values = [value_of(trial) for trial in sweep.ranked]
    varied = [key for key, choices in sweep.space.items() if len(set(map(str, extremes(choices)))) > 1]
    if sweep.n_distinct < MIN_TRIALS or len(varied) < 2 or len(set(values)) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older versions call it experimental
        found = get_param_importances(
            sweep.study, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.5), params=varied
        )
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def remarks(sweep: Sweep) -> list[str]:
    """Remarks beside the table of trials."""
    finished, said = sweep.n_distinct, []
    if finished < len(sweep.ranked):
        said.append(
            f"{len(sweep.ranked) - finished} of {len(sweep.ranked)} trials drew what another had drawn, and are its "
            f"run; {option('sampler', 'grid')} takes each combination of choices once"
        )
    if importances(sweep):
        said.append(
            f"importance: the share in whether a trial is in the better half of {finished}, among what was varied and "
            "where; of few trials it is rough"
        )
    elif len(sweep.space) > 1 and finished < MIN_TRIALS:
        said.append(
            f"no importances: they need {MIN_TRIALS} trials with a value, and there are {finished}; of fewer, the "
            "order is too often chance"
        )
    if finished > 1:
        said.append(
            f"the best of {finished} trials is best partly by luck: its number is too good (the winner's curse), and "
            "the seeds that chose it are no evidence"
        )
    return said


def write_confirmation(sweep: Sweep) -> Path | None:
    """Write an experiment of the best trial against the config on fresh seeds, unless it exists; its folder.

    None where the best trial is the config itself. Raises GptlabError where no trial has a value.
    """
    diff, best = best_settings(sweep), sweep.ranked[0]
    if hash_of(apply_parameters(sweep.config, best.params)) == hash_of(sweep.config):
        return None
    folder = sweep.store.root / ".sweeps" / f"{sweep.study.study_name}-trial{best.number}"
    if (folder / "experiment.yaml").exists():
        return folder
    statement = {
        "hypothesis": f"The best trial of a sweep ({format_parameters(best.params)}) is better than the config.",
        "baseline": "baseline.yaml",
        "arms": {"best": diff},
        "seeds": _CONFIRMATION_SEEDS,
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
            "value": trial.value if trial.state == states().COMPLETE else None,
            "parameters": trial.params,
            "reason": trial.user_attrs.get(REASON),
            "runs": trial.user_attrs.get("runs", []),
        }
        for trial in sweep.done
    ]
    content = {
        "study": sweep.study.study_name,
        "config": sweep.config.name,
        "metric": sweep.metric.label,
        "seeds": sweep.seeds,
        "best": {"trial": best.number, "value": best.value, "settings": best_settings(sweep)},
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
    values = np.array([value_of(trial) for trial in trials])
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
