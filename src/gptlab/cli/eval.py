"""`gptlab eval`: benchmarks on runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import Checkpoint, Device, Quantize
from gptlab.cli.tables import FORMATS, print_rows, show_rows
from gptlab.console import output, say
from gptlab.errors import GptlabError, did_you_mean
from gptlab.evals.suites import SUITES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptlab.evals.benchmark import Column, Evaluation, Options
    from gptlab.run import Run


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="run folders; or a Hugging Face folder, a .gguf, a ckpt.pt, or a model of the hub (owner/name), "
            "imported first"
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="comma-separated: loss, topk, hellaswag, …; `gptlab eval --list` has all; loss without --suite"
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help=f"tasks by the name of a list, or of several: {', '.join(SUITES)}")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="questions of a task, or validation sequences; all by default")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="data set for loss and topk; by default the run's own")] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(help="folder of benchmark questions; see docs/evaluation.md for where they are found without it"),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="examples with their answers before each question; none by default")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="tokens of a window of text, for runs that were trained on different ones")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="tokens that a window of wikitext or ptb predicts; all of its own by default")
    ] = None,
    contamination: Annotated[
        bool, typer.Option("--contamination", help="look for each question in the run's training data")
    ] = False,
    format: Annotated[str, typer.Option(help=f"of the table: {', '.join(FORMATS)}")] = "table",
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with what was stopped; finished results of the same are taken")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="list all tasks and what they ask, and the suites")] = False,
    device: Device = "auto",
    checkpoint: Checkpoint = None,
    quantize: Quantize = None,
) -> None:
    """Evaluate runs; results go to RUN/evals/TASK.json and to a table."""
    if list_:
        _list_tasks()
        return
    if format not in FORMATS:
        raise GptlabError(f"--format {format}: {did_you_mean(format, FORMATS)}")
    if not runs:
        raise GptlabError("name the folder of a run, or several; `gptlab eval --list` shows what can be asked of them")
    from gptlab.evals.benchmark import Options

    options = Options(
        limit=limit,
        data=data,
        task_data=task_data,
        sequence_length=sequence_length,
        shots=shots,
        stride=stride,
        contamination=contamination,
    )
    how = How(device, checkpoint, quantize, resume)
    _evaluate_runs(runs, _names(tasks, suite), options, format, how)


@dataclass(frozen=True)
class How:
    """In which way runs are evaluated: where, which weights of theirs, rounded to what, and whether going on."""

    device: str
    checkpoint: str | None
    quantize: str | None
    resume: bool


def _names(tasks: str | None, suite: str | None) -> list[str]:
    """The tasks that were named, then those of suites, each once; loss where neither is given."""
    from gptlab.evals.suites import tasks_of

    named = [task.strip() for task in tasks.split(",")] if tasks is not None else []
    named += tasks_of([name.strip() for name in suite.split(",")]) if suite is not None else []
    return list(dict.fromkeys(named)) or ["loss"]


def _list_tasks() -> None:
    """Each benchmark with the first sentence of its module, which is not imported for it."""
    import ast
    from importlib.resources import files

    from gptlab.evals import benchmark_names

    rows = []
    for name in benchmark_names():
        text = (files("gptlab.evals") / f"{name}.py").read_text(encoding="utf-8")
        rows.append((name, " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())))
    show_rows(("task", "what it asks"), rows, left=2)
    output().print()
    suites = [(name, what, ", ".join(tasks)) for name, (what, tasks) in SUITES.items()]
    show_rows(("suite", "what it is for", "its tasks"), suites, left=3)


def _evaluate_runs(sources: Sequence[Path], names: Sequence[str], options: Options, format: str, how: How) -> None:
    """Evaluate each run, keep the results beside it, and print one table. What can be checked is checked first. Under
    torchrun the processes share questions and published texts; the main one imports, writes and prints."""
    from gptlab.evals.benchmark import check_benchmarks, find_benchmark
    from gptlab.hardware.device import pick_device
    from gptlab.interop.foreign import check_source, run_of
    from gptlab.parallel.world import destroy_distributed, find_world, init_distributed

    world = find_world()
    text_tasks = [name for name in names if find_benchmark(name).reads_data]
    _check_heard(names, options)
    if world.size > 1 and text_tasks:
        raise GptlabError(f"{' and '.join(text_tasks)}: one process's work; leave it out, or run it without torchrun")
    for source in sources:
        check_source(source)
    if options.limit is not None and 0 < len(text_tasks) < len(names):
        say(f"--limit {options.limit} holds for {' and '.join(text_tasks)} too: no more windows of text than that")
    here = pick_device(how.device, world.local_rank) if world.size > 1 else None
    joined = here is not None and init_distributed(world, here)
    try:
        if world.is_main:
            check_benchmarks(names, options)
        world.barrier()  # the main process may have downloaded what the others are about to read
        runs = world.broadcast([run_of(source) for source in sources] if world.is_main else [])
        if len(runs) > 1 and text_tasks:
            _check_alike(runs, options)
        shared = replace(options, world=world) if world.size > 1 else options
        rows, unwritten = _evaluate_each(runs, names, shared, how if here is None else replace(how, device=str(here)))
    finally:
        destroy_distributed(joined)
    if world.is_main:
        _show(rows, format)
    if unwritten is not None:
        raise unwritten


def _evaluate_each(
    runs: Sequence[Path], names: Sequence[str], options: Options, how: How
) -> tuple[list[tuple[Path, list[Evaluation]]], GptlabError | None]:
    """What each task finds about each run, written by the main process as it comes; and the first error of writing."""
    from gptlab.interop import load

    rows: list[tuple[Path, list[Evaluation]]] = []
    unwritten: GptlabError | None = None
    for folder in runs:
        run = load(folder, device=how.device, checkpoint=how.checkpoint, quantize=how.quantize)
        found = []
        for name in names:
            one, error = _evaluate_one(run, name, options, how)
            found.append(one)
            unwritten = unwritten or error  # the numbers are shown all the same: they took long to compute
        rows.append((folder, found))
    return rows, unwritten


def _evaluate_one(run: Run, name: str, options: Options, how: How) -> tuple[Evaluation, GptlabError | None]:
    """What a task finds about a run: with `how.resume` what was found of it before, as far as that goes."""
    from gptlab.evals.benchmark import evaluate as run_benchmark
    from gptlab.evals.journal import Journal
    from gptlab.evals.resuming import ASKED, depends_on, digest_of, finished
    from gptlab.parallel import World
    from gptlab.record.runfolder import log_line

    world, results = options.world or World(), evaluations_of(run.folder)
    depends = depends_on(run, name, options)
    if how.resume and (before := world.broadcast(finished(results, depends) if world.is_main else None)) is not None:
        if world.is_main:
            say(f"{before[0]}: is of these weights and questions already, and is taken as it is")
            Journal(results, name, depends).remove()
        return before[1], None
    journal = Journal(results, name, depends, world, resume=how.resume)
    with journal.open():
        found = run_benchmark(run, name, options)
    found.settings[ASKED] = digest_of(depends)
    world.barrier()  # each process has written the last of its journal, which is removed below
    if not world.is_main:
        return found, None
    path = result_path(run.folder, found, options, how.checkpoint)
    try:
        found.write(path)
    except GptlabError as error:
        return found, error
    journal.remove()
    say(f"wrote {path}")
    if run.folder.suffix != ".pt":
        log_line(run.folder, _line(found))
    return found, None


def _show(rows: Sequence[tuple[Path, list[Evaluation]]], format: str) -> None:
    """One table of all runs."""
    from gptlab.evals.benchmark import find_benchmark

    columns = [column for found in rows[0][1] for column in find_benchmark(found.task).columns]
    cells = [_row(*row) for row in rows]
    print_rows(("run", "step", *(column.heading for column in columns)), cells, format)
    if any(AT_CHANCE in cell for row in cells for cell in row):
        say(f"{AT_CHANCE.strip()} not above chance: its 95% interval reaches what guessing comes to")


def _check_heard(names: Sequence[str], options: Options) -> None:
    """Raise GptlabError for an option that none of the tasks reads."""
    from gptlab.evals.benchmark import find_benchmark
    from gptlab.evals.questions import QuestionTask

    asked = any(isinstance(getattr(find_benchmark(name).run, "__self__", None), QuestionTask) for name in names)
    for option, given in (("--shots", options.shots is not None), ("--contamination", options.contamination)):
        if given and not asked and "core" not in names:
            raise GptlabError(f"{option} is for tasks of questions, and there is none among {', '.join(names)}")
    if options.stride is not None and not {"wikitext", "ptb"} & set(names):
        raise GptlabError(f"--stride is for wikitext and ptb, and neither is among {', '.join(names)}")


def _check_alike(runs: Sequence[Path], options: Options) -> None:
    """Raise GptlabError where a table would hold numbers of different text, or of windows of different lengths."""
    from gptlab.data import measured_on
    from gptlab.evals.validation import validation_sets
    from gptlab.record.measurement import Identity, unlike_pair
    from gptlab.record.runfolder import read_config
    from gptlab.tokenizer import load_tokenizer

    def identity(folder: Path) -> Identity:
        config, tokenizer = read_config(folder), load_tokenizer(folder / "tokenizer")
        changes = {"tokens": options.limit, "sequence_length": options.sequence_length or config.validation_length}
        config = config.model_copy(update={"eval": config.eval.model_copy(update=changes)})
        return measured_on(config, tokenizer, validation_sets(folder, config.data, tokenizer, options.data))

    own = ((folder, identity(folder)) for folder in runs if folder.suffix != ".pt")
    if found := unlike_pair(own, by_byte=True):
        folder, first, difference = found
        raise GptlabError(
            f"{folder} would be measured on something else than {first}, {difference}; give both one --sequence-length "
            "and one --data, or evaluate them one by one"
        )


def result_path(folder: Path, found: Evaluation, options: Options, checkpoint: str | None) -> Path:
    """RUN/evals/TASK.json; another data set, window or checkpoint than the run's own goes into the name, and int8."""
    parts = [found.task]
    if (data := found.settings.get("data")) is not None and options.data is not None:
        parts += [options.data.resolve().name, data["data"]["fingerprint"][:8]]
    if {"sequence_length", "pages"} & {*found.settings, *found.results} and options.sequence_length is not None:
        parts.append(f"window{options.sequence_length}")
    if "stride" in found.settings:
        parts.append(f"stride{found.settings['stride']}")
    if found.settings.get("shots"):
        parts.append(f"{found.settings['shots']}-shot")
    if checkpoint is not None:  # by its step: what is the best one changes
        parts.append(f"step-{found.settings['step']:08}")
    parts.append(found.settings.get("quantized", ""))
    return evaluations_of(folder) / ("-".join(filter(None, parts)) + ".json")


def evaluations_of(folder: Path) -> Path:
    """Where results of a run go: RUN/evals, or evals/ beside a file of others."""
    return (folder.parent if folder.suffix == ".pt" else folder) / "evals"


def _row(folder: Path, evaluations: Sequence[Evaluation]) -> list[str]:
    from gptlab.evals.benchmark import find_benchmark

    step = evaluations[0].settings["step"]
    cells = [_cell(found, column) for found in evaluations for column in find_benchmark(found.task).columns]
    return [folder.name, "" if step is None else str(step), *cells]


def _line(found: Evaluation) -> str:
    """What a task found, for the run's log."""
    from gptlab.evals.benchmark import find_benchmark

    step, kept = found.settings["step"], found.settings.get("quantized")
    shown = (f"{column.heading} {_cell(found, column)}" for column in find_benchmark(found.task).columns)
    weights = "" if kept is None else f" with {kept} weights"
    return f"{found.task}{'' if step is None else f' at step {step}'}{weights}: {', '.join(shown)}"


AT_CHANCE = " ~"
"""Marks an accuracy that is not above chance."""


def _cell(found: Evaluation, column: Column) -> str:
    value, error = found.results[column.key], found.standard_errors[column.key]
    if value is None:
        return "unknown"
    low, chance = (found.results.get("intervals") or {}).get(column.key, [None])[0], found.results.get("chance")
    mark = AT_CHANCE if low is not None and chance and low <= chance else ""
    return f"{value:.{column.digits}f}" + (f" ± {error:.{column.digits}f}" if error is not None else "") + mark
