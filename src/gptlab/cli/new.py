"""`gptlab new`: something of your own, begun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from gptlab.console import say
from gptlab.errors import ConfigError, did_you_mean


class _New(TyperGroup):
    """`gptlab new NAME` begins an experiment; `gptlab new component …` a component."""

    fallback = "experiment"

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Put the name of the command in front where a name of something new stands there."""
        known = {*self.commands, "--help"}
        return super().parse_args(ctx, args if not args or args[0] in known else [self.fallback, *args])


app = typer.Typer(cls=_New, no_args_is_help=True, help="Begin something of your own.")


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="what the idea is called, for example my-idea")],
    baseline: Annotated[str, typer.Option(help="the config to compare with")],
    slot: Annotated[str, typer.Option(help="where the idea goes: attention, mlp, optimizer, …")] = "mlp",
    out: Annotated[Path | None, typer.Option(help="folder to write; by default experiments/NAME")] = None,
) -> None:
    """Begin an experiment: its statement, an idea that works, and a page for notes. `gptlab new NAME` is the same."""
    from gptlab.config import SLOTS
    from gptlab.config.preset import require_config
    from gptlab.contracts.scaffold import class_name_of, component_diff, component_source
    from gptlab.lab.experiment.scaffold import write_experiment

    if slot not in SLOTS:
        raise ConfigError(f"--slot: no slot is called {slot!r}; {did_you_mean(slot, SLOTS)}")
    require_config(baseline, "to compare with", "baseline")
    folder = out or Path("experiments") / name
    idea = component_source(slot, class_name_of(name))
    diff = component_diff(slot, f"./idea.py:{class_name_of(name)}", baseline)
    write_experiment(name, baseline=baseline, folder=folder, idea=idea, diff=diff)
    say(f"wrote {folder}: experiment.yaml (say there what you expect), idea.py and NOTES.md")
    say(f"next: gptlab check ./{folder}/idea.py:{class_name_of(name)}\n      gptlab run {folder}")


@app.command()
def component(
    kind: Annotated[str, typer.Argument(help="the slot: attention, mlp, optimizer, …")],
    name: Annotated[str, typer.Argument(help="what the idea is called, for example my-idea")],
    base: Annotated[str, typer.Option(help="the config that the diff is against")] = "demo",
    out: Annotated[Path | None, typer.Option(help="folder to write; by default experiments/NAME")] = None,
) -> None:
    """Write a component that works, its config as a diff against a base, and its test."""
    from gptlab.contracts.scaffold import write_component

    made = write_component(kind, name, base=base, folder=out or Path("experiments") / name)
    say(f"wrote {made.code}, {made.config.name} (the diff against {base}) and {made.test.name}")
    say(f"next: gptlab check {made.use}\n      gptlab train {made.config}")


@app.command()
def cluster(
    out: Annotated[Path, typer.Option(help="the file to write")] = Path("cluster.yaml"),
) -> None:
    """Write a cluster file to begin with, for `gptlab submit`."""
    from gptlab.files import check_place, write_atomic
    from gptlab.lab.cluster.spec import TEMPLATE

    check_place(out, "--out")
    if out.exists():
        raise ConfigError(f"--out {out}: something is there already; name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, TEMPLATE.format(name=out))
    say(f"wrote {out}: set partition and account there as your cluster's manual says")
    say(f"next: gptlab submit CONFIG --cluster {out} --dry-run")
