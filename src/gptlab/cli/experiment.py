"""`gptlab experiment …`: what comes with gptlab, to run or to begin from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.console import output, say, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptlab.config import RunConfig
    from gptlab.lab.report.registry import ShippedExperiment

app = typer.Typer(no_args_is_help=True, help="List and copy the experiments that come with gptlab.")


def complete_shipped(incomplete: str) -> list[str]:
    """What a shell proposes for the name of an experiment that comes with gptlab."""
    from gptlab.lab.experiment.preset import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


@app.command("list")
def list_() -> None:
    """The experiments that come with gptlab: what each asks, of what, on which data, how much it trains, what came."""
    from gptlab.lab.report.registry import list_shipped

    with waiting("reading the experiments"):
        found = list_shipped()
    for one in found:
        output().print(one.name, markup=False, style="bold")
        for line in _lines(one):
            output().print(f"  {line}", markup=False)
    say("`gptlab experiment copy NAME` brings one to experiments/NAME; an arrow is what came of it where it was made")


def _lines(one: ShippedExperiment) -> Iterator[str]:
    """An experiment as a person wants to know it before it costs anything."""
    from gptlab.config import format_count
    from gptlab.planning.formatting import format_seconds

    statement, train = one.statement, one.baseline.train
    arms = ", ".join(statement.arms)
    size = f"at most {statement.max_runs} runs of {format_count(train.tokens)} tokens"
    if one.reported is not None and one.reported.seconds is not None:
        size += f" (it took {one.reported.runs} runs, {format_seconds(one.reported.seconds)})"
    yield statement.hypothesis
    yield f"{statement.baseline} against {arms}; {one.baseline.data.path or 'data to name'}; {size}"
    for line in one.reported.arms if one.reported is not None else ():
        yield f"→ {line}"


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="a name of `gptlab experiment list`", autocompletion=complete_shipped)],
    folder: Annotated[Path | None, typer.Argument(help="the folder to make; by default experiments/NAME")] = None,
    baseline: Annotated[str | None, typer.Option(help="ask the same of this config, and not of its own")] = None,
) -> None:
    """Copy an experiment that comes with gptlab: its statement, its code and its notes, to be run or changed."""
    from gptlab.lab.experiment.preset import copy_experiment
    from gptlab.lab.experiment.spec import read_statement

    target = copy_experiment(name, folder, baseline=baseline)
    say(f"wrote {target}: {', '.join(sorted(file.name for file in target.iterdir()))}")
    missing = list(_preparations(read_statement(target)[1]))
    first, *others = [*missing, f"gptlab run {target}"]
    say("\n".join([f"next: {first}", *(f"      {command}" for command in others)]))
    if any("FILES" in command for command in missing):
        say(
            f"no text at hand? `gptlab experiment copy {name} {target}-demo --baseline demo` asks the same of Python's "
            f"library, and `gptlab run {target}-demo --prepare` brings it"
        )


def _preparations(config: RunConfig) -> Iterator[str]:
    """The commands that make the data of a run which are not here."""
    from gptlab.data.preset import preset_names

    for folder in map(Path, filter(None, [config.data.path, *(config.data.sources or {}).values()])):
        if folder.exists():
            continue
        if folder.name in preset_names():
            default = Path("data") / folder.name
            yield f"gptlab data prepare {folder.name}" + ("" if folder == default else f" --out {folder}")
        else:
            yield f"gptlab data prepare --input FILES --tokenizer NAME --out {folder}"
