"""Benchmarks: a file and a record each; what they share is in `benchmark`, `validation` and `multiple_choice`."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def benchmark_names(*, of_questions: bool = False) -> tuple[str, ...]:
    """All benchmarks, by name; or those of questions alone, which have an accuracy.

    Found in the source, so that nothing is imported to list them.
    """
    files = [file for folder in __path__ for file in Path(folder).glob("*.py")]
    texts = {file.stem: text for file in files if "\nBENCHMARK = " in (text := file.read_text(encoding="utf-8"))}
    return tuple(sorted(name for name, text in texts.items() if not (of_questions and "reads_data=True" in text)))
