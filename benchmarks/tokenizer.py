"""Tokenizer speed and memory, as ratios measured in one run, the contenders taking turns.

    python benchmarks/tokenizer.py --data FOLDER [--repeats 5] [--vocab-size 8192] [--limit-bytes N]

FOLDER holds `gutenberg/train-*.parquet` (any Parquet files with a `text` column will do: --input GLOB).

* train: `gptlab.tokenizer.train_bpe`, with one process and one a core, against `rustbpe` called directly, on the same
  stream read from the same files; and Hugging Face `tokenizers` with the same pattern. Peak memory of each comes from
  a process that does nothing else, and so does processor time, its workers' included: the fairer figure where others
  work on the same cores.
* encode: `Tokenizer.encode_documents` against tiktoken called directly, and against `tokenizers`.
* grow: from half of the vocabulary to all of it, against training it at once.

Each figure is the median of the repeats, with the smallest and the largest in brackets.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def texts(pattern: str, limit: int) -> Iterator[str]:
    """The `text` column of the Parquet files of a glob, about `limit` characters of it."""
    import pyarrow.parquet as pq

    seen = 0
    for path in sorted(glob.glob(pattern)):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                yield text
                seen += len(text)
                if seen >= limit:
                    return


def train_with(who: str, pattern: str, limit: int, size: int) -> None:
    """One training; the tokenizers are equal where `who` is gptlab or rustbpe."""
    from gptlab.tokenizer.patterns import GPT4

    stream = texts(pattern, limit)
    if who == "rustbpe":
        import rustbpe

        rustbpe.Tokenizer().train_from_iterator(stream, size - 1, pattern=GPT4)
    elif who == "tokenizers":
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

        engine = Tokenizer(models.BPE())
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4), "isolated"), level])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
        engine.train_from_iterator(stream, trainer)
    else:
        from gptlab.processes import usable_cores
        from gptlab.tokenizer.training import train_bpe

        train_bpe(stream, [size], name="x", workers=1 if who == "gptlab, 1 process" else usable_cores())


def in_subprocess(who: str, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """(seconds, processor seconds, peak resident MB) of one training in a process of its own, start of Python not
    counted."""
    command = [sys.executable, __file__, "--child", who, "--input", arguments.input]
    command += ["--vocab-size", str(arguments.vocab_size), "--limit-bytes", str(arguments.limit_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, processor, peak = json.loads(done.stdout)
    return seconds, processor, peak


def child(who: str, arguments: argparse.Namespace) -> None:
    import pyarrow.parquet  # noqa: F401  imports are not what is measured
    import rustbpe  # noqa: F401
    import tokenizers  # noqa: F401

    import gptlab.tokenizer  # noqa: F401

    started, before = time.perf_counter(), os.times()
    train_with(who, arguments.input, arguments.limit_bytes, arguments.vocab_size)
    seconds, after = time.perf_counter() - started, os.times()
    processor = sum(after[:4]) - sum(before[:4])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, processor, peak / (1e6 if sys.platform == "darwin" else 1e3)]))


def report(title: str, times: dict[str, list[float]], size: float, against: str) -> None:
    print(f"\n{title}")
    for name, each in times.items():
        ratios = [mine / theirs for mine, theirs in zip(each, times[against], strict=True)]
        middle = statistics.median
        print(
            f"  {name:34s} {middle(each):6.2f} s [{min(each):.2f}, {max(each):.2f}] "
            f" {size / middle(each):6.1f} MB/s  time / {against}: {middle(ratios):.3f} [{min(ratios):.3f},"
            f" {max(ratios):.3f}]"
        )


def in_turns(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        names = list(contenders)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            started = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - started)
    return times


def measure_training(arguments: argparse.Namespace, megabytes: float) -> None:
    times: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    names = ["rustbpe", "gptlab", "gptlab, 1 process", "tokenizers"]
    for repeat in range(arguments.repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            for kept, found in zip((times, processor, peaks), in_subprocess(name, arguments), strict=True):
                kept.setdefault(name, []).append(found)
    title = f"train, {megabytes:.0f} MB, vocabulary {arguments.vocab_size:,}"
    report(title, times, megabytes, "rustbpe")
    report(f"{title}, processor time", processor, megabytes, "rustbpe")
    print("  peak memory: " + ", ".join(f"{name} {max(each):,.0f} MB" for name, each in peaks.items()))


def measure_encoding(arguments: argparse.Namespace, documents: list[str], megabytes: float) -> None:
    import tempfile

    import numpy as np
    import tiktoken
    import tokenizers

    from gptlab.tokenizer import train_bpe

    (mine,) = train_bpe(iter(documents), [arguments.vocab_size], name="x")
    assert mine.pattern is not None
    ranks = {token: index for index, token in enumerate(mine.token_bytes()) if token}
    direct = tiktoken.Encoding("x", pat_str=mine.pattern, mergeable_ranks=ranks, special_tokens=mine.special_tokens)
    with tempfile.TemporaryDirectory() as folder:
        mine.save(Path(folder) / "x")
        theirs = tokenizers.Tokenizer.from_file(str(Path(folder) / "x" / "tokenizer.json"))
    part = documents[: max(1, len(documents) // 4)]
    size = megabytes * sum(map(len, part)) / sum(map(len, documents))
    cores = os.cpu_count() or 1

    def lists() -> None:
        for text in part:
            np.array(direct.encode_ordinary(text), dtype=np.uint16)

    contenders: dict[str, Callable[[], object]] = {
        "tiktoken": lists,
        "gptlab": lambda: mine.encode_documents(part),
        f"gptlab, {cores} threads": lambda: mine.encode_documents(part, threads=cores),
        f"tokenizers, {cores} threads": lambda: theirs.encode_batch_fast(part, add_special_tokens=False),
    }
    report(f"encode to arrays, {size:.0f} MB", in_turns(contenders, arguments.repeats), size, "tiktoken")


def measure_growing(arguments: argparse.Namespace, documents: list[str], megabytes: float) -> None:
    from gptlab.tokenizer import grow_bpe, train_bpe

    size = arguments.vocab_size
    (half,) = train_bpe(iter(documents), [size // 2], name="half")
    contenders: dict[str, Callable[[], object]] = {
        "train": lambda: train_bpe(iter(documents), [size], name="x"),
        "grow": lambda: grow_bpe(half, iter(documents), [size], name="x"),
    }
    times = in_turns(contenders, arguments.repeats)
    report(f"grow, {megabytes:.0f} MB, {size // 2:,} → {size:,}", times, megabytes, "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with gutenberg/train-*.parquet")
    parser.add_argument("--input", help="glob of Parquet files with a text column, instead of --data")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--limit-bytes", type=int, default=1 << 40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.input is None:
        if arguments.data is None:
            parser.error("give --data or --input")
        arguments.input = str(arguments.data / "gutenberg" / "train-*.parquet")
    if arguments.child:
        child(arguments.child, arguments)
        return
    documents = list(texts(arguments.input, arguments.limit_bytes))
    if not documents:
        parser.error(f"no text in {arguments.input}")
    megabytes = sum(len(text.encode("utf-8")) for text in documents) / 1e6
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    measure_training(arguments, megabytes)
    measure_encoding(arguments, documents, megabytes)
    measure_growing(arguments, documents, megabytes)


if __name__ == "__main__":
    main()
