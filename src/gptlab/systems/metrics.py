"""Where the numbers of a run are written: metrics.jsonl, samples.jsonl, and the sinks. Reading is `record.metrics`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from gptlab.config.jsonfile import parse_json
from gptlab.console import say
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.record.metrics import Row, read_metrics
from gptlab.systems.sinks import Sink

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Sample(TypedDict):
    """A line of samples.jsonl."""

    step: int
    prompt: str
    text: str


class MetricsLog:
    """Appends rows to metrics.jsonl and samples to samples.jsonl, and gives both to `sinks`."""

    def __init__(self, folder: Path, *, resume_step: int | None = None, sinks: Sequence[Sink] = ()) -> None:
        self.path, self._samples = folder / METRICS, folder / SAMPLES
        # What was logged after the checkpoint will be computed again; keeping it would count it twice.
        kept = [] if resume_step is None else [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        if self._samples.is_file():
            drawn = [] if resume_step is None else read_samples(folder)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in drawn if row["step"] <= (resume_step or 0))
            write_atomic(self._samples, "".join(lines))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self._sinks = sinks

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; numbers that are not finite become null, which JSON can say."""
        for row in rows:
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            self._file.write(json.dumps(clean) + "\n")
            for sink in self._sinks:
                sink.write(clean)
        self._file.flush()

    def write_samples(self, step: int, texts: Mapping[str, str]) -> None:
        """Append what the model wrote after `step` steps, by prompt."""
        with open(self._samples, "a", encoding="utf-8") as file:
            for prompt, text in texts.items():
                file.write(json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False) + "\n")
        for sink in self._sinks:
            sink.samples(step, texts)

    def sync(self) -> None:
        """Make everything written so far durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync, and close the sinks."""
        if self._file.closed:
            return
        self.sync()
        self._file.close()
        for sink in self._sinks:
            sink.close()


def read_samples(folder: Path) -> list[Sample]:
    """The rows of a run's samples.jsonl: step, prompt, text; none without the file. Raises GptlabError where a line is
    none; a torn last one (a crash while writing) is dropped and said."""
    path = folder / SAMPLES
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [parse_json(line, Sample)] if line else []
        except ValueError as problem:
            if number < len(lines):
                raise GptlabError(f"{path}:{number}: {problem}; delete the line") from None
            say(f"{path}:{number}: the last line is torn (a crash while writing it); it is left out")
    return rows
