"""The tasks of `gptlab eval`: each looks at one run and gives an `Evaluation`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gptlab.console import progress, say
from gptlab.data import MANIFEST, Batch, TokenDataset, validation_batches
from gptlab.data.sources.download import download
from gptlab.errors import DataError, GptlabError, did_you_mean
from gptlab.evals import hellaswag
from gptlab.evals.choice import Question, accuracy, answer_questions
from gptlab.evals.topk import KS, window_hits
from gptlab.files import sha256_file, write_atomic
from gptlab.inference.scoring import LossResult, window_sums
from gptlab.version import __version__

if TYPE_CHECKING:
    from gptlab.config.schema import Data
    from gptlab.run import Run
    from gptlab.tokenizer import Tokenizer

_WINDOW_TOKENS = {"cpu": 2**13, "mps": 2**14, "cuda": 2**16}  # tokens of a batch of windows


@dataclass(frozen=True)
class Options:
    """What may be asked of a task.

    Attributes:
        limit: so many questions, or validation windows; all for None.
        data: another data set for the loss task.
        task_data: folder that holds the questions; None: GPTLAB_BENCHMARKS, else they are downloaded.
    """

    limit: int | None = None
    data: Path | None = None
    task_data: Path | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise GptlabError(f"--limit must be at least 1 (given: {self.limit}); leave it out for all")


@dataclass
class Evaluation:
    """What a task found about a run.

    Attributes:
        task: its name.
        results: the numbers, by name.
        standard_errors: of some of them, by the same names; None where one window or question was all.
        settings: what the numbers depend on.
        records: a row a question, where there are questions.
    """

    task: str
    results: dict[str, Any]
    standard_errors: dict[str, float | None]
    settings: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Keep it as JSON, a record a line. Raises GptlabError where the disk refuses."""
        head = {
            "task": self.task,
            "results": self.results,
            "standard_errors": self.standard_errors,
            "settings": self.settings,
        }
        text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
        if self.records:
            rows = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in self.records)
            text = f'{text[:-2]},\n "records": [\n{rows}\n ]\n}}'
        try:
            write_atomic(path, text + "\n")
        except OSError as error:
            raise GptlabError(f"cannot write {path}: {error.strerror}; free some space or mend its rights") from None


def evaluate(run: Run, task: str, options: Options | None = None) -> Evaluation:
    """What `task` (a key of TASKS) finds about `run`. Raises GptlabError for everything a user can mend."""
    check_tasks([task])
    options = options or Options()
    started = time.monotonic()
    found = TASKS[task](run, options)
    found.settings = {
        "run": run.folder.name,
        "step": run.step,
        "gptlab": __version__,
        "tokenizer": {"name": run.tokenizer.name, "hash": run.tokenizer.hash},
        "device": str(run.device),
        "dtype": str(run.dtype).removeprefix("torch."),
        "limit": options.limit,
        **found.settings,
        "seconds": round(time.monotonic() - started, 3),
    }
    return found


def check_tasks(names: list[str], options: Options | None = None) -> None:
    """Raise GptlabError for a name that is no task; with `options` also where a task's questions are not to be had."""
    for name in names:
        if name not in TASKS:
            raise GptlabError(f"--tasks: no task {name!r}; {did_you_mean(name, TASKS)}")
    for name in names if options is not None else ():
        if name in QUESTIONS:
            QUESTIONS[name](options)


# ---------------------------------------------------------------- loss


def evaluate_loss_task(run: Run, options: Options) -> Evaluation:
    """Loss, perplexity and bits per byte on validation text, in windows as in training's own validation."""
    sets = validation_sets(run.folder, run.config.data, run.tokenizer, options.data)
    length = run.config.train.sequence_length
    table = run.tokenizer.token_bytes()

    def sums(batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
        return window_sums(run.model, batches, token_bytes=table, device=run.device, dtype=run.dtype)

    rows = {name: _window_rows(run, dataset, "loss", name, options.limit, sums) for name, dataset in sets.items()}
    every = torch.cat(list(rows.values()))
    results, errors = _loss_numbers(every)
    if len(sets) > 1:
        results["sources"] = {name: _loss_numbers(found)[0] for name, found in rows.items()}
    return Evaluation("loss", results, errors, _window_settings(sets, length))


def evaluate_topk(run: Run, options: Options) -> Evaluation:
    """How often the next token of validation text is among the k likeliest, given the true tokens before it."""
    sets = validation_sets(run.folder, run.config.data, run.tokenizer, options.data)

    def hits(batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
        return window_hits(run.model, batches, device=run.device, dtype=run.dtype)

    found = [_window_rows(run, dataset, "top-k", name, options.limit, hits) for name, dataset in sets.items()]
    rows = torch.cat(found)
    results: dict[str, Any] = {"tokens": int(rows[:, 0].sum()), "windows": len(rows)}
    errors: dict[str, float | None] = {}
    for number, k in enumerate(KS, start=1):
        results[f"top_{k}"] = float(rows[:, number].sum() / rows[:, 0].sum())
        errors[f"top_{k}"] = _ratio_error(rows[:, number], rows[:, 0])
    return Evaluation("topk", results, errors, _window_settings(sets, run.config.train.sequence_length))


def _window_settings(sets: dict[str, TokenDataset], length: int) -> dict[str, Any]:
    described = {name: {"path": str(d.path), "fingerprint": d.fingerprint} for name, d in sets.items()}
    return {"data": described, "split": "validation", "sequence_length": length}


def validation_sets(folder: Path, section: Data, tokenizer: Tokenizer, data: Path | None) -> dict[str, TokenDataset]:
    """The validation split of each source of `section`, the data of the run in `folder`, or of `data` in its place.

    Raises DataError where nothing is named, or it was made with another tokenizer.
    """
    sources = {"data": str(data)} if data else section.sources or ({"data": section.path} if section.path else {})
    if not sources:
        raise DataError(f"{folder} names no data; give a data set with --data FOLDER")
    found = {}
    for name, path in sources.items():
        if (Path(path) / MANIFEST).is_file() or not Path(path).is_dir():
            found[name] = TokenDataset.open(path, "validation", tokenizer_hash=tokenizer.hash)
        else:
            vocab_size, separator = tokenizer.vocab_size, tokenizer.end_of_text
            found[name] = TokenDataset.open(path, "validation", vocab_size=vocab_size, end_of_text=separator)
    return found


def _window_rows(
    run: Run,
    dataset: TokenDataset,
    what: str,
    name: str,
    limit: int | None,
    measure: Callable[[Iterator[Batch]], Iterator[torch.Tensor]],
) -> torch.Tensor:
    """What `measure` finds in each window, (windows, numbers), float64."""
    length = run.config.train.sequence_length
    available = max(0, dataset.tokens - 1)
    tokens = available if limit is None else min(available, limit * length)
    rows = max(1, _WINDOW_TOKENS[run.device.type] // length)
    windows = -(-tokens // length)
    with progress(unit="windows") as bar:
        task = bar.add_task(f"{run.folder.name}: {what}" + ("" if name == "data" else f" on {name}"), total=windows)

        def counted() -> Iterator[Batch]:
            for batch in validation_batches(dataset, length, min(rows, max(1, windows)), tokens):
                yield batch
                bar.advance(task, len(batch.inputs))

        found = [rows_of_batch.cpu().double() for rows_of_batch in measure(counted())]
    return torch.cat(found)[:windows]


def _loss_numbers(rows: torch.Tensor) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Numbers and standard errors from the sums of windows, (windows, 4).

    A loss is a ratio of sums over windows, r = Σa / Σb, whose error by linearization is
    √(n / (n − 1) · Σ(a − r b)²) / Σb (Cochran, "Sampling Techniques", 1977, section 6.4).
    """
    nats, tokens, text_nats, size = rows.sum(0).tolist()
    total = LossResult(nats, round(tokens), text_nats, round(size))
    results: dict[str, Any] = {
        "loss": total.loss,
        "perplexity": total.perplexity,
        "bits_per_byte": total.bits_per_byte,
        "tokens": total.tokens,
        "bytes": total.bytes,
        "windows": len(rows),
    }
    if not math.isfinite(total.loss):
        raise GptlabError(f"the loss is {total.loss}: the weights are not finite; evaluate an earlier --checkpoint")
    loss_error = _ratio_error(rows[:, 0], rows[:, 1])
    errors = {"loss": loss_error, "perplexity": None if loss_error is None else total.perplexity * loss_error}
    byte_error = _ratio_error(rows[:, 2], rows[:, 3]) if total.bytes else None
    errors["bits_per_byte"] = None if byte_error is None else byte_error / math.log(2)
    return results, errors


def _ratio_error(above: torch.Tensor, below: torch.Tensor) -> float | None:
    n = len(above)
    if n < 2:
        return None
    residual = above - above.sum() / below.sum() * below
    return math.sqrt(n / (n - 1) * float(residual.square().sum())) / float(below.sum())


# ---------------------------------------------------------------- multiple choice


def evaluate_hellaswag(run: Run, options: Options) -> Evaluation:
    """HellaSwag's `acc` and `acc_norm`, with a record of each question."""
    path = QUESTIONS["hellaswag"](options)
    questions = hellaswag.read_questions(path, options.limit)
    return _multiple_choice(run, "hellaswag", questions, path)


def _multiple_choice(run: Run, task: str, questions: list[Question], path: Path) -> Evaluation:
    try:
        answers = answer_questions(run, questions, description=f"{run.folder.name}: {task}")
    except DataError as error:
        raise DataError(f"{task} with {run.folder}: {error}") from None
    records = [answer.record() for answer in answers]
    if not all(math.isfinite(value) for answer in answers for value in answer.logprobs):
        raise GptlabError(f"{run.folder}: a probability is not finite; evaluate an earlier --checkpoint")
    results: dict[str, Any] = {}
    errors: dict[str, float | None] = {}
    for metric in ("acc", "acc_norm"):
        results[metric], errors[metric] = accuracy([record[metric] for record in records])
    results["questions"] = len(records)
    results["truncated"] = sum(record["truncated"] for record in records)
    if results["truncated"]:
        cut = f"{results['truncated']} of {len(records)} questions"
        say(f"{task}: {cut} are longer than {run.model.context_length} tokens and were cut on the left")
    settings = {"file": path.name, "sha256": sha256_file(path), "context_length": run.model.context_length}
    return Evaluation(task, results, errors, settings, records)


BESIDE = (Path("data/benchmarks"), Path("../shared/data"))
"""Folders, seen from the working folder, where questions are looked for before they are downloaded."""


def find_benchmark(task: str, file: str, url: str, folder: Path | None = None) -> Path:
    """Where the questions of `task` are: in `folder`; else in GPTLAB_BENCHMARKS, where that is set; else in one of
    BESIDE; else downloaded from `url` once. Which file it was stands in the results.

    A folder holds them as TASK/FILE or FILE, plain or with .gz. Raises DataError where they are not to be had.
    """
    names = (f"{task}/{file}", f"{task}/{file}.gz", file, f"{file}.gz")
    named = os.environ.get("GPTLAB_BENCHMARKS")
    source = "--task-data" if folder is not None else "GPTLAB_BENCHMARKS"
    if folder is None and named:
        folder = Path(named).expanduser()
    for place in BESIDE if folder is None else (folder,):
        if (found := next((place / name for name in names if (place / name).is_file()), None)) is not None:
            return found
    if folder is not None:
        raise DataError(f"{source}: {folder} holds no {task}/{file} or {file} (.gz or not); get it from {url}")
    try:
        return download(url)
    except DataError as error:
        raise DataError(
            f"{task}: {str(error).partition('; check')[0]}; put {file} into a folder and name it with --task-data "
            "FOLDER or GPTLAB_BENCHMARKS"
        ) from None


QUESTIONS: dict[str, Callable[[Options], Path]] = {
    "hellaswag": lambda options: find_benchmark("hellaswag", hellaswag.FILE, hellaswag.URL, options.task_data),
}
"""Where the questions of a task are, for tasks that have some. Raises DataError where they are not to be had."""

TASKS: dict[str, Callable[[Run, Options], Evaluation]] = {
    "loss": evaluate_loss_task,
    "topk": evaluate_topk,
    "hellaswag": evaluate_hellaswag,
}
"""Every task by its name."""
