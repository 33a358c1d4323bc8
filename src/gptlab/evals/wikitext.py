"""WikiText's test pages (Merity et al. 2016, arXiv:1609.07843), the same ones in WikiText-2 and WikiText-103."""

from __future__ import annotations

import re

from gptlab.evals.benchmark import Benchmark, Column, Evaluation, Options, QuestionFile, find_questions
from gptlab.evals.perplexity import Page, evaluate_pages, read_text, undo
from gptlab.run import Run

URL = "https://huggingface.co/datasets/Salesforce/wikitext/resolve/main/wikitext-2-v1/test-00000-of-00001.parquet"
FILE = QuestionFile("wiki.test.tokens", URL)
"""The form in which rare words are <unk>, as GPT-2 was measured on."""

MARKS = [
    ("s '", "s'"),
    (" @([-,.])@ ", r"\1"),
    *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]
"""What undoes the marks of WikiText's tokenizer, in this order: the harness's table (`wikitext_detokenizer`)."""


def pages(text: str) -> list[Page]:
    """The articles of a file, each from its title, a line ` = TITLE = ` with a blank one after it. Formulas have lines
    that only begin so."""
    found = re.split(r"(?m)^(?= = [^=\n][^\n]* = \n \n)", text)
    return [Page(page, undo(page, MARKS)) for page in found if page.strip()]


def evaluate_wikitext(run: Run, options: Options) -> Evaluation:
    """Perplexity per token, word and byte on WikiText's test pages, with a record of each page."""
    path = find_questions("wikitext", FILE, options.task_data)
    return evaluate_pages(run, "wikitext", pages(read_text(path, URL)), path, options)


BENCHMARK = Benchmark(
    "wikitext",
    evaluate_wikitext,
    (Column("wikitext word ppl", "word_perplexity", 2), Column("bits/byte", "bits_per_byte")),
    files=(FILE,),
    accuracy=False,
)
