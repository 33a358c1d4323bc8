"""`gptlab ladder`: scaling laws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.confirm import confirm_training, missing_runs
from gptlab.cli.options import Config, DryRun, Jobs, Overrides, Probe, Yes, check_folder, load_single
from gptlab.cli.tables import show_rows
from gptlab.console import output, say, waiting
from gptlab.errors import GptlabError


def ladder(
    config: Config,
    sizes: Annotated[str, typer.Option(help="DIMxLAYERS by commas: 64x2,96x3,128x4; heads stay as wide as they are")],
    tokens: Annotated[str, typer.Option(help="lengths of training by commas: 200k,400k,800k")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    arms: Annotated[
        Path | None, typer.Option(help="an experiment's folder: its arms are trained at every size, CONFIG with them")
    ] = None,
    predict: Annotated[
        str | None, typer.Option(help="N,TOKENS to predict, such as 2M,10M; by default one rung further")
    ] = None,
    hold_out: Annotated[bool, typer.Option(help="also predict the largest rung from the others")] = True,
    seeds: Annotated[int, typer.Option(help="runs of every rung")] = 1,
    yes: Yes = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    probe: Probe = True,
    out: Annotated[Path | None, typer.Option(help="a folder; by default runs/.ladders/NAME")] = None,
) -> None:
    """Train CONFIG at several sizes and lengths, fit a scaling law, and predict the next rung."""
    from gptlab.config import parse_number
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.runs.execution import find_devices, train_missing
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.ladder import (
        HEADER,
        arm_configs,
        fit_ladder,
        lines,
        parse_sizes,
        parse_tokens,
        read_points,
        rungs,
        table,
    )
    from gptlab.lab.studies.ladder import write_ladder as write

    check_folder(out, "--out")
    target = None
    if predict is not None:
        try:
            parameters, length = (float(parse_number(part.strip())) for part in predict.split(","))
            target = (parameters, length)
        except ValueError:
            raise GptlabError(f"--predict {predict}: write parameters and tokens, for example 2M,10M") from None
    store, loaded = Store(), load_single(config, overrides)
    configs = {loaded.name: loaded}
    if arms is not None:
        others = arm_configs(load_experiment(arms).arms)
        configs |= {name: arm for name, arm in others.items() if name != loaded.name}
    found = rungs(configs, parse_sizes(sizes), parse_tokens(tokens), seeds=seeds)
    runs = [run for rung in found for run in rung.runs]
    if not confirm_training(missing_runs(runs, store), store, jobs, yes=yes, dry_run=dry_run, probe=probe):
        return
    train_missing(runs, store, devices=find_devices(jobs))
    with waiting("fitting the law"):
        result = fit_ladder(loaded.name, read_points(found, store), target=target, hold_out=hold_out)
    show_rows(HEADER, table(result))
    for line in lines(result):
        output().print(line, markup=False)
    with waiting("drawing"):
        paths = write(result, out or store.root / ".ladders" / loaded.name)
    say(f"wrote {', '.join(path.name for path in paths)} in {paths[0].parent}")
