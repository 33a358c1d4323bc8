"""Perplexity of a published text that is none of the run's own: per token, per byte, and per word of its authors.

As lm-evaluation-harness counts it (version 0.4: `loglikelihood_rolling`, the task `wikitext`), which the tests run
beside this on the same model: each page begins after the end-of-text token, and is read in windows of the model's
context that do not overlap, each with the last token of the one before as its context. Sums of −log p are divided by
the words and bytes of the page as it was published, so that models with unlike tokenizers compare; the model reads it
without the marks of the publishers' own tokenizer (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", section 3.1).
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gptlab.console import track
from gptlab.errors import DataError, GptlabError, option
from gptlab.evals.benchmark import Evaluation, Options
from gptlab.evals.likelihood import EncodedPair, log_likelihoods
from gptlab.evals.validation import ratio_error
from gptlab.files import sha256_file
from gptlab.run import Run


@dataclass(frozen=True)
class Page:
    """One text: as it was published, and as a model reads it."""

    published: str
    plain: str

    @property
    def words(self) -> int:
        """Of the text as published, cut at white space: what the harness divides by."""
        return len(re.split(r"\s+", self.published))

    @property
    def bytes(self) -> int:
        """Of the text as published, in UTF-8."""
        return len(self.published.encode("utf-8"))


def read_text(path: Path, url: str) -> str:
    """The text of a file, plain, gzipped, or Parquet with a line of it in each row's `text`.

    Raises DataError where it cannot be read, or holds nothing.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            text = "".join(pq.read_table(path, columns=["text"]).column("text").to_pylist())
        else:
            with (
                gzip.open(path, "rt", encoding="utf-8")
                if path.suffix == ".gz"
                else open(path, encoding="utf-8") as file
            ):
                text = file.read()
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file again: {url}") from None
    if not text.strip():
        raise DataError(f"{path}: holds no text; get the file again: {url}")
    return text


def undo(text: str, steps: Sequence[tuple[str, str]]) -> str:
    """`text` after each (regular expression, replacement) of `steps` in turn."""
    for pattern, replacement in steps:
        text = re.sub(pattern, replacement, text)
    return text


def windows(
    ids: Sequence[int], end_of_text: int, context_length: int, stride: int | None = None
) -> Iterator[EncodedPair]:
    """The windows of one page, which begin `stride` tokens after each other (None: `context_length`, so that they do
    not overlap); each predicts what the one before did not, given what of the page it holds."""
    whole, done, begin = [end_of_text, *ids], 0, 0
    while done < len(ids):
        end = min(len(ids), begin + context_length)
        yield EncodedPair(whole[begin : end + 1], end - done, False)
        done, begin = end, begin + (stride or context_length)


def evaluate_pages(run: Run, task: str, pages: Sequence[Page], path: Path, options: Options) -> Evaluation:
    """Perplexity over the first `options.limit` of `pages` of the benchmark `task`, with a record of each.

    Raises GptlabError where a probability is not finite, DataError where the tokenizer cannot encode a page.
    """
    pages, shown = pages[: options.limit], options.world is None or options.world.is_main
    length = min(options.sequence_length or run.model.context_length, run.model.context_length)
    if options.stride is not None and options.stride > length:
        raise GptlabError(f"{option('stride')} {options.stride}: a window has {length} tokens; take so many or fewer")
    description = f"{run.folder.name}: {task}"
    owners, pairs = [], []
    for number, page in enumerate(
        track(pages, f"{description}: encoding", total=len(pages), unit="pages", shown=shown)
    ):
        cut = list(windows(run.tokenizer.encode(page.plain), run.tokenizer.end_of_text, length, options.stride))
        pairs += cut
        owners += [number] * len(cut)
    found = log_likelihoods(run, pairs, description=description, world=options.world)
    nats = torch.zeros(len(pages), dtype=torch.float64)
    nats.index_add_(0, torch.tensor(owners), -torch.tensor([one.logprob for one in found], dtype=torch.float64))
    if not nats.isfinite().all():
        raise GptlabError(f"{run.folder}: a probability is not finite; evaluate an earlier {option('checkpoint')}")
    sizes = torch.zeros(len(pages), 3, dtype=torch.float64)  # tokens, words, bytes
    sizes[:, 0].index_add_(0, torch.tensor(owners), torch.tensor([float(pair.count) for pair in pairs]).double())
    sizes[:, 1:] = torch.tensor([[page.words, page.bytes] for page in pages])
    results, errors = _numbers(nats, sizes)
    records = [
        {"id": number, "nats": round(cost, 5), "tokens": round(tokens), "words": round(words), "bytes": round(size)}
        for number, (cost, (tokens, words, size)) in enumerate(zip(nats.tolist(), sizes.tolist(), strict=True))
    ]
    settings = {"file": path.name, "sha256": sha256_file(path), "context_length": length}
    if options.stride is not None:
        settings["stride"] = options.stride
    return Evaluation(task, results, errors, settings, records)


def _numbers(nats: torch.Tensor, sizes: torch.Tensor) -> tuple[dict[str, float], dict[str, float | None]]:
    """Perplexities and their standard errors over pages: exp of a ratio of sums, (P,) over each column of (P, 3)."""
    total, (tokens, words, size) = float(nats.sum()), sizes.sum(0).tolist()
    results = {"pages": len(nats), "tokens": round(tokens), "words": round(words), "bytes": round(size)}
    found: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    for column, name in enumerate(("perplexity", "word_perplexity", "byte_perplexity")):
        found[name] = math.exp(min(total / float(sizes[:, column].sum()), 700.0))
        error = ratio_error(nats, sizes[:, column])
        errors[name] = None if error is None else found[name] * error
    found["bits_per_byte"] = total / math.log(2) / size
    error = ratio_error(nats, sizes[:, 2])
    errors["bits_per_byte"] = None if error is None else error / math.log(2)
    return found | results, errors
