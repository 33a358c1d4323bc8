"""`gptlab check` and `gptlab new`: an idea of one's own, held to the contracts and begun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click import Context
from typer.core import TyperGroup

from gptlab.cli.config import OneStage

if TYPE_CHECKING:
    from gptlab.contracts import Outcome


class _New(TyperGroup):
    """`gptlab new NAME` begins an experiment; `gptlab new component …` a component."""

    fallback = "experiment"

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Put the name of the command in front where a name of something new stands there."""
        known = {*self.commands, "--help"}
        return super().parse_args(ctx, args if not args or args[0] in known else [self.fallback, *args])


new_app = typer.Typer(cls=_New, no_args_is_help=True)

_MARKS = {"holds": ("✓", "green"), "broken": ("✗", "red"), "skipped": ("–", "dim")}


def check(
    target: Annotated[
        str,
        typer.Argument(help="./idea.py:Name, a name, an import path, an inline '{use: NAME, …}', or a config .yaml"),
    ],
    slot: Annotated[
        str | None, typer.Option(help="which slot it is for; by default its class attribute `slot` says so")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="a contract by name; repeatable; by default all")] = None,
    backend: Annotated[
        str, typer.Option(help="of torch.compile: inductor, or aot_eager where there is no C compiler")
    ] = "inductor",
    stage: OneStage = None,
) -> None:
    """Hold a component (or a whole config, made small) to every contract; exit code 1 where one is broken."""
    from gptlab.contracts import find_subject, run_contracts

    subject = find_subject(target, slot=slot, stage=stage, backend=backend)
    outcomes = run_contracts(subject, only or ())
    _show(subject.label, outcomes)
    if any(outcome.status == "broken" for outcome in outcomes):
        raise typer.Exit(1)


def _show(label: str, outcomes: list[Outcome]) -> None:
    """One line a contract; what is broken with its place and its remedy; one line a reason for what does not apply."""
    from rich.markup import escape

    from gptlab.console import output

    out = output()
    out.print(f"[bold]{escape(label)}[/]")
    skipped: dict[str, list[str]] = {}
    for outcome in outcomes:
        mark, style = _MARKS[outcome.status]
        if outcome.status == "skipped":
            skipped.setdefault(outcome.detail, []).append(outcome.contract.name)
            continue
        out.print(f"  [{style}]{mark} {outcome.contract.name:<14}[/] {escape(outcome.contract.states)}")
        if outcome.status == "broken":
            for word, text in (("what", outcome.detail), ("where", outcome.where), ("fix", outcome.fix)):
                out.print(f"      {word:<6}{escape(text)}", style="red" if word == "what" else None)
    mark, style = _MARKS["skipped"]
    for reason, names in skipped.items():
        out.print(f"  [{style}]{mark} {', '.join(names)}: {escape(reason)}[/]")
    counts = {status: sum(o.status == status for o in outcomes) for status in _MARKS}
    names = ", ".join(o.contract.name for o in outcomes if o.status == "broken")
    end = f"{counts['broken']} broken: {names}" if names else "none broken"
    out.print(f"{counts['holds']} hold, {end}, {counts['skipped']} skipped")


@new_app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="what the idea is called, for example my-idea")],
    baseline: Annotated[Path, typer.Option(help="the config to compare with")],
    slot: Annotated[str, typer.Option(help="where the idea goes: attention, mlp, optimizer, …")] = "mlp",
    out: Annotated[Path | None, typer.Option(help="folder to write; by default experiments/NAME")] = None,
) -> None:
    """Begin an experiment: its statement, an idea that works, and a page for notes. `gptlab new NAME` is the same."""
    from gptlab.config import SLOTS
    from gptlab.console import say
    from gptlab.contracts.scaffold import class_name_of, component_diff, component_source
    from gptlab.errors import ConfigError, did_you_mean
    from gptlab.lab.experiment.scaffold import write_experiment

    if slot not in SLOTS:
        raise ConfigError(f"--slot: no slot is called {slot!r}; {did_you_mean(slot, SLOTS)}")
    if not baseline.is_file():
        raise ConfigError(f"no config at {baseline} to compare with; name one with --baseline")
    folder = out or Path("experiments") / name
    idea = component_source(slot, class_name_of(name))
    diff = component_diff(slot, f"./idea.py:{class_name_of(name)}", baseline)
    write_experiment(name, baseline=baseline, folder=folder, idea=idea, diff=diff)
    say(f"wrote {folder}: experiment.yaml (say there what you expect), idea.py and NOTES.md")
    say(f"next: gptlab check ./{folder}/idea.py:{class_name_of(name)}\n      gptlab run {folder}")


@new_app.command()
def component(
    kind: Annotated[str, typer.Argument(help="the slot: attention, mlp, optimizer, …")],
    name: Annotated[str, typer.Argument(help="what the idea is called, for example my-idea")],
    base: Annotated[Path, typer.Option(help="the config that the diff is against")] = Path("configs/demo.yaml"),
    out: Annotated[Path | None, typer.Option(help="folder to write; by default experiments/NAME")] = None,
) -> None:
    """Write a component that works, its config as a diff against a base, and its test."""
    from gptlab.console import say
    from gptlab.contracts.scaffold import write_component

    made = write_component(kind, name, base=base, folder=out or Path("experiments") / name)
    say(f"wrote {made.code}, {made.config.name} (the diff against {base}) and {made.test.name}")
    say(f"next: gptlab check {made.use}\n      gptlab train {made.config}")
