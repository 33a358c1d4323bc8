"""CORE: 22 tasks whose accuracies, less what guessing gives, come to one number (Li et al. 2024, "DataComp-LM",
arXiv:2406.11794, section 3.5), asked as nanochat asks them, whose figures it is compared with.

- K examples before each question, drawn from the task's other questions by a generator of seed 1234 + its number, after
  the questions have been shuffled with seed 1337.
- Multiple choice takes the choice with the lowest mean −log p over the tokens in which choices differ, a schema the
  context with the lowest over those that they share at the end; completion asks that every token is the likeliest.
- Centred accuracy is (acc − guess) / (1 − guess); CORE is the mean over all tasks. BoolQ's guess, 0.62, is that of
  always saying yes.

The data are LLM Foundry's. Tasks whose data are missing are named, and there is no CORE without them: only the mean of
those that are there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptlab.console import say, track
from gptlab.errors import DataError, GptlabError, option
from gptlab.evals.benchmark import Benchmark, Column, Evaluation, Options, QuestionFile, find_questions
from gptlab.evals.likelihood import EncodedPair, Likelihood, log_likelihoods
from gptlab.evals.multiple_choice import mean, question_settings
from gptlab.evals.questions import Row, read_rows, text, texts
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer

DATA = "https://raw.githubusercontent.com/mosaicml/llm-foundry/main/scripts/eval/local_data"

Kind = Literal["choice", "schema", "completion"]


@dataclass(frozen=True)
class CoreTask:
    """One task: its file among LLM Foundry's, how it is asked, how many examples come before, what guessing gives."""

    name: str
    place: str
    kind: Kind
    shots: int
    guess: float = 0.0
    delimiter: str = " "

    @property
    def file(self) -> QuestionFile:
        """Where its questions are."""
        return QuestionFile(self.place.rpartition("/")[2], f"{DATA}/{self.place}")


ANSWER = "\nAnswer: "
TASKS = (
    CoreTask("hellaswag_zeroshot", "language_understanding/hellaswag.jsonl", "choice", 0, 0.25),
    CoreTask("jeopardy", "world_knowledge/jeopardy_all.jsonl", "completion", 10, delimiter=ANSWER),
    CoreTask("bigbench_qa_wikidata", "world_knowledge/bigbench_qa_wikidata.jsonl", "completion", 10),
    CoreTask("arc_easy", "world_knowledge/arc_easy.jsonl", "choice", 10, 0.25, ANSWER),
    CoreTask("arc_challenge", "world_knowledge/arc_challenge.jsonl", "choice", 10, 0.25, ANSWER),
    CoreTask("copa", "commonsense_reasoning/copa.jsonl", "choice", 0, 0.5),
    CoreTask("commonsense_qa", "commonsense_reasoning/commonsense_qa.jsonl", "choice", 10, 0.2),
    CoreTask("piqa", "commonsense_reasoning/piqa.jsonl", "choice", 10, 0.5, ANSWER),
    CoreTask("openbook_qa", "commonsense_reasoning/openbook_qa.jsonl", "choice", 0, 0.25),
    CoreTask("lambada_openai", "language_understanding/lambada_openai.jsonl", "completion", 0),
    CoreTask("hellaswag", "language_understanding/hellaswag.jsonl", "choice", 10, 0.25),
    CoreTask("winograd", "language_understanding/winograd_wsc.jsonl", "schema", 0, 0.5),
    CoreTask("winogrande", "language_understanding/winogrande.jsonl", "schema", 0, 0.5),
    CoreTask("bigbench_dyck_languages", "symbolic_problem_solving/bigbench_dyck_languages.jsonl", "completion", 10),
    CoreTask("agi_eval_lsat_ar", "symbolic_problem_solving/agi_eval_lsat_ar.jsonl", "choice", 3, 0.2),
    CoreTask("bigbench_cs_algorithms", "symbolic_problem_solving/bigbench_cs_algorithms.jsonl", "completion", 10),
    CoreTask("bigbench_operators", "symbolic_problem_solving/bigbench_operators.jsonl", "completion", 10),
    CoreTask(
        "bigbench_repeat_copy_logic", "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl", "completion", 10
    ),
    CoreTask("squad", "reading_comprehension/squad.jsonl", "completion", 10),
    CoreTask("coqa", "reading_comprehension/coqa.jsonl", "completion", 0),
    CoreTask("boolq", "reading_comprehension/boolq.jsonl", "choice", 10, 0.62, ANSWER),
    CoreTask(
        "bigbench_language_identification",
        "language_understanding/bigbench_language_identification.jsonl",
        "choice",
        10,
        0.091,
    ),
)


def prompts(task: CoreTask, rows: Sequence[Row], number: int) -> tuple[list[str], int]:
    """The texts of question `number` that are compared, with its examples; and the right one's number. Of a completion:
    the text without its end, and with it."""
    examples: list[Row] = []
    if task.shots:
        others = [other for other in range(len(rows)) if other != number]
        examples = [rows[other] for other in random.Random(1234 + number).sample(others, task.shots)]
    row, ask = rows[number], _ASK[task.kind]
    before = "".join(f"{ask(task, example)[0]}\n\n" for example in examples)
    right, asked, gold = ask(task, row)
    if task.kind == "completion":
        return [(before + asked[0]).strip(), before + right], 1
    return [before + one for one in asked], gold


def _choice(task: CoreTask, row: Row) -> tuple[str, list[str], int]:
    """The text with the right answer, all texts, and the right one's number; so too of the others."""
    asked = [f"{text(row, 'query')}{task.delimiter}{choice}" for choice in texts(row, "choices")]
    return asked[int(row["gold"])], asked, int(row["gold"])


def _schema(task: CoreTask, row: Row) -> tuple[str, list[str], int]:
    rest = text(row, "continuation")
    asked = [f"{context}{task.delimiter}{rest}" for context in texts(row, "context_options")]
    return asked[int(row["gold"])], asked, int(row["gold"])


def _completion(task: CoreTask, row: Row) -> tuple[str, list[str], int]:
    without = f"{text(row, 'context').strip()}{task.delimiter}"
    whole = f"{without}{text(row, 'continuation')}"
    return whole, [without, whole], 1


_ASK: dict[Kind, Callable[[CoreTask, Row], tuple[str, list[str], int]]] = {
    "choice": _choice,
    "schema": _schema,
    "completion": _completion,
}


def encode(task: CoreTask, asked: Sequence[str], tokenizer: Tokenizer, context_length: int) -> list[EncodedPair]:
    """The ids that are scored: of choices from where they differ, of a schema those that all end in, of a completion
    those of its end."""
    rows = [[tokenizer.end_of_text, *tokenizer.encode(one)] for one in asked]
    common = _common(rows if task.kind != "schema" else [row[::-1] for row in rows])
    if task.kind == "completion":
        rows, counts = rows[1:], [len(rows[1]) - common]
    else:
        counts = [common if task.kind == "schema" else len(row) - common for row in rows]
    pairs = []
    for row, count in zip(rows, counts, strict=True):
        kept = row[-(context_length + 1) :]
        # At least one token, and never the one that has nothing before it.
        pairs.append(EncodedPair(kept, min(max(1, count), len(kept) - 1), len(kept) < len(row)))
    return pairs


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def is_right(kind: Kind, pairs: Sequence[EncodedPair], found: Sequence[Likelihood], gold: int) -> bool:
    """Whether the model answered as it should."""
    if kind == "completion":
        return bool(found[0].greedy)
    means = [-one.logprob / pair.count for pair, one in zip(pairs, found, strict=True)]
    return means.index(min(means)) == gold


def evaluate_core(run: Run, options: Options) -> Evaluation:
    """CORE and the accuracy of each task, with a record of each question. `options.limit` is of each task.

    Raises GptlabError for everything a user can mend.
    """
    if options.shots is not None:
        raise GptlabError(f"{option('shots')}: core's tasks have their own numbers of examples; leave it out")
    if options.contamination:
        raise GptlabError(f"{option('contamination')}: not for core; ask for its tasks by their names")
    shown = options.world is None or options.world.is_main
    files: dict[CoreTask, Path] = {}
    missing: dict[str, str] = {}
    for task in TASKS:
        try:
            files[task] = find_questions("core", task.file, options.task_data)
        except DataError as error:
            missing[task.name] = str(error)
    if not files:
        raise DataError(f"none of core's tasks has data; the first: {next(iter(missing.values()))}")
    if missing and shown:
        say(f"core: no data for {', '.join(missing)} ({next(iter(missing.values()))}); their mean is not CORE")
    records: list[dict[str, Any]] = []
    for task, path in files.items():
        records += _records(run, task, path, options)
    tasks = {}
    for task in files:
        right = [record["acc"] for record in records if record["task"] == task.name]
        share, error = mean(right)
        centred = {"centred": (share - task.guess) / (1 - task.guess), "error": (error or 0.0) / (1 - task.guess)}
        tasks[task.name] = {"acc": share, **centred, "questions": len(right), "shots": task.shots}
    present = sum(one["centred"] for one in tasks.values()) / len(tasks)
    error = math.sqrt(sum(one["error"] ** 2 for one in tasks.values())) / len(tasks)
    results = {
        "core": None if missing else present,
        "mean_of_present": present,
        "present": len(tasks),
        "of": len(TASKS),
        "questions": len(records),
        "truncated": sum(record["truncated"] for record in records),
        "tasks": tasks,
        "missing": sorted(missing),
    }
    errors = {"core": None if missing else error, "mean_of_present": error}
    return Evaluation("core", results, errors, question_settings(list(files.values()), run), records)


def _records(run: Run, task: CoreTask, path: Path, options: Options) -> list[dict[str, Any]]:
    """A row a question of one task."""
    world = options.world
    shown = world is None or world.is_main
    rows = [row for _, row in read_rows(path, task.name, task.file.url)]
    random.Random(1337).shuffle(rows)
    if len(rows) <= task.shots:
        raise DataError(f"{path}: {task.name} takes {task.shots} examples, and there are {len(rows)} questions in all")
    description = f"{run.folder.name}: core {task.name}"
    numbers = range(min(len(rows), options.limit or len(rows)))
    encoded, golds = [], []
    for number in track(numbers, f"{description}: encoding", total=len(numbers), unit="questions", shown=shown):
        try:
            asked, gold = prompts(task, rows, number)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}: holds no {task.name} question ({what}); get it again: {task.file.url}") from None
        encoded.append(encode(task, asked, run.tokenizer, run.model.context_length))
        golds.append(gold)
    pairs, greedy = [pair for pairs in encoded for pair in pairs], task.kind == "completion"
    every = log_likelihoods(run, pairs, description=description, world=world, greedy=greedy)
    if not all(math.isfinite(one.logprob) for one in every):
        raise GptlabError(f"{run.folder}: a probability is not finite; evaluate an earlier {option('checkpoint')}")
    records, done = [], 0
    for number, (pairs, gold) in enumerate(zip(encoded, golds, strict=True)):
        right = is_right(task.kind, pairs, every[done : done + len(pairs)], gold)
        done += len(pairs)
        cut = any(pair.truncated for pair in pairs)
        records.append({"task": task.name, "id": number, "acc": int(right), "truncated": cut})
    return records


BENCHMARK = Benchmark(
    "core",
    evaluate_core,
    (Column("CORE", "core"), Column("mean of those here", "mean_of_present")),
    accuracy=False,
    optional=tuple(task.file for task in TASKS),
)
