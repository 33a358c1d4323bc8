"""Benchmarks of questions: where their rows come from, how a row becomes a question, and the examples before it.

Prompts and examples are lm-evaluation-harness's to the letter (version 0.4), so that numbers compare with published
ones: with K examples, for each question in turn K are drawn from the training split by one generator of seed 1234, or,
where there is none, from the questions themselves; a blank line stands after each. One difference: the harness may then
draw the very question that is asked, with its answer; here another takes its place.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptlab.console import say
from gptlab.errors import DataError, GptlabError, option
from gptlab.evals.benchmark import Column, Evaluation, Options, QuestionFile, find_questions
from gptlab.evals.contamination import mark_seen
from gptlab.evals.multiple_choice import Question, evaluate_questions
from gptlab.files import sha256_files
from gptlab.parallel import World
from gptlab.run import Run

Row = dict[str, Any]

SEED = 1234
"""Of the examples: the harness's."""

BETWEEN = "\n\n"
"""What follows each example."""


def hub_file(repository: str, configuration: str, split: str) -> str:
    """Where Hugging Face keeps a split of a data set as Parquet, which it makes of every public one."""
    place = f"{configuration}/{split}/0000.parquet"
    return f"https://huggingface.co/datasets/{repository}/resolve/refs%2Fconvert%2Fparquet/{place}"


def columns(name: str, *metrics: str) -> tuple[Column, ...]:
    """What is shown of a benchmark's accuracies: the first with its name."""
    first, *others = metrics or ("acc", "acc_norm")
    return (Column(f"{name} {first}", first), *(Column(metric, metric) for metric in others))


Draw = Callable[[Question], list[Question]]
"""Draws the examples of a question."""


@dataclass(frozen=True)
class QuestionTask:
    """One benchmark of questions.

    Attributes:
        name: the benchmark's.
        question: makes a question of a row and its number, or None of a row that holds none. A KeyError, TypeError,
            ValueError or IndexError of it becomes the message that the row is none.
        files: of the questions.
        examples: of the questions from which examples are drawn; none: from the questions themselves.
        spare: whether the harness draws one example more than it shows, which it does where a data set has no test
            split and the questions are its validation split.
        describe: the prompt's opening, of a subject; with it examples are the subject's first ones, in order.
        score: what is made of the questions.
    """

    name: str
    question: Callable[[Row, int], Question | None]
    files: tuple[QuestionFile, ...]
    examples: tuple[QuestionFile, ...] = ()
    spare: bool = False
    describe: Callable[[str], str] | None = None
    score: Callable[[Run, str, Sequence[Question], Sequence[Path], World | None], Evaluation] = evaluate_questions

    def evaluate(self, run: Run, options: Options) -> Evaluation:
        """The benchmark's numbers, with a record of each question. Raises GptlabError for all that a user can mend."""
        questions, paths, noted = self.ask(options)
        found = self.score(run, self.name, questions, paths, options.world)
        if options.contamination:
            plain, _, _ = self.ask(replace(options, shots=None))
            noted["contamination"] = mark_seen(run, found, plain, shown=options.world is None or options.world.is_main)
        return replace(found, settings={**found.settings, **noted})

    def ask(self, options: Options) -> tuple[list[Question], list[Path], dict[str, Any]]:
        """The questions with their examples before them, the files they are from, and what to note of the examples."""
        paths = [find_questions(self.name, file, options.task_data) for file in self.files]
        every = _in_turn(self._read(paths, self.files))
        questions, shots = every[: options.limit], options.shots or 0
        noted: dict[str, Any] = {} if options.shots is None else {"shots": shots}
        draw: Draw = lambda question: []  # noqa: E731
        if shots:
            pool, known = self._pool(options)
            draw = self._examples(every if pool is None else pool, shots, own=pool is None)
            noted |= known
        return [self._prompted(question, draw(question)) for question in questions], paths, noted

    def _prompted(self, question: Question, examples: Sequence[Question]) -> Question:
        opening = "" if self.describe is None else self.describe(question.subject)
        before = opening + "".join(example.answered + BETWEEN for example in examples)
        return replace(question, contexts=tuple(before + context for context in question.contexts))

    def _read(self, paths: Sequence[Path], files: Sequence[QuestionFile]) -> list[Question]:
        pairs = zip(paths, files, strict=True)
        return [
            question for path, file in pairs for question in read_questions(path, self.name, self.question, file.url)
        ]

    def _pool(self, options: Options) -> tuple[list[Question] | None, dict[str, Any]]:
        """Questions to draw examples from, None for those that are asked; and what is noted of them."""
        try:
            paths = [find_questions(self.name, file, options.task_data) for file in self.examples]
        except DataError as error:
            if options.task_data is None:
                raise
            if options.world is None or options.world.is_main:
                say(f"{self.name}: examples are drawn from the questions themselves ({error})")
            paths = []
        if not paths:
            return None, {"examples": "the questions themselves"}
        return self._read(paths, self.examples), {"examples": paths[0].name, "examples_sha256": sha256_files(paths)}

    def _examples(self, pool: Sequence[Question], shots: int, *, own: bool) -> Draw:
        """What draws the examples of one question after the other; with `own` never the question itself.

        Raises GptlabError where there are too few.
        """
        generator = random.Random(SEED)
        by_subject: dict[str, list[Question]] = {}
        for question in pool:
            by_subject.setdefault(question.subject, []).append(question)

        def draw(question: Question) -> list[Question]:
            known = by_subject.get(question.subject, [])
            most = max(0, len(known) - (own or self.spare))
            if most < shots:
                subject = f" of {question.subject}" if question.subject else ""
                raise GptlabError(f"{option('shots')} {shots}: {self.name} has {most} examples{subject}; ask for fewer")
            if self.describe is not None:
                return [other for other in known if not own or other != question][:shots]
            chosen = generator.sample(known, shots + (self.spare and not own))[:shots]
            if own and question in chosen:
                others = [other for other in known if other != question and other not in chosen]
                chosen[chosen.index(question)] = others[len(others) // 2]
            return chosen

        return draw


def _in_turn(questions: list[Question]) -> list[Question]:
    """One of each subject after the other, so that the first few are of all of them."""
    by_subject: dict[str, list[Question]] = {}
    for question in questions:
        by_subject.setdefault(question.subject, []).append(question)
    if len(by_subject) < 2:
        return questions
    rounds = itertools.zip_longest(*by_subject.values())
    return [question for one in rounds for question in one if question is not None]


def read_questions(
    path: Path, name: str, question: Callable[[Row, int], Question | None], url: str, limit: int | None = None
) -> list[Question]:
    """The first `limit` questions (all for None) of the benchmark `name`, of a file of rows.

    Raises DataError where the file is missing or damaged, or holds something else.
    """
    found: list[Question] = []
    for number, (place, row) in enumerate(read_rows(path, name, url)):
        if limit is not None and len(found) == limit:
            break
        try:
            one = question(row, number)
            if one is None:
                continue
            if not 0 <= one.gold < len(one.choices):
                raise ValueError(f"the right answer, {one.gold}, is not one of its {len(one.choices)}")
            if not all(choice.strip() for choice in one.choices):
                raise ValueError("an answer is empty")
        except (KeyError, TypeError, ValueError, IndexError, RecursionError, SyntaxError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{place}: is no {name} question ({what}); get the file again: {url}") from None
        found.append(one)
    if not found:
        raise DataError(f"{path}: holds no questions; get the file again: {url}")
    return found


def read_rows(path: Path, name: str, url: str) -> Iterator[tuple[str, Row]]:
    """The rows of a file of JSON lines, plain or gzipped, or of Parquet, each with where it stands.

    Raises DataError where it is damaged. `name` and `url`: of the benchmark and its file, for messages.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            for number, row in enumerate(pq.read_table(path).to_pylist(), 1):
                yield f"{path}, row {number}", row
            return
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", _object(line, f"{path}, line {number}", name, url)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error}); get the file again: {url}") from None


def _object(line: str, place: str, name: str, url: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is no {name} question ({error}); get the file again: {url}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: is no {name} question (no object of fields); get the file again: {url}")
    return row


def text(holder: Any, key: str | int) -> str:
    """The text at `key` of a row or a list. Raises TypeError for anything else that stands there."""
    value = holder[key]
    if not isinstance(value, str) or isinstance(holder, str):
        raise TypeError(f"{key} is {type(value).__name__}, not text")
    return value


def texts(holder: Any, key: str) -> tuple[str, ...]:
    """The texts of a list at `key`. Raises TypeError for anything else that stands there."""
    return tuple(text(holder[key], number) for number in range(len(holder[key])))


def labelled(row: Row) -> tuple[tuple[str, ...], int]:
    """Choices and the right one's number, of a row with `choices` of `text` and `label`, and an `answerKey`."""
    choices = row["choices"]
    return texts(choices, "text"), texts(choices, "label").index(text(row, "answerKey").lstrip())


def shared(context: str, choices: Sequence[str], gold: int, number: int | str, **others: Any) -> Question:
    """A question whose choices follow one context."""
    return Question(number, (context,) * len(choices), tuple(choices), gold, **others)


def lettered(asked: str, choices: Sequence[str], gold: int, number: int | str, **others: Any) -> Question:
    """A question that lists its choices by letters, and is answered by one."""
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return shared(f"{asked}{listed}\nAnswer:", letters, gold, number, **others)


def passage_group(passage: str) -> str:
    """The name of the group of all questions on one passage."""
    return hashlib.sha256(passage.encode()).hexdigest()[:12]


def foundry_row(row: Row, begins: str, counts: Sequence[int]) -> tuple[str, tuple[str, ...], int]:
    """Query after what it `begins` with, choices and the right one's number, of a row in the form of LLM Foundry's
    files (https://github.com/mosaicml/llm-foundry/tree/main/scripts/eval/local_data).

    Raises ValueError for a query that begins otherwise and a number of choices that is none of `counts`: the files of
    all tasks have the same fields, and one in the place of another would give a number.
    """
    query, choices = text(row, "query"), texts(row, "choices")
    if not query.startswith(begins):
        raise ValueError(f"its query does not begin with {begins!r}; is it another task's?")
    if len(choices) not in counts:
        raise ValueError(f"it has {len(choices)} choices, and here it is {' or '.join(map(str, counts))}")
    return query[len(begins) :], choices, int(row["gold"])


def foundry_schema(row: Row) -> tuple[tuple[str, ...], str, int]:
    """Contexts, what follows each of them, and the right one's number, of a row of LLM Foundry's schema tasks."""
    return texts(row, "context_options"), text(row, "continuation"), int(row["gold"])
