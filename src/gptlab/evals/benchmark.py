"""A benchmark is one record: what it is called, what runs it, which files it needs, which numbers are shown.

Each stands in a file of its own, `gptlab/evals/NAME.py`, as `BENCHMARK`, and is found there by its name: to add one is
to add a file.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.sources.download import download
from gptlab.errors import DataError, GptlabError, did_you_mean, option
from gptlab.evals import benchmark_names
from gptlab.files import not_a_folder
from gptlab.parallel import World
from gptlab.record.evaluation import Evaluation as Evaluation
from gptlab.record.measurement import SCORER
from gptlab.run import Run
from gptlab.version import __version__


@dataclass(frozen=True)
class Options:
    """What may be asked of a task.

    Attributes:
        limit: so many questions, or validation windows; all for None.
        data: another data set for the loss task.
        sequence_length: tokens of a window; None: those of the run's own validation, or all that the model sees.
        world: the processes that share the questions; None: this one has them all.
        task_data: folder that holds the questions; None: GPTLAB_BENCHMARKS, else they are downloaded.
        stride: tokens that each window of a published text predicts; None: all of its own, and windows do not overlap.
        contamination: whether to look for each question in the run's training data.
        shots: so many examples with their answers before each question; None: none.
    """

    limit: int | None = None
    data: Path | None = None
    task_data: Path | None = None
    sequence_length: int | None = None
    world: World | None = None
    shots: int | None = None
    stride: int | None = None
    contamination: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise GptlabError(f"{option('limit')} must be at least 1 (given: {self.limit}); leave it out for all")
        if self.shots is not None and self.shots < 0:
            raise GptlabError(f"{option('shots')} must be at least 0 (given: {self.shots})")
        for name in ("sequence_length", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise GptlabError(f"{option(name)} must be at least 1 (given: {value})")


@dataclass(frozen=True)
class QuestionFile:
    """A file of questions, as its authors publish it."""

    name: str
    url: str


@dataclass(frozen=True)
class Column:
    """A number that is shown in the table of results: its heading, its key in `Evaluation.results`, its digits."""

    heading: str
    key: str
    digits: int = 4


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: that of its file.
        run: evaluates one run. Raises GptlabError for everything a user can mend.
        columns: what is shown of the results.
        files: the questions that it needs.
        reads_data: whether it reads a data set of the run, or the one of `Options.data`.
        accuracy: whether its results have `acc`, so that an experiment can be decided by it.
        version: raised when it comes to other numbers for the same weights and questions.
        optional: files without which it does what it can.
    """

    name: str
    run: Callable[[Run, Options], Evaluation]
    columns: tuple[Column, ...]
    files: tuple[QuestionFile, ...] = ()
    reads_data: bool = False
    accuracy: bool = True
    version: int = 1
    optional: tuple[QuestionFile, ...] = ()


def find_benchmark(name: str) -> Benchmark:
    """The benchmark `name`. Raises GptlabError where there is none."""
    if name not in benchmark_names():
        raise GptlabError(f"{option('tasks')}: no task {name!r}; {did_you_mean(name, benchmark_names())}")
    found: Benchmark = importlib.import_module(f"gptlab.evals.{name}").BENCHMARK
    return found


def evaluate(run: Run, name: str, options: Options | None = None) -> Evaluation:
    """What the benchmark `name` finds about `run`. Raises GptlabError for everything a user can mend."""
    benchmark, options = find_benchmark(name), options or Options()
    started = time.monotonic()
    found = benchmark.run(run, options)
    found.settings = {
        "run": run.folder.name,
        "step": run.step,
        "weights": run.weights,
        "version": f"{SCORER}.{benchmark.version}",
        "gptlab": __version__,
        "tokenizer": {"name": run.tokenizer.name, "hash": run.tokenizer.hash},
        "device": str(run.device),
        "dtype": str(run.dtype).removeprefix("torch."),
        **({} if run.quantized is None else {"quantized": run.quantized}),
        "limit": options.limit,
        **found.settings,
        "seconds": round(time.monotonic() - started, 3),
    }
    return found


def check_benchmarks(names: Sequence[str], options: Options) -> None:
    """Raise GptlabError for a name that is no benchmark, and where the questions of one are not to be had."""
    for benchmark in [find_benchmark(name) for name in names]:
        for file in benchmark.files:
            find_questions(benchmark.name, file, options.task_data)


BESIDE = (Path("data/benchmarks"), Path("../shared/data"))
"""Folders, seen from the working folder, where questions are looked for before they are downloaded."""


def find_questions(task: str, questions: QuestionFile, folder: Path | None = None) -> Path:
    """Where the questions of the benchmark `task` are: in `folder`; else in GPTLAB_BENCHMARKS, where that is set; else
    in one of BESIDE; else downloaded once. Which file it was stands in the results.

    A folder holds them as TASK/FILE or FILE, plain, with .gz, or as Parquet. Raises DataError where they are not to be
    had.
    """
    file, url = questions.name, questions.url
    forms = (file, f"{file}.gz", str(Path(file).with_suffix(".parquet")))
    names = (*(f"{task}/{form}" for form in forms), *forms)
    named = os.environ.get("GPTLAB_BENCHMARKS")
    source = option("task_data") if folder is not None else "GPTLAB_BENCHMARKS"
    if folder is None and named:
        folder = Path(named).expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(f"{source}: {not_a_folder(folder, 'a folder of questions')}; get {file} from {url}")
    for place in BESIDE if folder is None else (folder,):
        if (found := next((place / name for name in names if (place / name).is_file()), None)) is not None:
            return found
    if folder is not None:
        raise DataError(
            f"{source}: {folder} holds no {task}/{file} or {file} (plain, .gz, or .parquet); get it from {url}"
        )
    try:
        return download(url)
    except DataError as error:
        raise DataError(
            f"{task}: {str(error).partition('; check')[0]}; put {file} into a folder and name it with "
            f"{option('task_data')} "
            "FOLDER or GPTLAB_BENCHMARKS"
        ) from None
