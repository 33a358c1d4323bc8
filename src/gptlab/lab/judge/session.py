"""A judging from its request to its result: texts are written, questions put, answers kept, numbers drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlab.console import say
from gptlab.errors import GptlabError, option
from gptlab.files import check_place
from gptlab.lab.judge.asking import Asked, BudgetSpentError, Price, ask_all, forecast
from gptlab.lab.judge.book import Book, open_book
from gptlab.lab.judge.endpoint import Address, Endpoint, read_address, read_key
from gptlab.lab.judge.grading import grade_evaluations, grading_identity
from gptlab.lab.judge.judging import Judging, cells_of, conclude, over_repeats
from gptlab.lab.judge.prompts import read_prompts
from gptlab.lab.judge.questions import read_criteria
from gptlab.lab.judge.study import all_questions, default_name, read_study
from gptlab.lab.judge.texts import Writer, gather_texts
from gptlab.lab.runs.store import GRADE
from gptlab.planning.formatting import format_dollars
from gptlab.record.evaluation import read_evaluation

JUDGINGS = Path("judgings")


@dataclass(frozen=True)
class Request:
    """What is to be judged, by whom, and for how much.

    Attributes:
        runs: folders (`read_study`); `grade`: they are graded together.
        judge: URL of the endpoint; `model`: its name there.
        prompts, limit: a list or a file, and how many of it (`read_prompts`).
        criteria: a file or a text (`read_criteria`).
        repeats: how often each question is put.
        budget: dollars for all sessions of this judging; None: no bound.
        price_in, price_out: dollars for a million tokens that the judge reads and writes.
        key_variable: of the environment (`read_key`).
        sampling: how the runs write, by the names of `gptlab.inference.generate.Sampling`.
        judge_temperature: None: the endpoint's own.
        judge_tokens: that an answer may have.
        name: of the folder in judgings/; None: by runs and settings.
    """

    runs: Sequence[Path]
    judge: str
    model: str
    prompts: str = "stories"
    limit: int | None = None
    criteria: str | None = None
    grade: bool = False
    repeats: int = 1
    budget: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    key_variable: str | None = None
    sampling: Mapping[str, Any] = field(
        default_factory=lambda: {"max_new_tokens": 200, "temperature": 0.8, "top_p": None, "seed": 1}
    )
    judge_temperature: float | None = None
    judge_tokens: int = 1024
    name: str | None = None

    def __post_init__(self) -> None:
        """Raises GptlabError for a number out of its range."""
        ranges = {
            "limit": ("1 or more", self.limit is None or self.limit >= 1),
            "repeats": ("1 or more", self.repeats >= 1),
            "budget": ("dollars above 0", self.budget is None or 0 < self.budget < math.inf),
            "price_in": ("dollars, 0 or more", self.price_in is None or 0 <= self.price_in < math.inf),
            "price_out": ("dollars, 0 or more", self.price_out is None or 0 <= self.price_out < math.inf),
            "judge_temperature": ("0 to 2", self.judge_temperature is None or 0 <= self.judge_temperature <= 2),
            "judge_tokens": ("1 or more", self.judge_tokens >= 1),
        }
        for name, (range_, kept) in ranges.items():
            if not kept:
                raise GptlabError(f"{option(name, getattr(self, name))}: must be {range_}")

    @property
    def warmth(self) -> dict[str, float]:
        """The judge's temperature, where it is not the endpoint's own."""
        return {} if self.judge_temperature is None else {"temperature": self.judge_temperature}

    def identity(self) -> dict[str, str]:
        """What a grade by this request depends on beside the run. Raises as `read_prompts` and `read_criteria`."""
        return grading_identity(
            self.model,
            self.judge_temperature,
            prompts=read_prompts(self.prompts, self.limit).digest,
            criteria=[str(one) for one in read_criteria(self.criteria)],
            sampling=dict(self.sampling),
            repeats=self.repeats,
        )

    def price(self, address: Address) -> Price:
        """What tokens cost. Raises GptlabError where that, or the most that it may come to, is not known of a machine
        that is not one's own."""
        if not address.own and self.budget is None:
            raise GptlabError(f"{address.url} may cost money; say how much at most with {option('budget', 'DOLLARS')}")
        if not address.own and None in (self.price_in, self.price_out):
            raise GptlabError(
                f"what {self.model} costs is not known; give {option('price_in')} and {option('price_out')}, dollars "
                "for a million tokens (0 where it is free)"
            )
        return Price(self.price_in or 0.0, self.price_out or 0.0)


@dataclass(frozen=True)
class GradeRequest:
    """Who grades the runs of an experiment after training, and by what; the names are those of `Request`.

    `budget`: dollars for each run. Raises GptlabError for what could not be asked.
    """

    judge: str
    model: str
    prompts: str = "stories"
    limit: int | None = None
    criteria: str | None = None
    repeats: int = 1
    budget: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    key_variable: str | None = None

    def __post_init__(self) -> None:
        request = self.request(())
        request.price(read_address(self.judge))
        request.identity()

    def check_ready(self) -> None:
        """Raise GptlabError where the judge could not be asked from here: without a key, or the client."""
        address = read_address(self.judge)
        Endpoint(address, self.model, read_key(address, self.key_variable), limit=1)

    def request(self, runs: Sequence[Path]) -> Request:
        """What is asked about `runs`."""
        return Request(runs, grade=True, **vars(self))

    def arguments(self, run: Path) -> list[str]:
        """The arguments of gptlab that have `run` graded."""
        given = {name.replace("_", "-"): value for name, value in vars(self).items() if value is not None}
        return ["judge", str(run), "--grade", *(f"--{name}={value}" for name, value in given.items())]

    def is_done(self, run: Path) -> bool:
        """Whether a run has the grade that this asks for. Raises GptlabError where its file is damaged."""
        found = read_evaluation(run, GRADE)
        return found is not None and found.settings.get("judging") == self.request(()).identity()


def judge_runs(request: Request, write: Writer, *, dry_run: bool = False) -> tuple[Path, Judging | None]:
    """The folder of a judging, and what it came to; None for a `dry_run`, which asks nothing. `write`: see `Writer`.

    The same request again goes on where the last ended, and where that was the end, asks nothing. Raises GptlabError
    for everything that a user can mend; BudgetSpentError, which has the result so far.
    """
    address = read_address(request.judge)
    price, key = request.price(address), "none" if dry_run else read_key(address, request.key_variable)
    prompts = read_prompts(request.prompts, request.limit)
    criteria = read_criteria(request.criteria)
    study = read_study(request.runs, grade=request.grade)
    judge, by = {"model": request.model, **request.warmth}, {one.name: one.meaning for one in criteria}
    endpoint = Endpoint(address, request.model, key, limit=request.judge_tokens, temperature=request.judge_temperature)
    settings = {**judge, **request.sampling, "prompts": prompts.name, "criteria": by}
    folder = _folder(request.name or default_name(study, settings))
    with open_book(folder) as book:
        texts = gather_texts(book, study, prompts.texts, request.sampling, write)
        asked = all_questions(study, prompts.texts, texts, criteria, judge=judge, repeats=request.repeats)
        _say_forecast(asked, book, price, request.budget)
        if dry_run:
            return folder, None
        stopped: BudgetSpentError | None = None
        try:
            ask_all(asked, book, endpoint, price, budget=request.budget, limit=request.judge_tokens)
        except BudgetSpentError as error:
            stopped = error
        try:
            result = conclude(
                study,
                asked,
                book,
                judge={**judge, "endpoint": address.url},
                prompts={"name": prompts.name, "sha256": prompts.digest, "count": len(prompts.texts)},
                sampling=request.sampling,
                criteria=by,
            )
        except GptlabError as error:
            raise stopped or error from None
        result.write(folder / "result.json")
        if not study.is_comparison and result.complete:
            grades = {name: over_repeats(values) for name, values in cells_of(asked, book).items()}
            for run, found in zip(
                study.runs, grade_evaluations(study.runs, grades, prompts.texts, request.identity()), strict=True
            ):
                found.write(run / "evals" / f"{GRADE}.json")
    if stopped is not None:
        raise BudgetSpentError(str(stopped), folder, result)
    return folder, result


def _folder(name: str) -> Path:
    if Path(name).name != name or name in ("", ".", "..") or name.startswith("."):
        raise GptlabError(f"{option('name', name)}: the name of a folder in {JUDGINGS}/, without a path; give another")
    check_place(JUDGINGS / name, option("name"))
    if (JUDGINGS / name).exists() and not (JUDGINGS / name).is_dir():
        raise GptlabError(f"{option('name', name)}: {JUDGINGS / name} is a file; give another")
    return JUDGINGS / name


def _say_forecast(asked: Sequence[Asked], book: Book, price: Price, budget: float | None) -> None:
    """What is left to ask, and about what it costs."""
    left = forecast(asked, book, price)
    if not left.questions:
        say(f"all {left.all:,} questions have their answers already")
        return
    known = left.all - left.questions
    again = f" ({known:,} have their answers already)" if known else ""
    say(
        f"{left.questions:,} questions to ask{again}: about {left.tokens_in:,} tokens in, {left.tokens_out:,} out, "
        f"{format_dollars(left.dollars)}"
    )
    if budget is not None:
        spent = f"{format_dollars(book.dollars)} of it spent" if book.dollars else "nothing of it spent"
        say(f"a budget of {format_dollars(budget)}, {spent}")
        if book.dollars + left.dollars > budget:
            say("careful: that is more than is left of the budget, which ends the asking before its end")
