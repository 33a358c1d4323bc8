"""Follow README.md to the letter in an empty folder, with the installed `gptlab`, and log how long each command took.

    python -m venv fresh && fresh/bin/pip install dist/gptlab-*.whl
    fresh/bin/python scripts/try_readme.py --books FOLDER [--questions FOLDER] [--quick]

Every line of its `sh` and `python` blocks that asks gptlab for something is run, in order, but for what needs the
network or eight GPUs, which is named. Three things stand for others: FOLDER, with train-*.parquet and
validation-*.parquet, for books/; the run that is there for the hash 0123abcd; and short runs, trained first, where a
line takes them for granted. `--quick` trains little.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
ELSEWHERE = ("make ", "pip ", "gptlab import openai-community", "torchrun ")
"""Beginnings of lines that are not for here: from a clone, over the network, on eight GPUs."""
FIRST = {
    "gptlab soup": [
        f"gptlab train books-xs --set name={name} --set train.tokens=50k --set seed.data={seed}"
        for seed, name in enumerate("abc", start=11)
    ],
}
"""What is trained before a line that takes it for granted."""
QUICK = {
    "gptlab train demo": "--set train.tokens=50k",
    "gptlab train books-xs --set train.tokens=2M": "--set train.tokens=100k",
    "gptlab run ": "--no-probe --seeds 1",
    "gptlab train books-xs --resume": "--set train.tokens=100k",
    "gptlab train runs/": "--set train.tokens=150k",
}


def blocks() -> Iterator[tuple[str, str]]:
    """(language, text) of each block of the README, in order."""
    for match in re.finditer(r"^```(sh|python)\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S):
        yield match[1], match[2]


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block, without their comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield line.split(" #")[0].strip()


def with_real_hash(text: str) -> str:
    """`text` with books-xs-0123abcd-seed1 as the run that is there."""
    runs = sorted(glob.glob("runs/books-xs-????????-seed1"), key=os.path.getmtime)
    return text.replace("runs/books-xs-0123abcd-seed1", runs[0]) if runs else text


def follow(command: list[str] | str, label: str) -> bool:
    """Run one command, show its last line, seconds and exit status; whether it ended well."""
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command]
        if isinstance(command, str)
        else command,  # bash expands runs/NAME-*, as a reader's does
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    print(
        f"{'ok ' if done.returncode == 0 else f'EXIT {done.returncode}'} {time.monotonic() - began:6.1f} s  {label}",
        flush=True,
    )
    for line in lines[-1:] if done.returncode == 0 else lines[-8:]:
        print(f"               {line[:150]}", flush=True)
    return done.returncode == 0


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--books", type=Path, required=True, help="train-*.parquet and validation-*.parquet")
    arguments.add_argument("--questions", type=Path, help="HellaSwag's questions; else they are downloaded")
    arguments.add_argument("--quick", action="store_true", help="train little")
    asked = arguments.parse_args()
    books, questions = asked.books.resolve(), asked.questions and asked.questions.resolve()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.chdir(tempfile.mkdtemp(prefix="gptlab-readme-"))
    os.symlink(books, "books")
    print(f"{sys.version.split()[0]} in {Path.cwd()}")
    failed = 0
    for language, text in blocks():
        if language == "python":
            failed += not follow([sys.executable, "-c", f"import gptlab\n{with_real_hash(text)}"], text.splitlines()[0])
            continue
        for command in commands(text):
            if command.startswith(ELSEWHERE):
                print(f"--            {command}")
                continue
            for before in next((lines for start, lines in FIRST.items() if command.startswith(start)), []):
                failed += not follow(before, f"(first) {before}")
            command = with_real_hash(command)
            if questions and "hellaswag" in command:
                command += f" --task-data {shlex.quote(str(questions))}"
            if command.startswith("gptlab run "):
                command += " --yes"  # a reader says so at the prompt
            if asked.quick:
                command += "".join(f" {more}" for start, more in QUICK.items() if command.startswith(start))
            failed += not follow(command, command)
    print(f"{failed} failed" if failed else "all ended well")
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main()))
