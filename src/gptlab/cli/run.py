"""`gptlab train`, `eval`, `sample` and `trace`: what is done with one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.config import OneStage, Overrides, load_one

Runs = Annotated[list[Path], typer.Argument(help="run folders (or a nanoGPT ckpt.pt)")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")]


def train(
    config: Annotated[str, typer.Argument(help="a YAML file, or a run folder (with --resume: continue that run)")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    resume: Annotated[
        bool, typer.Option(help="continue from the newest whole checkpoint; start if there is none")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="the run's folder; by default runs/NAME-HASH-seedN")] = None,
) -> None:
    """Train what CONFIG describes, into runs/NAME-HASH-seedN; a config of stages into a folder for each of its runs."""
    from gptlab.config import has_stages, load_config
    from gptlab.console import say
    from gptlab.errors import ConfigError
    from gptlab.parallel.world import find_world
    from gptlab.training.loop import train as run_training

    if has_stages(config):
        from gptlab.cli.staging import train_in_stages

        if out is not None:
            raise ConfigError("--out names the folder of one run, and stages make several; leave it out")
        train_in_stages(config, overrides, resume=resume)
        return
    loaded = load_config(config, overrides)
    there = Path(config) if resume and (Path(config) / "config.yaml").is_file() else None
    if out is not None and there is not None and out.resolve() != there.resolve():
        raise ConfigError(f"--resume goes on in {there}, and --out names {out}; leave out one of them")
    folder = out if out is not None else there
    run = run_training(loaded, resume=resume, folder=folder)
    if run.finished and find_world().is_main:
        from gptlab.cli.planning import show_how_good

        say(f"done: {run.folder}; its curve is loss.png")
        show_how_good(run.folder)
        say(f"next: gptlab eval {run.folder}\n      gptlab sample {run.folder}")


def evaluate(
    runs: Runs,
    tasks: Annotated[str, typer.Option(help="comma-separated: loss, topk, hellaswag")] = "loss",
    limit: Annotated[
        int | None, typer.Option(help="questions of a task, or validation sequences; all by default")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="data set for loss and topk; by default the run's own")] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(help="folder of benchmark questions; see docs/evaluation.md for where they are found without it"),
    ] = None,
    device: Device = "auto",
    checkpoint: Annotated[
        str | None, typer.Option(help="a folder of RUN/checkpoints; by default the final weights")
    ] = None,
) -> None:
    """Evaluate runs; results go to RUN/evals/TASK.json and to a table."""
    from gptlab.cli.evaluation import evaluate_runs
    from gptlab.evals.benchmark import Options

    options = Options(limit=limit, data=data, task_data=task_data)
    evaluate_runs(runs, tasks.split(","), options, device=device, checkpoint=checkpoint)


def sample(
    run: Annotated[Path, typer.Argument(help="a run folder (or a nanoGPT ckpt.pt)")],
    prompts: Annotated[list[str] | None, typer.Argument(help="one or more prompts; none: from nothing")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate for each prompt")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="keep the k likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="keep the fewest tokens that reach probability p")] = None,
    min_p: Annotated[float | None, typer.Option(help="keep tokens at least min_p times as likely as the best")] = None,
    seed: Annotated[int | None, typer.Option(help="make the draw repeatable")] = None,
    show_tokens: Annotated[bool, typer.Option(help="colour the tokens")] = False,
    ignore_end: Annotated[bool, typer.Option(help="go on after end of text")] = False,
    device: Device = "auto",
    checkpoint: Annotated[
        str | None, typer.Option(help="a folder of RUN/checkpoints; by default the final weights")
    ] = None,
) -> None:
    """Continue prompts with a trained model."""
    from gptlab.inference.generate import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop_at_end=not ignore_end,
    )
    from gptlab.cli.sampling import show_samples
    from gptlab.interop import load

    show_samples(load(run, device=device, checkpoint=checkpoint), prompts or [""], sampling, show_tokens=show_tokens)


def trace(
    config: Annotated[str, typer.Argument(help="a YAML file, or a run folder")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    vocab_size: Annotated[int | None, typer.Option(help="V; by default that of the config's data, or 50257")] = None,
    depth: Annotated[int, typer.Option(help="how deep to look into modules")] = 4,
    stage: OneStage = None,
) -> None:
    """Show every module with its shapes (in the dimension letters), parameters and FLOPs."""
    from gptlab.cli.tracing import show_trace

    show_trace(load_one(config, overrides, stage), vocab_size=vocab_size, depth=depth)
