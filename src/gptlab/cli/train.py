"""`gptlab train`: a run, or the runs of a config of stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.data import bring_data
from gptlab.cli.options import Overrides, Prepare, Scale, apply_scale, complete_config
from gptlab.cli.soup import show_soup
from gptlab.console import say
from gptlab.errors import STOPPED, ConfigError
from gptlab.files import check_place

if TYPE_CHECKING:
    from collections.abc import Sequence


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="a YAML file, a name of `gptlab config list`, or a run folder (with --resume: continue that run)",
            autocompletion=complete_config,
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    scale: Scale = None,
    resume: Annotated[
        bool, typer.Option(help="continue from the newest whole checkpoint; start if there is none")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="the run's folder; by default runs/NAME-HASH-seedN")] = None,
    prepare: Prepare = False,
) -> None:
    """Train what CONFIG describes, into runs/NAME-HASH-seedN; a config of stages into a folder for each of its runs."""
    from gptlab.config import has_stages, load_config, presets
    from gptlab.parallel.world import find_world
    from gptlab.training.loop import train as run_training

    if config is None:
        raise ConfigError(
            f"which config? {', '.join(presets())} come with gptlab (`gptlab config list` says what each is); or name "
            "a file. `gptlab train demo --prepare` is a beginning"
        )
    overrides = apply_scale(config, overrides, scale)
    if has_stages(config):
        if out is not None:
            raise ConfigError("--out names the folder of one run, and stages make several; leave it out")
        _train_in_stages(config, overrides, resume=resume, prepare=prepare)
        return
    loaded = load_config(config, overrides)
    bring_data([loaded], prepare)
    there = Path(config) if resume and (Path(config) / "config.yaml").is_file() else None
    if out is not None and there is not None and out.resolve() != there.resolve():
        raise ConfigError(f"--resume goes on in {there}, and --out names {out}; leave out one of them")
    if out is not None:
        check_place(out, "--out")
    folder = out if out is not None else there
    run = run_training(loaded, resume=resume, folder=folder)
    if not run.finished:
        raise typer.Exit(STOPPED)
    if find_world().is_main:
        say(f"done: {run.folder}; its curve is loss.png")
        _show_prediction(run.folder)
        say(f"next: gptlab eval {run.folder}\n      gptlab sample {run.folder}")


def _train_in_stages(config: str, overrides: Sequence[str], *, resume: bool, prepare: bool) -> None:
    """Train every stage of the config, and say where the runs are."""
    from gptlab.config import load_stages
    from gptlab.parallel.world import find_world
    from gptlab.training.stages import train_stages

    stages = load_stages(config, overrides)
    bring_data([stage.config for stage in stages], prepare)
    results = train_stages(stages, resume=resume)
    if not all(result.finished for result in results):
        raise typer.Exit(STOPPED)
    if not find_world().is_main:
        return
    for result in results:
        if result.soup is not None:
            show_soup(result.soup)
    for result in results:
        say(f"{result.name}: {result.folder}")
    say(f"next: gptlab eval {results[-1].folder}\n      gptlab sample {results[-1].folder}")


def _show_prediction(folder: Path) -> None:
    """What a finished run took, beside what `gptlab plan` had said of it; nothing where nobody asked for a plan."""
    from gptlab.planning.formatting import format_bytes, format_seconds
    from gptlab.planning.records import compare_kept_plan
    from gptlab.record.facts import read_facts
    from gptlab.record.runfolder import read_sessions

    sessions = read_sessions(folder)
    found = compare_kept_plan(folder, str(sessions[-1].get("config_hash"))) if sessions else None
    if found is not None:
        facts = read_facts(folder)
        say(
            f"it trained for {format_seconds(facts.seconds)} and peaked at {format_bytes(facts.peak_memory_bytes)}; "
            f"the plan had said {found.training_seconds:.2f} times the time, {found.peak_memory:.2f} times the memory"
        )
