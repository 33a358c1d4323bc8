"""Numbers of a run: one JSON object a line in metrics.jsonl. Console, CSV, plots, TensorBoard and W&B are views of it.

Rows carry `step` (batches done: the optimizer's steps, where batches do not grow), `tokens` (trained on so far) and
what was measured there: `train/loss` and its companions for a step, `val/loss` and its companions for a validation.
Losses are in nats a token.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.console import say
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.record.facts import read_facts

Row = dict[str, Any]
_LARGEST = 1e30  # of a number in a row: a loss, a norm, a count; beyond it nothing is measured
_SHARED = ("step", "tokens", "seconds")  # of the two rows that a step can have, trained and validated


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl. A torn last line (a crash while writing) is dropped and said.

    Raises GptlabError, naming the line, where a row is not one, or not in its place: steps never go back, and each is
    trained once and validated once.
    """
    rows: list[Row] = []
    try:
        lines = _read(path).split(b"\n")
    except FileNotFoundError:
        return rows
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = _row(line)
        except ValueError as problem:
            if number == len(lines):
                say(f"{path}:{number}: the last line is torn (a crash while writing it); it is left out")
                break
            what = "not a row of metrics" if isinstance(problem, UnicodeDecodeError | json.JSONDecodeError) else problem
            raise GptlabError(f"{path}:{number}: {what}; delete the line, or restore the file") from None
        if misplaced := _misplaced(row, rows):
            raise GptlabError(f"{path}:{number}: {misplaced}; the file was edited: restore it")
        rows.append(row)
    return rows


def _read(path: Path) -> bytes:
    """The bytes of a metrics.jsonl. Raises FileNotFoundError; GptlabError where it cannot be read, or is not the one
    that its run ended with."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GptlabError(f"{path}: cannot be read ({error.strerror or error}); restore it") from None
    written = read_facts(path.parent).metrics if (path.parent / "facts.json").is_file() else None
    if written is not None and metrics_digest(content) != written:
        raise GptlabError(f"{path}: it was edited or damaged since the run ended; restore it, or train the run again")
    return content


def metrics_digest(content: bytes) -> str:
    """16 digits of SHA-256 of a metrics.jsonl, as facts.json keeps them of a finished run."""
    return hashlib.sha256(content).hexdigest()[:16]


def _row(line: bytes) -> Row:
    """A line as a row. Raises ValueError where it is none: a step, and numbers by name."""
    try:
        row = json.loads(line, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("not a row of metrics") from None
    if not isinstance(row, dict) or "step" not in row:
        raise ValueError("not a row of metrics")
    for key, value in row.items():
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{key!r} is {str(value)[:40]!r}, no number")
        if isinstance(value, int | float) and not -_LARGEST < value < _LARGEST:
            raise ValueError(f"{key!r} is beyond {_LARGEST:g}")
        if key in ("step", "tokens") and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"{key!r} is {value!r}, no count")
    return row


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _misplaced(row: Row, before: Sequence[Row]) -> str:
    """What is wrong with the place of a row; empty where nothing is."""
    if not before or row["step"] > before[-1]["step"]:
        return ""
    if row["step"] < before[-1]["step"]:
        return f"step {row['step']} comes after step {before[-1]['step']}"
    same = [other for other in before[-2:] if other["step"] == row["step"]]
    twice = next((key for key in row if key not in _SHARED and any(key in other for other in same)), None)
    return f"{twice} of step {row['step']} is there twice" if twice else ""


def read_columns(path: Path, keys: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Columns of a metrics.jsonl as arrays: a value a row, nan where a row has none. Fast, for many runs.

    What is torn or damaged is met as by `read_metrics`, and raises the same.
    """
    found = _columns(_read(path), keys) if path.exists() else None
    if found is not None:
        return found
    rows = read_metrics(path)
    return {key: np.array([np.nan if row.get(key) is None else row[key] for row in rows], np.float64) for key in keys}


def _columns(content: bytes, keys: Sequence[str]) -> dict[str, NDArray[np.float64]] | None:
    """The columns by Arrow's reader; None where a line is not what it should be."""
    import pyarrow as pa
    from pyarrow import json as arrow

    if not content.endswith(b"\n"):
        return None
    wanted = list(dict.fromkeys(["step", "train/loss", "val/loss", *keys]))
    options = arrow.ParseOptions(
        explicit_schema=pa.schema([(key, pa.float64()) for key in wanted]), unexpected_field_behavior="ignore"
    )
    try:
        table = arrow.read_json(
            pa.BufferReader(content), arrow.ReadOptions(use_threads=False, block_size=2**22), options
        )
    except pa.ArrowInvalid:
        return None
    if len(table) != content.count(b"\n") or table["step"].null_count:
        return None
    found = {key: np.concatenate([_values(chunk) for chunk in table[key].chunks] or [np.empty(0)]) for key in wanted}
    steps = np.diff(found["step"], prepend=0.0)
    if (steps < 0).any() or any(np.nanmax(np.abs(values), initial=0.0) >= _LARGEST for values in found.values()):
        return None  # what is wrong, and in which line, the careful reader says
    same = np.flatnonzero(steps == 0)
    same = same[same > 0]
    there = [~np.isnan(values) for key, values in found.items() if key not in _SHARED]
    twice = any((one[same] & one[same - 1]).any() for one in there)
    return None if twice or (np.diff(same) == 1).any() else {key: found[key] for key in keys}


def _values(chunk: Any) -> NDArray[np.float64]:
    """Arrow's float64 array with nan for null. Its own to_numpy() imports pandas, half a second for nothing."""
    there, data = chunk.buffers()
    part = slice(chunk.offset, chunk.offset + len(chunk))
    values = np.frombuffer(data, np.float64)[part]
    if there is None:
        return values
    return np.where(np.unpackbits(np.frombuffer(there, np.uint8), bitorder="little")[part], values, np.nan)


def write_csv(rows: list[Row], path: Path) -> None:
    """The same numbers as a table, a row a step; a cell is empty where nothing was measured."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    by_step: dict[int, Row] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(by_step.values())
    write_atomic(path, text.getvalue())


def last_row(path: Path, size: int = 4096) -> Row | None:
    """The last complete row of a metrics.jsonl, which may be written to meanwhile; None before the first.

    Raises GptlabError where the run is finished and its metrics.jsonl was edited since.
    """
    try:
        if (path.parent / "facts.json").is_file():
            lines = _read(path).split(b"\n")[:-1]
        else:
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - size))
                lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            return row if isinstance(row, dict) and "step" in row else None
    return None
