"""What a judge's answers come to: a win rate with what it is corrected for, or grades; as table, JSON and a line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.config.jsonfile import parse_json, read_json
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.lab.judge.asking import Asked, Spent, is_settled, scores_of, spent_on
from gptlab.lab.judge.book import Book
from gptlab.lab.judge.questions import OVERALL
from gptlab.lab.judge.study import Study
from gptlab.lab.stats.crossed import Estimate, mean_estimate, share_estimate
from gptlab.lab.stats.paired import Array
from gptlab.lab.stats.preference import Preference, preference
from gptlab.planning.formatting import format_dollars
from gptlab.seal import sealed_json
from gptlab.shown import Sheet, Shown

SCHEMA = 1
MEAN = "mean"


@dataclass(frozen=True, repr=False)
class Judging(Shown):
    """What a judge says of runs.

    Attributes:
        arms: A and B, or the one that was graded.
        judge: its model, endpoint, and what else its answers depend on.
        runs: of each arm, the folder and the digest of the weights of each seed.
        prompts: the name of the list, its digest, and how many of it.
        sampling: how the runs wrote.
        criteria: by what was judged.
        seeds, repeats: how many.
        questions: that there are, orders and repeats and all.
        identical: pairs of texts that are one text twice: ties, which nobody was asked about.
        unread: questions of which no answer could be read.
        complete: whether every question has its answers.
        spent: on these questions, in all sessions.
        preference: of B over A, all in all; None for grades.
        criteria_won: the win rate of B by each criterion; of grades none.
        grades: the mean grade by each criterion, and that of all.
    """

    arms: list[str]
    judge: dict[str, Any]
    runs: list[list[dict[str, str]]]
    prompts: dict[str, Any]
    sampling: dict[str, Any]
    criteria: dict[str, str]
    seeds: int
    repeats: int
    questions: int
    identical: int
    unread: int
    complete: bool
    spent: Spent
    preference: Preference | None
    criteria_won: dict[str, Estimate]
    grades: dict[str, Estimate]

    def sheet(self) -> Sheet:
        """A row a number, with its interval."""
        found = self.preference
        names = [f"{arm} ({letter})" for arm, letter in zip(self.arms, "AB", strict=False)]
        who = " against ".join(reversed(names)) if found else self.arms[0]
        title = f"{who}: {self.judge['model']} on {self._where()}"
        if found is None:
            rows = [[name, f"{one.value:.2f}", _interval(one, "{:.2f}")] for name, one in self.grades.items()]
            return Sheet(title, rows, ("", "grade of 10", "95%"), self._notes())
        shares = {
            "B wins": found.win_rate,
            "  at equal lengths": found.corrected,
            **{f"  by {name}": one for name, one in self.criteria_won.items()},
            "what is shown first wins": found.first_wins,
            "the longer of two equals wins": found.longer_wins,
            "both orders agree": found.orders_agree,
            "repeats agree": found.repeats_agree,
        }
        rows = [[name, _percent(one), _interval(one)] for name, one in shares.items() if one is not None]
        return Sheet(title, rows, ("", "share", "95%"), self._notes())

    def _where(self) -> str:
        seeds = f" × {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{self.prompts['count']} prompts ({self.prompts['name']}){seeds}"

    def _notes(self) -> list[str]:
        notes = [self.conclusion()] if self.preference is not None else []
        if self.preference is not None:
            one = self.preference
            left_out = f", {one.left_out} more left out because half of them is missing" if one.left_out else ""
            notes.append(
                f"{one.pairs} pairs of verdicts: {one.wins} for B, {one.ties} ties, {one.losses} for A{left_out}"
            )
        if self.identical:
            notes.append(f"{self.identical} pairs of texts are one text twice, and count as ties unasked")
        if self.unread:
            notes.append(f"careful: of {self.unread} of {self.questions} questions no answer could be read")
        if not self.complete:
            notes.append("careful: not all questions have been put yet")
        about = "" if self.spent.counted else "about "
        notes.append(
            f"{self.spent.answers} answers: {about}{self.spent.tokens_in:,} tokens in, {self.spent.tokens_out:,} out, "
            f"{about}{format_dollars(self.spent.dollars)}"
        )
        return notes

    def conclusion(self) -> str:
        """In a sentence, of a comparison: whether the judge prefers one, and whether that holds at equal lengths."""
        assert self.preference is not None
        plain, corrected = _side(self.preference.win_rate), _side(self.preference.corrected)
        if plain is None:
            return "one prompt has no interval; ask more"
        if plain == 0:
            return "no preference can be told: the interval holds 50%"
        said = f"the judge prefers {'B' if plain > 0 else 'A'}"
        if corrected is None:
            return said
        if corrected == 0:
            return f"{said}; whether it does at equal lengths cannot be told"
        return f"{said}, at equal lengths {'too' if corrected == plain else 'the other'}"

    def markdown(self) -> str:
        """A line to paste."""
        by = f"judged by `{self.judge['model']}` on {self._where()}"
        if self.preference is None:
            grades = ", ".join(f"{name} {one.value:.2f}{_bracket(one, '{:.2f}')}" for name, one in self.grades.items())
            return f"**{self.arms[0]}**: {grades} of 10, {by}"
        one = self.preference
        equal = f"; at equal lengths {_percent(one.corrected)}{_bracket(one.corrected)}" if one.corrected else ""
        wins = f"wins {_percent(one.win_rate)}{_bracket(one.win_rate)}{equal}"
        return f"**{self.arms[1]}** against **{self.arms[0]}**: {wins}; {by}, in both orders"

    def write(self, path: Path) -> None:
        """Keep it as JSON with a seal. Raises GptlabError where the disk refuses."""
        try:
            write_atomic(path, sealed_json({"schema": SCHEMA, **dataclasses.asdict(self)}))
        except OSError as error:
            raise GptlabError(f"cannot write {path}: {error.strerror}; free some space or mend its rights") from None


def read_judging(folder: Path) -> Judging:
    """The result in a judging's folder. Raises GptlabError where there is none, or it is damaged or was edited."""
    path, mend = folder / "result.json", "run the same `gptlab judge` again: what was paid for is beside it"
    try:
        values = read_json(path, dict[str, Any], mend=mend)
        if (schema := values.pop("schema", None)) != SCHEMA:
            raise GptlabError(f"{path}: of schema {schema!r}, this gptlab reads {SCHEMA}; {mend}")
        return parse_json(json.dumps(values), Judging)
    except FileNotFoundError:
        raise GptlabError(f"{folder} has no result.json; {mend}") from None
    except ValueError as problem:
        raise GptlabError(f"{path}: damaged ({problem}); {mend}") from None


def conclude(
    study: Study,
    asked: Sequence[Asked],
    book: Book,
    *,
    judge: Mapping[str, Any],
    prompts: Mapping[str, Any],
    sampling: Mapping[str, Any],
    criteria: Mapping[str, str],
) -> Judging:
    """What the answers in a book come to.

    Raises GptlabError where no question, or of a comparison no pair of them, has an answer that can be read.
    """
    scores = scores_of(book, asked)
    cells = cells_of(asked, book)
    settled = [is_settled(one, book) for one in asked]
    seeds, repeats = cells[next(iter(cells))].shape[1:3]
    found, won, grades = None, {}, {}
    if study.is_comparison:
        found = preference(cells[OVERALL], _lengths(asked))
        whole = ~np.isnan(cells[OVERALL]).any(axis=-1, keepdims=True)
        won = {
            name: share_estimate(over_repeats(np.where(whole, values, np.nan)))
            for name, values in cells.items()
            if name != OVERALL
        }
    else:
        grades = {name: mean_estimate(over_repeats(values)) for name, values in cells.items()}
        if len(grades) > 1:
            grades[MEAN] = mean_estimate(over_repeats(np.mean(list(cells.values()), axis=0)))
    return Judging(
        arms=[arm.label for arm in study.arms],
        judge=dict(judge),
        runs=[
            [{"run": run.resolve().name, "weights": digest} for run, digest in zip(arm.runs, digests, strict=True)]
            for arm, digests in zip(study.arms, study.weights(), strict=True)
        ],
        prompts=dict(prompts),
        sampling=dict(sampling),
        criteria=dict(criteria),
        seeds=int(seeds),
        repeats=int(repeats),
        questions=len(asked),
        identical=sum(one.question.foregone is not None and (one.order, one.repeat) == (0, 0) for one in asked),
        unread=sum(settled) - sum(one.key in scores for one in asked),
        complete=all(settled),
        spent=spent_on(book, asked),
        preference=found,
        criteria_won=won,
        grades=grades,
    )


def cells_of(asked: Sequence[Asked], book: Book) -> dict[str, Array]:
    """By criterion (P, S, R, orders): of two how far B is preferred, of one the grade; NaN where that is not known.

    Raises GptlabError where no answer can be read.
    """
    scores = scores_of(book, asked)
    if not scores:
        raise GptlabError(f"{book.verdicts.path}: no answer in it can be read, so there is nothing to conclude")
    shape = tuple(1 + max(getattr(one, axis) for one in asked) for axis in ("prompt", "seed", "repeat", "order"))
    found = {name: np.full(shape, np.nan) for name in asked[0].question.asked_for}
    for one in asked:
        for name, value in scores.get(one.key, {}).items():
            for_first = len(one.question.shown) == 2 and one.order == 0  # A was shown first, and `value` is for it
            found[name][one.prompt, one.seed, one.repeat, one.order] = 1 - value if for_first else value
    return found


def over_repeats(values: Array) -> Array:
    """(P, S, R, orders) → (P, S): the mean of what is there, NaN where nothing is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, values, 0.0).sum(axis=(2, 3)) / there.sum(axis=(2, 3)))


def _lengths(asked: Sequence[Asked]) -> Array:
    """(P, S): characters of B's text less those of A's."""
    found = np.zeros((1 + max(one.prompt for one in asked), 1 + max(one.seed for one in asked)))
    for one in asked:
        if one.order == 0:
            a, b = one.question.shown
            found[one.prompt, one.seed] = len(b) - len(a)
    return found


def _side(estimate: Estimate | None) -> int | None:
    """1 where a share is above a half, -1 below, 0 where that is not sure; None without an interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return 1 if estimate.low > 0.5 else -1 if estimate.high < 0.5 else 0


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}%"


def _interval(estimate: Estimate, form: str = "") -> str:
    if estimate.low is None or estimate.high is None:
        return "–"
    low, high = (form.format(x) if form else f"{100 * x:.1f}%" for x in (estimate.low, estimate.high))
    return f"{low} to {high}"


def _bracket(estimate: Estimate, form: str = "") -> str:
    return "" if estimate.low is None else f" ({_interval(estimate, form)})"
