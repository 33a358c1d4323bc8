"""`gptlab check`: a component held to the contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import OneStage
from gptlab.console import output

if TYPE_CHECKING:
    from gptlab.contracts import Outcome

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
