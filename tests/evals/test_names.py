"""Benchmarks are listed from the syntax of their files: no comment and no spelling makes one what it is not."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptlab import evals
from gptlab.errors import GptlabError
from gptlab.evals import benchmark_names
from gptlab.evals.benchmark import Benchmark, find_benchmark

Add = Callable[[str, str], None]

HEAD = "from gptlab.evals.benchmark import Benchmark, Column\n\n\ndef run(run, options): ...\n\n\n"


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """`add("copa", source)` puts a benchmark of somebody's beside ours."""
    monkeypatch.setattr(evals, "__path__", [*evals.__path__, str(tmp_path)])
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(HEAD + source)
        benchmark_names.cache_clear()

    yield write
    benchmark_names.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("gptlab.evals."):
            del sys.modules[name]
            vars(evals).pop(name.rpartition(".")[2], None)


QUESTIONS = {
    "a comment": "BENCHMARK = Benchmark('it', run, ())  # not reads_data=True: it has questions\n",
    "a text": "WHY = 'reads_data=True would be wrong'\nBENCHMARK = Benchmark('it', run, ())\n",
    "said": "BENCHMARK = Benchmark('it', run, (), reads_data=False)\n",
    "annotated": "BENCHMARK: Benchmark = Benchmark(name='it', run=run, columns=())\n",
    "spread": "MORE = {'reads_data': False}\nBENCHMARK = Benchmark('it', run, (), **MORE)\n",
    "within": "if True:\n    BENCHMARK = Benchmark('it', run, ())\n",
}
TEXT = {
    "blanks": "BENCHMARK = Benchmark('it', run, (), reads_data = True)\n",
    "lines": "BENCHMARK = Benchmark(\n    'it',\n    run,\n    (),\n    reads_data=(\n        True\n    ),\n)\n",
    "by place": "BENCHMARK = Benchmark('it', run, (), (), True)\n",
    "annotated": "BENCHMARK: Benchmark = Benchmark('it', run, (), reads_data=True)\n",
    "computed": "YES = 1 > 0\nBENCHMARK = Benchmark('it', run, (), reads_data=YES)\n",
    "spread": "MORE = {'reads_data': True}\nBENCHMARK = Benchmark('it', run, (), **MORE)\n",
    "another's": "import dataclasses\nfrom gptlab.evals.loss import BENCHMARK as L\n"
    "BENCHMARK = dataclasses.replace(L, name='it')\n",
    "imported": "from gptlab.evals.loss import BENCHMARK\n",
    "unpacked": "BENCHMARK, _ = Benchmark('it', run, (), reads_data=True), 1\n",
}


@pytest.mark.parametrize("spelling", QUESTIONS)
def test_a_benchmark_of_questions_however_it_is_written(spelling: str, add: Add) -> None:
    add("it", QUESTIONS[spelling])
    assert "it" in benchmark_names()
    assert "it" in benchmark_names(of_questions=True)
    assert not find_benchmark("it").reads_data


@pytest.mark.parametrize("spelling", TEXT)
def test_a_benchmark_of_text_however_it_is_written(spelling: str, add: Add) -> None:
    add("it", TEXT[spelling])
    assert "it" in benchmark_names()
    assert "it" not in benchmark_names(of_questions=True)
    assert find_benchmark("it").reads_data


@pytest.mark.parametrize("source", ["# BENCHMARK = Benchmark()\n", "'''\nBENCHMARK = 1\n'''\n", "x = run.BENCHMARK\n"])
def test_what_is_no_benchmark(source: str, add: Add) -> None:
    add("it", source)
    assert "it" not in benchmark_names()


def test_a_file_that_is_no_python(add: Add) -> None:
    add("it", "BENCHMARK = (\n")
    with pytest.raises(GptlabError, match=r"it\.py:7: no Python"):
        benchmark_names()


def test_ours_are_known_as_they_are() -> None:
    of_questions = {
        *("arc_challenge", "arc_easy", "boolq", "commonsense_qa", "copa", "hellaswag", "lambada_openai"),
        *("blimp", "mmlu", "openbook_qa", "piqa", "race", "sciq", "triviaqa", "winograd_wsc", "winogrande"),
    }
    assert set(benchmark_names()) == of_questions | {"core", "loss", "ptb", "tinystories", "topk", "wikitext"}
    found = {name: find_benchmark(name) for name in benchmark_names()}
    assert benchmark_names(published=True) == tuple(name for name in found if not found[name].reads_data)
    assert set(benchmark_names(of_questions=True)) == of_questions
    assert {name for name in found if found[name].accuracy and not found[name].reads_data} == of_questions
    fields = dataclasses.fields(Benchmark)
    for key, (place, default) in evals._PLACES.items():
        assert (fields[place].name, fields[place].default) == (key, default)


def test_nothing_is_imported_to_list_them() -> None:
    code = (
        "import sys; from gptlab.evals import benchmark_names as b; b(of_questions=True); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
