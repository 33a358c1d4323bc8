"""Asking: each question once in each order and repeat, what it will cost, and where it must stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.console import track
from gptlab.errors import GptlabError, option
from gptlab.lab.judge.book import Book, Verdict
from gptlab.lab.judge.endpoint import Endpoint
from gptlab.lab.judge.questions import Question, size

ATTEMPTS = 2
"""How often a question is put whose answer cannot be read."""
_HOPELESS = 10
"""Questions without one answer that can be read, after which no more are asked."""
_KEPT = 4000  # characters of an answer
_BYTES_PER_TOKEN = 4.0  # of English, roughly; bounds take 2
_WRAPPING = 12  # tokens around the messages
_TOKENS_PER_VALUE = 8  # of an answer


class BudgetSpentError(GptlabError):
    """The next answer might cost more than is left of the budget.

    `folder`, `result`: of the judging, as far as it came; None where nothing can be concluded yet.
    """

    def __init__(self, message: str, folder: Path | None = None, result: Any = None) -> None:
        super().__init__(message)
        self.folder, self.result = folder, result


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def of(self, tokens_in: float, tokens_out: float) -> float:
        """Dollars."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass(frozen=True)
class Asked:
    """A question at its place.

    Attributes:
        prompt, seed, repeat, order: from 0; `order` 0 shows A first, 1 shows B first.
        shown: the names of the runs, in the order of `question.shown`.
        key: of the question, the judge and the repeat.
    """

    question: Question
    prompt: int
    seed: int
    repeat: int
    order: int
    shown: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Spent:
    """Answers that were had, their tokens (`counted` by the endpoint, else guessed in part) and dollars."""

    answers: int
    tokens_in: int
    tokens_out: int
    counted: bool
    dollars: float


@dataclass(frozen=True)
class Forecast:
    """What is still to be asked: `questions` of `all`, about so many tokens, and dollars."""

    questions: int
    all: int
    tokens_in: int
    tokens_out: int
    dollars: float


def forecast(asked: Sequence[Asked], book: Book, price: Price) -> Forecast:
    """What the questions that have no answer yet will take. Where the judge has answered before, its tokens say how
    long its answers are; else they are guessed."""
    left = _unsettled(asked, book)
    tokens_in = sum(size(one.question.messages()) / _BYTES_PER_TOKEN + _WRAPPING for one in left)
    known = [row.tokens_out for row in book.verdicts.rows]
    each = sum(known) / len(known) if known else None
    tokens_out = sum(_TOKENS_PER_VALUE * len(one.question.asked_for) if each is None else each for one in left)
    return Forecast(
        len(left), len(_each_once(asked)), round(tokens_in), round(tokens_out), price.of(tokens_in, tokens_out)
    )


def ask_all(
    asked: Sequence[Asked], book: Book, endpoint: Endpoint, price: Price, *, budget: float | None, limit: int
) -> None:
    """Put every question that has no answer yet, in their order, and keep each answer before the next is asked for.

    `budget`: dollars for all sessions of this book together; None: none. `limit`: the most tokens of an answer. Raises
    BudgetSpentError before the first question that might cost more than what is left, EndpointError where there is no
    answer, and GptlabError where none of the first answers can be read.
    """
    once = _each_once(asked)
    known = [book.verdicts.by_key[one.key] for one in once if is_settled(one, book)]
    read = sum(_scores(rows) is not None for rows in known)
    unread = len(known) - read
    _check_hope(book, read, unread)
    left = _unsettled(asked, book)
    for number, one in enumerate(track(left, "asking the judge", total=len(left), unit="questions")):
        messages = one.question.messages()
        worst = price.of(size(messages) / 2 + _WRAPPING, limit)
        while not is_settled(one, book):
            if budget is not None and book.dollars + worst > budget:
                raise BudgetSpentError(
                    f"{option('budget', budget)}: ${book.dollars:.4f} of it are spent, and the next answer may cost "
                    f"${worst:.4f}; {len(left) - number} of {len(once)} questions are left: a larger budget goes on "
                    "with them"
                )
            book.verdicts.append(_answered(one, endpoint, messages, price))
        is_read = _scores(book.verdicts.by_key[one.key]) is not None
        read, unread = read + is_read, unread + (not is_read)
        _check_hope(book, read, unread)


def is_settled(one: Asked, book: Book) -> bool:
    """Whether a question is not put, or not again."""
    rows = book.verdicts.by_key.get(one.key, [])
    return one.question.foregone is not None or len(rows) >= ATTEMPTS or _scores(rows) is not None


def _scores(rows: Sequence[Verdict]) -> Mapping[str, float] | None:
    return next((row.scores for row in rows if row.scores is not None), None)


def _each_once(asked: Sequence[Asked]) -> list[Asked]:
    """What is to be put: without those that ask the same as another, of two seeds that came to the same texts, and
    those whose answer is foregone."""
    return list({one.key: one for one in reversed(asked) if one.question.foregone is None}.values())[::-1]


def _unsettled(asked: Sequence[Asked], book: Book) -> list[Asked]:
    return [one for one in _each_once(asked) if not is_settled(one, book)]


def _answered(one: Asked, endpoint: Endpoint, messages: list[dict[str, str]], price: Price) -> Verdict:
    reply = endpoint.ask(messages)
    counted = reply.tokens_in is not None and reply.tokens_out is not None
    tokens_in = reply.tokens_in if reply.tokens_in is not None else round(size(messages) / _BYTES_PER_TOKEN + _WRAPPING)
    tokens_out = reply.tokens_out if reply.tokens_out is not None else round(len(reply.text) / _BYTES_PER_TOKEN) + 1
    return Verdict(
        key=one.key,
        shown=one.shown,
        prompt=one.question.prompt,
        repeat=one.repeat + 1,
        said=reply.text[-_KEPT:],
        scores=one.question.read(reply.text),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        counted=counted,
        dollars=price.of(tokens_in, tokens_out),
    )


def _check_hope(book: Book, read: int, unread: int) -> None:
    if unread >= _HOPELESS and not read:
        said = " ".join(book.verdicts.rows[-1].said.split())[:120]
        raise GptlabError(
            f"none of the first {unread} answers can be read, the last was {said!r}; take another {option('model')} "
            f"or a larger {option('judge_tokens')}, or delete {book.verdicts.path} to ask this one again"
        )


def scores_of(book: Book, asked: Sequence[Asked]) -> dict[str, Mapping[str, float]]:
    """What was read of the answers, or is foregone, by the key of the question. Raises GptlabError for scores that no
    answer can have given."""
    found: dict[str, Mapping[str, float]] = {}
    for one in asked:
        scores = one.question.foregone or _scores(book.verdicts.by_key.get(one.key, []))
        if scores is not None and not one.question.allows(scores):
            raise GptlabError(
                f"{book.verdicts.path}: the scores of {one.key} are none that were asked for; delete the line: it is "
                "asked for again"
            )
        if scores is not None:
            found[one.key] = scores
    return found


def spent_on(book: Book, asked: Sequence[Asked]) -> Spent:
    """What these questions took, in all sessions."""
    rows = [row for one in _each_once(asked) for row in book.verdicts.by_key.get(one.key, [])]
    return Spent(
        answers=len(rows),
        tokens_in=sum(row.tokens_in for row in rows),
        tokens_out=sum(row.tokens_out for row in rows),
        counted=all(row.counted for row in rows),
        dollars=sum(row.dollars for row in rows),
    )
