"""`gptlab judge`: a large model says which run writes better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import Device
from gptlab.cli.tables import show_rows
from gptlab.console import output, say
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from gptlab.lab.judge.judging import Judging


Criteria = Annotated[
    str | None,
    typer.Option(help="a .txt, or a text: NAME: WHAT IT MEANS, one on each line", show_default="TinyStories'"),
]
KeyVariable = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="variable of the environment that holds the key",
        show_default="OPENAI_API_KEY; none for a machine of one's own",
    ),
]
JudgeTemperature = Annotated[float | None, typer.Option(help="of the judge", show_default="the endpoint's own")]
JudgeTokens = Annotated[
    int, typer.Option(min=16, help="tokens that an answer of the judge may have, its thoughts included")
]
Name = Annotated[str | None, typer.Option(help="of the folder in judgings/", show_default="by the runs and settings")]


def judge(
    runs: Annotated[
        list[Path],
        typer.Argument(help="one run is graded, the second of two compared with the first; more: two configs by seed"),
    ],
    judge: Annotated[str, typer.Option(help="URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")],
    model: Annotated[str, typer.Option(help="the judge's name there")],
    prompts: Annotated[
        str, typer.Option(help="stories, continuations, a .txt with a prompt a line, or a .jsonl with `prompt`")
    ] = "stories",
    limit: Annotated[int | None, typer.Option(min=1, help="the first so many prompts; all by default")] = None,
    criteria: Criteria = None,
    grade: Annotated[bool, typer.Option("--grade", help="grade runs of one config, seeds together")] = False,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="how often each question is put")] = 1,
    budget: Annotated[
        float | None, typer.Option(help="dollars for all sessions of this judging; then it stops")
    ] = None,
    price_in: Annotated[float | None, typer.Option(help="dollars for a million tokens that the judge reads")] = None,
    price_out: Annotated[float | None, typer.Option(help="dollars for a million tokens that it writes")] = None,
    key_variable: KeyVariable = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens that a run writes for each prompt")] = 200,
    temperature: Annotated[float, typer.Option(help="of the runs; 0 takes the likeliest token")] = 0.8,
    top_p: Annotated[float | None, typer.Option(help="of the runs: the fewest tokens that reach probability p")] = None,
    seed: Annotated[int, typer.Option(help="of the runs' texts")] = 1,
    judge_temperature: JudgeTemperature = None,
    judge_tokens: JudgeTokens = 1024,
    name: Name = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="let the runs write, say the cost, and ask nothing")
    ] = False,
    device: Device = "auto",
) -> None:
    """Let a large model judge what runs make of prompts: which of two is better, or how good one is."""
    from gptlab.evals.continuations import complete
    from gptlab.inference.generate import Sampling
    from gptlab.lab.judge.asking import BudgetSpentError
    from gptlab.lab.judge.session import Request, judge_runs
    from gptlab.parallel.world import find_world

    if find_world().size > 1:
        raise GptlabError("judge is one process's work; run it without torchrun")
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    request = Request(
        runs,
        judge,
        model,
        prompts=prompts,
        limit=limit,
        criteria=criteria,
        grade=grade,
        repeats=repeats,
        budget=budget,
        price_in=price_in,
        price_out=price_out,
        key_variable=key_variable,
        sampling=settings,
        judge_temperature=judge_temperature,
        judge_tokens=judge_tokens,
        name=name,
    )
    try:
        folder, result = judge_runs(
            request, lambda run, left: complete(run, left, sampling, device=device), dry_run=dry_run
        )
    except BudgetSpentError as error:  # what was paid for is shown all the same
        _show(error.folder, error.result)
        raise
    _show(folder, result)


def _show(folder: Path | None, result: Judging | None) -> None:
    if folder is not None and result is not None:
        sheet = result.sheet()
        output().print(sheet.title, markup=False)
        show_rows(sheet.header, sheet.rows)
        output().print("\n".join(sheet.notes), markup=False)
        output().print(f"\n{result.markdown()}", markup=False)
        say(f"wrote {folder / 'result.json'}")
