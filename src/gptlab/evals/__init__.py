"""Benchmarks: a file and a record each. What they share: `benchmark`, the record; `questions`, files, prompts and
examples; `likelihood`, scoring; `multiple_choice`, `completion`, `generation` and `perplexity`, what is made of it;
`validation`, held-out text; `intervals`, what a score can tell; `contamination`."""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path

from gptlab.errors import GptlabError

_PLACES = {"reads_data": (4, False), "accuracy": (5, True)}  # of arguments of Benchmark: which, and what if not given


@functools.cache
def benchmark_names(*, published: bool = False, of_questions: bool = False) -> tuple[str, ...]:
    """All benchmarks, by name; or those of `published` texts and questions, not of the run's data; or of those the ones
    of questions, which have an accuracy.

    Read from the syntax of the source, so that nothing is imported to list them. A record that is written in another
    way than `BENCHMARK = Benchmark(…)` with plain arguments is asked itself. Raises GptlabError for a file that is
    no Python.
    """
    files = (file for folder in __path__ for file in Path(folder).glob("*.py"))
    found = {file: text for file in files if "BENCHMARK" in (text := file.read_text(encoding="utf-8"))}
    records = {file.stem: record for file, text in found.items() if (record := _record(file, text)) is not None}
    if published or of_questions:
        records = {name: record for name, record in records.items() if not _given("reads_data", name, record)}
    if of_questions:
        records = {name: record for name, record in records.items() if _given("accuracy", name, record)}
    return tuple(sorted(records))


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


def _given(key: str, name: str, record: ast.stmt) -> bool:
    """What the record of the benchmark `name` says of `key`."""
    place, default = _PLACES[key]
    call = record.value if isinstance(record, ast.Assign | ast.AnnAssign) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Benchmark":
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if len(call.args) > place:
            given[key] = call.args[place]
        value = given.get(key, ast.Constant(default))
        plain = None not in given and not any(isinstance(one, ast.Starred) for one in call.args)
        if plain and isinstance(value, ast.Constant):
            return bool(value.value)
    return bool(getattr(importlib.import_module(f"gptlab.evals.{name}").BENCHMARK, key))
