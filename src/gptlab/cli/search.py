"""`gptlab noise`, `sweep`, `lr-find`, `ladder`: many runs of one config, and what they say together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.config import Overrides

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gptlab.config import RunConfig
    from gptlab.lab.experiment.metric import Metric
    from gptlab.lab.runs.store import RunSpec, Store

Config = Annotated[str, typer.Argument(help="a YAML file, or a run folder")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask before training")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show the plan and train nothing")]
Jobs = Annotated[int | None, typer.Option(min=1, help="runs at once; by default one on every GPU, or one on the CPU")]
Probe = Annotated[bool, typer.Option(help="measure speed before asking")]
MetricName = Annotated[str, typer.Option("--metric", help="loss or bits_per_byte")]


def noise(
    config: Config,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(help="runs that differ in one kind of luck, of each kind")] = 8,
    repeats: Annotated[int, typer.Option(help="how often one seed is trained, to see the hardware")] = 2,
    metric: MetricName = "loss",
    yes: Yes = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    probe: Probe = True,
) -> None:
    """Measure how far runs of CONFIG lie apart by initialization, data order and hardware; power planning uses it."""
    from gptlab.console import say
    from gptlab.lab.runs.execution import find_devices, train_missing
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.noise import design_noise_runs, estimate_noise, remarks, table, write_noise

    store, measured = Store(), _metric(metric)
    plan = design_noise_runs(_single(config, overrides), store, seeds=seeds, repeats=repeats)
    again = [run for run, where in plan.repeats if where.finished(run) is None]
    if not _agree([*_missing(plan.runs, store), *again], store, jobs, yes=yes, dry_run=dry_run, probe=probe):
        return
    train_missing(plan.runs, store, devices=find_devices(jobs))
    for run, where in plan.repeats:
        train_missing([run], where, devices=find_devices(1))
    found = estimate_noise(plan, store, measured)
    paths = write_noise(store, found)
    _show(("source", "runs", "sd", "95%", "share"), table(found))
    for remark in remarks(found):
        say(remark)
    say(f"wrote {paths[0]}, which `gptlab run` plans with, and {paths[1].name}")


def _metric(name: str) -> Metric:
    from gptlab.errors import GptlabError, did_you_mean
    from gptlab.lab.experiment.metric import Metric

    if name not in ("loss", "bits_per_byte"):
        raise GptlabError(f"--metric {name}: not one of these; {did_you_mean(name, ['loss', 'bits_per_byte'])}")
    return Metric.model_validate(name)


def _single(source: str, overrides: Sequence[str]) -> RunConfig:
    """The config; one of stages is refused."""
    from gptlab.config import has_stages, load_config
    from gptlab.errors import ConfigError

    if has_stages(source):
        raise ConfigError(f"{source}: `stages` make several runs; name a config of a single one")
    return load_config(source, overrides)


def _missing(runs: Iterable[RunSpec], store: Store) -> list[RunSpec]:
    return [run for run in runs if store.finished(run) is None]


def _agree(
    missing: list[RunSpec], store: Store, jobs: int | None, *, yes: bool, dry_run: bool, probe: bool, at_most: str = ""
) -> bool:
    """Say what will be trained and for how long, and ask; False for a dry run. Exits 1 where the answer is no."""
    from gptlab.console import say
    from gptlab.lab.runs.execution import find_devices
    from gptlab.lab.runs.predictions import predict_runs
    from gptlab.planning.formatting import format_seconds

    if not missing:
        say("every run is there already")
        return not dry_run
    found = predict_runs(missing, store, probe=probe)
    devices = len(find_devices(jobs))
    say(f"{at_most}{len(missing)} runs to train, {devices} at once")
    if all(run.hash in found for run in missing):
        say(f"about {format_seconds(sum(found[run.hash].seconds for run in missing) / devices)}")
    if not dry_run and not yes and not typer.confirm("Train these?", default=True, err=True):
        raise typer.Exit(1)
    return not dry_run


def _show(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; all columns but the first are numbers."""
    from rich.table import Table

    from gptlab.console import output

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    output().print(drawn, width=10_000, crop=False)  # where there is no room, lines run on and lose nothing


def lr_find(
    config: Config,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    low: Annotated[float, typer.Option(help="where to begin, as a multiple of the config's learning rate")] = 1e-3,
    high: Annotated[float, typer.Option(help="where to end, as a multiple of it")] = 100.0,
    steps: Annotated[int, typer.Option(help="steps from one to the other")] = 200,
    limit: Annotated[float, typer.Option(help="stop where the loss is this many times its lowest")] = 1.5,
    out: Annotated[Path | None, typer.Option(help="the picture; by default lr-find.png in the run's folder")] = None,
) -> None:
    """Raise the learning rate of CONFIG until its loss blows up, and suggest one."""
    from gptlab.console import say
    from gptlab.files import write_atomic
    from gptlab.lab.runs.execution import find_devices
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.lr_find import draw, learning_rates, range_test, run_range_test

    _check_picture(out)
    loaded, store = _single(config, overrides), Store()
    run = range_test(loaded, low=low, high=high, steps=steps)
    found = run_range_test(run, store, find_devices(1)[0], limit=limit)
    known = learning_rates(loaded)
    suggestions = {"steepest descent": found.steepest, "a tenth of divergence": found.cautious}
    _show(
        ("", "multiple", *known),
        [
            (name, *(["-"] * (1 + len(known)) if at is None else _scaled(at, known)))
            for name, at in [*suggestions.items(), ("diverged", found.diverged)]
        ],
    )
    if found.diverged is None:
        say(f"the loss never rose to {limit:g} times its lowest; a larger --high or a lower --limit may show it")
    if found.steepest is None:
        say("the loss never fell; a larger --high or more --steps may show where it does")
    picture = out or store.folder(run) / "lr-find.png"
    write_atomic(picture, draw(found, f"{loaded.name}: range test over {len(found.losses)} steps"))
    say(f"picture: {picture}")
    say("a start for tuning, not its end: the best rate of a whole run depends on its length; see `gptlab sweep`")


def _check_picture(path: Path | None) -> None:
    """Refuse, before anything is trained, a place where no picture can be written in the end."""
    from gptlab.errors import GptlabError

    if path is None:
        return
    if path.is_dir():
        raise GptlabError(f"--out {path}: this is a folder; name a file, such as {path / 'picture.png'}")
    if path.suffix != ".png":
        raise GptlabError(f"--out {path}: pictures are PNG; name a file that ends in .png")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise GptlabError(f"--out {path}: {parent} is a file, not a folder; name another place")


def _scaled(multiple: float, known: dict[str, float]) -> list[str]:
    """A multiple, and the learning rates that it makes."""
    return [f"{multiple:.3g}", *(f"{multiple * rate:.3g}" for rate in known.values())]


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
    from gptlab.console import output, say
    from gptlab.errors import GptlabError, did_you_mean
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
    _check_picture(out)
    loaded, store, measured = _single(config, overrides), Store(), _metric(metric)
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
    _show(*table(search))
    output().print(f"\n{dump_yaml(diff)}", markup=False, end="")
    if shares := importances(search):
        output().print()
        _show(("varied", "importance"), [(key, f"{share:.0%}") for key, share in shares.items()])
    for remark in remarks(search):
        say(remark)
    picture, results = write(search, out)
    say(f"wrote {picture} and {results}")
    folder = write_confirmation(search)
    if folder is None:
        say("the best trial is the config itself: nothing to change")
    else:
        say(f"next, the best against the config on other seeds; set smallest_effect in {folder}/experiment.yaml, then:")
        say(f"  gptlab run {folder}")


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
    from gptlab.console import output, say
    from gptlab.errors import GptlabError
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.runs.execution import find_devices, train_missing
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.ladder import (
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

    target = None
    if predict is not None:
        try:
            parameters, length = (float(parse_number(part.strip())) for part in predict.split(","))
            target = (parameters, length)
        except ValueError:
            raise GptlabError(f"--predict {predict}: write parameters and tokens, for example 2M,10M") from None
    store, loaded = Store(), _single(config, overrides)
    configs = {loaded.name: loaded}
    if arms is not None:
        others = arm_configs(load_experiment(arms).arms)
        configs |= {name: arm for name, arm in others.items() if name != loaded.name}
    found = rungs(configs, parse_sizes(sizes), parse_tokens(tokens), seeds=seeds)
    runs = [run for rung in found for run in rung.runs]
    if not _agree(_missing(runs, store), store, jobs, yes=yes, dry_run=dry_run, probe=probe):
        return
    train_missing(runs, store, devices=find_devices(jobs))
    result = fit_ladder(loaded.name, read_points(found, store), target=target, hold_out=hold_out)
    _show(("arm", "size", "N", "tokens", "loss", "law"), table(result))
    for line in lines(result):
        output().print(line, markup=False)
    paths = write(result, out or store.root / ".ladders" / loaded.name)
    say(f"wrote {', '.join(path.name for path in paths)} in {paths[0].parent}")
