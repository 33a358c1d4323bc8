"""How near `gptlab data prepare` comes to the speed of tokenizing alone.

    python benchmarks/prepare.py --data FOLDER --tokenizer FOLDER [--repeats 5] [--workers 2] [--copies 4]

The floor: `--workers` processes that do nothing but `tiktoken`'s `encode_ordinary` on texts they already hold,
timed without starting them or reading. Against it the whole command as a user runs it: a new process, Parquet in,
checksummed shards out, starting the interpreter included (the data is read `--copies` times over, so that this
start-up of about a second does not stand for what longer jobs reach). The two take turns; printed are the
medians of text per second, the range, the ratio, and the most memory that all processes of a prepare held together.

    python benchmarks/prepare.py --jsonl 300 --tokenizer byte

Memory and speed on one file of so many MB of JSON lines, made here of random words: as one stream with one worker and
two, in units with two tasks, and with duplicates taken out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import psutil
import pyarrow.parquet as pq

from gptlab.tokenizer import load_tokenizer


def tiktoken_alone(texts: list[str], tokenizer: Path, start: Any, seconds: Any) -> None:
    encoding: Any = load_tokenizer(tokenizer)._engine._encoding  # type: ignore[attr-defined]
    start.wait()
    began, worked = time.perf_counter(), time.process_time()
    for text in texts:
        encoding.encode_ordinary(text)
    seconds.put((time.perf_counter() - began, time.process_time() - worked))


def floor(texts: list[str], tokenizer: Path, workers: int) -> tuple[float, float]:
    """Bytes of text a second of `workers` processes of bare tiktoken (the slowest decides), and a CPU second."""
    context = multiprocessing.get_context("spawn")
    start, seconds = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=tiktoken_alone, args=(texts[i::workers], tokenizer, start, seconds))
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    measured = [seconds.get() for _ in processes]
    for process in processes:
        process.join()
    size = sum(len(text.encode()) for text in texts)
    return size / max(wall for wall, _ in measured), size / sum(cpu for _, cpu in measured)


def whole(inputs: str, copies: int, tokenizer: Path, workers: int, size: int) -> tuple[float, float, float]:
    """Bytes of text a second of the whole command, and a CPU second; the peak of its processes' memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [str(Path(sys.executable).with_name("gptlab")), "data", "prepare", "--out", str(out)]
        command += ["--input", inputs] * copies
        command += ["--tokenizer", str(tokenizer), "--workers", str(workers), "--shard-size", "5M"]
        worked = cpu_of_children()
        seconds, peak = watched(command)
        shutil.rmtree(out)
    return size * copies / seconds, size * copies / (cpu_of_children() - worked), peak


WAYS: dict[str, list[str]] = {
    "one stream, 1 worker": ["--workers", "1"],
    "one stream, 2 workers": ["--workers", "2"],
    "units, 1 task": ["--engine", "local", "--tasks", "1"],
    "units, 2 tasks": ["--engine", "local", "--tasks", "2"],
    "units, 2 tasks, ExactDuplicates": ["--engine", "local", "--tasks", "2", "--step", "ExactDuplicates"],
}


def one_file(megabytes: int, tokenizer: str) -> None:
    """Print for each of `WAYS` the MB of a JSON-lines file a second, and the peak of memory."""
    random = numpy.random.default_rng(0)
    words = numpy.array(
        ["".join(random.choice(list("abcdefghijklmnop"), random.integers(2, 10))) for _ in range(20_000)]
    )
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "one.jsonl", Path(folder) / "out"
        with open(file, "w") as lines:
            while lines.tell() < megabytes * 1_000_000:
                lines.write(json.dumps({"text": " ".join(random.choice(words, random.integers(50, 800)))}) + "\n")
        for name, options in WAYS.items():
            command = [str(Path(sys.executable).with_name("gptlab")), "data", "prepare", "--input", str(file)]
            command += ["--out", str(out), "--tokenizer", tokenizer, "--force", *options]
            seconds, peak = watched(command)
            size = file.stat().st_size / 1e6
            print(f"{name}: {size / seconds:.1f} MB/s, {seconds:.1f} s, peak memory {peak:.0f} MB", flush=True)


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds that a command took, and the peak of its processes' memory in MB."""
    began, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - began, peak


def cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(pid: int) -> float:
    """MB of a process and its children (resident; shared pages are counted in each)."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train-*.parquet, column text")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a bpe tokenizer")
    parser.add_argument("--jsonl", type=int, metavar="MB", help="one file of so many MB, in place of --data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--copies", type=int, default=4, help="times that prepare reads the data")
    options = parser.parse_args()
    if options.jsonl:
        one_file(options.jsonl, str(options.tokenizer))
        return
    if options.data is None:
        parser.error("give --data FOLDER, or --jsonl MB")
    inputs = str(options.data / "train-*.parquet")
    files = sorted(options.data.glob("train-*.parquet"))
    texts = [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    size = sum(len(text.encode()) for text in texts)
    floors, wholes = [], []
    for repeat in range(options.repeats):
        floors.append(floor(texts, options.tokenizer, options.workers))
        wholes.append(whole(inputs, options.copies, options.tokenizer, options.workers, size))
        wall = f"tiktoken {floors[-1][0] / 1e6:.2f} MB/s, prepare {wholes[-1][0] / 1e6:.2f} MB/s"
        print(f"{repeat + 1}: {wall}", file=sys.stderr)
    # By the clock, and by CPU time: the second hardly minds what else the machine does.
    for column, unit in ((0, "MB/s"), (1, "MB a CPU second")):
        bare, all_of_it = [run[column] / 1e6 for run in floors], [run[column] / 1e6 for run in wholes]
        ratios = [whole / floor for whole, floor in zip(all_of_it, bare, strict=True)]
        for name, values in (("tiktoken alone", bare), ("gptlab data prepare", all_of_it)):
            print(f"{name}: {statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})")
        print(f"ratio: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"peak memory of prepare: {max(run[2] for run in wholes):.0f} MB")


if __name__ == "__main__":
    main()
