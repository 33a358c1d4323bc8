"""Benchmarks: a file and a record each; what they share is in `benchmark`, `validation` and `multiple_choice`."""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path

from gptlab.errors import GptlabError

_READS_DATA = 4  # the place of `reads_data` among the arguments of Benchmark


@functools.cache
def benchmark_names(*, of_questions: bool = False) -> tuple[str, ...]:
    """All benchmarks, by name; or those of questions alone, which have an accuracy.

    Read from the syntax of the source, so that nothing is imported to list them. A record that is written in another
    way than `BENCHMARK = Benchmark(…)` with a plain `reads_data` is asked itself. Raises GptlabError for a file that is
    no Python.
    """
    files = (file for folder in __path__ for file in Path(folder).glob("*.py"))
    found = {file: text for file in files if "BENCHMARK" in (text := file.read_text(encoding="utf-8"))}
    records = {file.stem: record for file, text in found.items() if (record := _record(file, text)) is not None}
    return tuple(sorted(name for name, record in records.items() if not (of_questions and _reads_data(name, record))))


def _record(file: Path, text: str) -> ast.stmt | None:
    """The statement of a module that gives it a BENCHMARK; None where none does."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise GptlabError(f"{file}:{error.lineno}: no Python ({error.msg}); mend it") from None
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue  # what is named within is not the module's
        for node in ast.walk(statement):
            named = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            if isinstance(node, ast.alias):
                named = node.asname or node.name
            if named == "BENCHMARK":
                return statement
    return None


def _reads_data(name: str, record: ast.stmt) -> bool:
    call = record.value if isinstance(record, ast.Assign | ast.AnnAssign) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Benchmark":
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if len(call.args) > _READS_DATA:
            given["reads_data"] = call.args[_READS_DATA]
        value = given.get("reads_data", ast.Constant(False))
        plain = None not in given and not any(isinstance(one, ast.Starred) for one in call.args)
        if plain and isinstance(value, ast.Constant):
            return bool(value.value)
    return bool(importlib.import_module(f"gptlab.evals.{name}").BENCHMARK.reads_data)
