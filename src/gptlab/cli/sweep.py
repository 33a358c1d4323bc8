"""`gptlab sweep`: a search over values of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import Config, Jobs, MetricName, Overrides, check_picture, load_single, read_metric
from gptlab.cli.tables import show_rows
from gptlab.console import output, say, waiting
from gptlab.errors import GptlabError, did_you_mean


def sweep(
    config: Config,
    param: Annotated[list[str], typer.Option(help="KEY=LOW..HIGH[:log] or KEY=[A, B]; repeatable")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    trials: Annotated[int, typer.Option(help="how many in all; a grid has as many as points")] = 20,
    sampler: Annotated[str, typer.Option(help="tpe, random or grid")] = "tpe",
    prune: Annotated[str, typer.Option(help="asha: stop trials that fall behind; none")] = "none",
    metric: MetricName = "loss",
    seeds: Annotated[int, typer.Option(help="runs a trial, whose mean counts")] = 1,
    storage: Annotated[str | None, typer.Option(help="an Optuna URL; by default runs/.sweeps/studies.db")] = None,
    workers: Jobs = None,
    out: Annotated[Path | None, typer.Option(help="the picture; by default in runs/.sweeps")] = None,
) -> None:
    """Search for the best values of CONFIG with Optuna; every trial is a run. The same command goes on."""
    from gptlab.config import dump_yaml
    from gptlab.lab.runs.execution import find_devices
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.sweep.results import best_settings, importances, remarks, table, write_confirmation
    from gptlab.lab.studies.sweep.results import write_sweep as write
    from gptlab.lab.studies.sweep.space import parse_space
    from gptlab.lab.studies.sweep.study import open_sweep

    for name, value, known in (
        ("sampler", sampler, ["tpe", "random", "grid"]),
        ("prune", prune, ["asha", "none"]),
    ):
        if value not in known:
            raise GptlabError(f"--{name} {value}: not one of these; {did_you_mean(value, known)}")
    check_picture(out)
    loaded, store, measured = load_single(config, overrides), Store(), read_metric(metric)
    with waiting("opening the study"):
        search = open_sweep(
            loaded,
            parse_space(param, loaded),
            store,
            trials=trials,
            sampler=sampler,  # type: ignore[arg-type]  # one of the three
            metric=measured,
            prune=prune == "asha",
            seeds=seeds,
            storage=storage,
        )
    say(f"study {search.study.study_name}: {len(search.done)} of {search.trials} trials are there")
    search.run(find_devices(workers))
    diff = best_settings(search)
    show_rows(*table(search))
    output().print(f"\n{dump_yaml(diff)}", markup=False, end="")
    with waiting("weighing what was varied"):
        shares = importances(search)
    if shares:
        output().print()
        show_rows(("varied", "importance"), [(key, f"{share:.0%}") for key, share in shares.items()])
    for remark in remarks(search):
        say(remark)
    with waiting("drawing"):
        picture, results = write(search, out)
    say(f"wrote {picture} and {results}")
    folder = write_confirmation(search)
    if folder is None:
        say("the best trial is the config itself: nothing to change")
    else:
        say(f"next, the best against the config on other seeds; set smallest_effect in {folder}/experiment.yaml, then:")
        say(f"  gptlab run {folder}")
