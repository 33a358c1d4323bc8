"""The metric of an experiment: one number of a run, and which direction is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from pydantic import Field

from gptlab.config.schema import Section
from gptlab.config.types import Integer, Number, Text
from gptlab.errors import GptlabError, did_you_mean
from gptlab.evals import benchmark_names
from gptlab.lab.runs.store import GRADE, outdated
from gptlab.record.evaluation import read_evaluation
from gptlab.record.measurement import Identity, unlike_pair
from gptlab.record.metrics import Row, read_metrics
from gptlab.record.runfolder import Session, read_sessions

if TYPE_CHECKING:
    from gptlab.lab.judge.session import GradeRequest

_PLAIN = {"loss": "val/loss", "bits_per_byte": "val/bits_per_byte"}


@dataclass(frozen=True)
class Measured:
    """The metric of a run.

    Attributes:
        value: it.
        identity: what it was read from, but for the run; None where that is not known (gptlab before 0.4).
        resolution: the step in which it is counted, one question of an accuracy; 0 where it has none.
        parts: the numbers that it is the mean of, one for each prompt of a grade; empty where it is no such mean.
    """

    value: float
    identity: Identity | None
    resolution: float = 0.0
    parts: tuple[float, ...] = ()


class Grade(Section):
    """A judge's grade of what a run makes of prompts, see `gptlab judge`."""

    judge: Text = Field(description="URL of an OpenAI-compatible endpoint")
    model: Text = Field(description="the judge's name there")
    prompts: Text = Field("stories", description="stories, continuations, a .txt or a .jsonl")
    limit: Integer | None = Field(None, description="the first so many prompts; null: all")
    criteria: Text | None = Field(None, description="a .txt, or NAME: MEANING; null: TinyStories'")
    repeats: Integer = Field(1, description="how often each text is graded")
    budget: Number | None = Field(None, description="dollars for each run")
    price_in: Number | None = Field(None, description="dollars for a million tokens that the judge reads")
    price_out: Number | None = Field(None, description="dollars for a million tokens that it writes")
    key_variable: Text | None = Field(None, description="variable of the environment that holds the key")

    @pydantic.model_validator(mode="after")
    def _can_be_asked(self) -> Grade:
        try:
            _ = self.request
        except GptlabError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def request(self) -> GradeRequest:
        """What is asked about a run. Raises GptlabError for what cannot be."""
        from gptlab.lab.judge.session import GradeRequest

        return GradeRequest(**dict(self))


class Metric(Section):
    """`loss`, `bits_per_byte`, {accuracy: TASK}, {grade: …}, {tokens_to: LOSS}, {seconds_to: LOSS} or {logged: KEY,
    better: …}."""

    logged: Text | None = Field(None, description="a key of metrics.jsonl, its last value")
    accuracy: Text | None = Field(None, description="a task of `gptlab eval`; its acc_norm")
    grade: Grade | None = Field(None, description="the mean grade that a judge gives, see `metric.grade.…`")
    tokens_to: Number | None = Field(None, description="tokens until the validation loss is this low")
    seconds_to: Number | None = Field(None, description="seconds of training until the validation loss is this low")
    better: Text = Field("", description="lower or higher; known for all but `logged`")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in _PLAIN:
            raise ValueError(f"no metric is called {value!r}; {did_you_mean(value, [*_PLAIN, *cls.model_fields])}")
        return {"logged": _PLAIN[value], "better": "lower"}

    @pydantic.model_validator(mode="after")
    def _one(self) -> Metric:
        names = ("logged", "accuracy", "grade", "tokens_to", "seconds_to")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"one metric decides; {given[0]} and {given[1]} are two")
        if not given and self.model_fields_set:
            raise ValueError("no metric is named; write `loss`, `bits_per_byte` or {accuracy: TASK}")
        known = benchmark_names(of_questions=True)
        if self.accuracy is not None and self.accuracy not in known:
            raise ValueError(f"no task of questions is called {self.accuracy!r}; {did_you_mean(self.accuracy, known)}")
        task = next((name for name in benchmark_names() if (self.logged or "").startswith(f"val/{name}/")), None)
        if task is not None:  # `eval.limit` is no part of what a value was read from
            cure = f"write {{accuracy: {task}}}" if task in known else "take another metric"
            raise ValueError(f"{self.logged} is of as many questions as eval.limit says in each run; {cure}")
        if self.better not in ("", "lower", "higher"):
            raise ValueError(f"better is {self.better!r}; it is lower or higher")
        if self.logged not in (None, *_PLAIN.values()) and self.better not in ("lower", "higher"):
            raise ValueError("say which way is better: {logged: KEY, better: lower}")
        return self

    @property
    def key(self) -> str:
        """The key of metrics.jsonl that it is read from; `val/loss` where it is derived from the validation loss."""
        return self.logged or "val/loss"

    @property
    def is_logged(self) -> bool:
        """Whether it is the last value of a key of metrics.jsonl, which a run of any length has."""
        return self.tokens_to is None and self.seconds_to is None and not self.is_evaluated

    @property
    def is_evaluated(self) -> bool:
        """Whether a finished run is asked for it, by a benchmark or a judge; it is not logged while training."""
        return self.accuracy is not None or self.grade is not None

    @property
    def is_by_byte(self) -> bool:
        """Whether it is counted by the byte of text, so that tokenizers may be compared."""
        return self.is_logged and self.key == "val/bits_per_byte"

    @property
    def label(self) -> str:
        """Its name in tables, with the unit."""
        if self.accuracy is not None:
            return f"{self.accuracy} accuracy"
        if self.grade is not None:
            return f"grade of 10 by {self.grade.model}"
        if self.tokens_to is not None:
            return f"tokens to loss {self.tokens_to:g}"
        if self.seconds_to is not None:
            return f"seconds to loss {self.seconds_to:g}"
        return {"val/loss": "validation loss (nats a token)", "val/bits_per_byte": "bits per byte"}.get(
            self.key, self.key
        )

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower value is better."""
        return not self.is_evaluated and self.better != "higher"

    def measure(
        self, run: Path, sessions: Sequence[Session] | None = None, rows: Sequence[Row] | None = None
    ) -> Measured:
        """The metric of a finished run. `sessions`, `rows`: the run's, where they have been read already.

        Raises GptlabError where the run does not have it, or never reached the target.
        """
        if self.accuracy is not None:
            return _accuracy(run, self.accuracy)
        if self.grade is not None:
            return _grade(run, self.grade)
        rows = read_metrics(run / "metrics.jsonl") if rows is None else rows
        measured = [row for row in rows if row.get(self.key) is not None]
        if not measured:
            logged = sorted({key for row in rows for key in row} - {"step", "tokens"})
            raise GptlabError(f"{run}: no run logs {self.key!r}; {did_you_mean(self.key, logged)}")
        identity = self._identity(read_sessions(run) if sessions is None else sessions, measured)
        if self.tokens_to is not None:
            return Measured(_crossing(run, measured, "tokens", self.tokens_to), identity)
        if self.seconds_to is not None:
            return Measured(_crossing(run, measured, "seconds", self.seconds_to), identity)
        return Measured(float(measured[-1][self.key]), identity)

    def value(self, run: Path) -> float:
        """The metric of a finished run, alone. Raises as `measure`."""
        return self.measure(run).value

    def _identity(self, sessions: Sequence[Session], measured: Sequence[Row]) -> Identity | None:
        if not self.key.startswith("val/"):
            return {}  # of the training batches, which are the run's own
        validation = sessions[-1].get("validation") if sessions else None
        if validation is None or self.is_logged:
            return validation
        return validation | {"validations": f"{len(measured)}, at step {measured[0]['step']} first"}


def _crossing(run: Path, rows: Sequence[Row], what: str, target: float) -> float:
    """Where the validation loss first reaches `target`, between two validations linearly."""
    before: Row | None = None
    for row in rows:
        if row["val/loss"] <= target:
            if before is None:
                return float(row[what])
            share = (before["val/loss"] - target) / (before["val/loss"] - row["val/loss"])
            return float(before[what] + share * (row[what] - before[what]))
        before = row
    lowest = min(row["val/loss"] for row in rows)
    raise GptlabError(
        f"{run}: the validation loss never reached {target:g} (lowest: {lowest:.4f}); set a target that every arm "
        "reaches, or train for longer"
    )


def _accuracy(run: Path, task: str) -> Measured:
    found = read_evaluation(run, task)
    if found is None:
        raise GptlabError(f"{run} has no evals/{task}.json; run `gptlab eval {run} --tasks {task}`")
    if why := outdated(found, run):
        raise GptlabError(f"{run}: evals/{task}.json is {why}; run `gptlab eval {run} --tasks {task}` again")
    value, questions = found.results.get("acc_norm", found.results.get("acc")), found.results.get("questions")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise GptlabError(f"{run}: {task} has no accuracy; choose a task of questions")
    step = 1 / questions if isinstance(questions, int) and questions > 0 else 0.0
    return Measured(float(value), found.identity, step)


def _grade(run: Path, grade: Grade) -> Measured:
    from gptlab.lab.judge.grading import MEAN

    found, again = read_evaluation(run, GRADE), " ".join(["gptlab", *grade.request.arguments(run)])
    if found is None:
        raise GptlabError(f"{run} has no evals/{GRADE}.json; run `{again}`")
    if why := outdated(found, run):
        raise GptlabError(f"{run}: evals/{GRADE}.json is {why}; run `{again}` again")
    try:
        parts = tuple(float(row[MEAN]) for row in found.records)
        return Measured(float(found.results[MEAN]), found.identity, parts=parts)
    except (KeyError, TypeError, ValueError):
        raise GptlabError(f"{run}: evals/{GRADE}.json holds no grade; delete it and run `{again}`") from None


def check_alike(metric: Metric, runs: Iterable[Path]) -> None:
    """Raise GptlabError where the metric of two of these runs was read from different things: they are no sample of one
    quantity."""
    if found := unlike_pair(((run, metric.measure(run).identity) for run in runs), by_byte=metric.is_by_byte):
        run, first, difference = found
        raise GptlabError(
            f"{run} and {first} were measured on different things, {difference}; move one of them away and train or "
            "evaluate it anew"
        )
