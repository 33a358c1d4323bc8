"""The column *ours* of docs/baselines.md: published models on the suites, as rows of Markdown.

    python scripts/baselines.py openai-community/gpt2 HuggingFaceTB/SmolLM2-135M --limit 200
    python scripts/baselines.py model.gguf --task-data questions --task-data texts

A model is whatever `gptlab eval` takes, which evaluates it here with `--resume`: what is computed stays in runs/, and a
second call goes on. Tasks whose questions are not to be had are named and left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from gptlab.errors import DataError, GptlabError
from gptlab.evals.benchmark import find_benchmark, find_questions
from gptlab.evals.suites import tasks_of
from gptlab.interop.foreign import run_of
from gptlab.record.evaluation import Evaluation, read_evaluation

TEXTS, WINDOW = ("wikitext", "ptb"), 1024
"""Published texts are read in windows of as many tokens as GPT-2 sees."""


def folder_of(task: str, folders: list[Path]) -> Path | None:
    """The first folder that holds the questions of `task`. Raises DataError where none does."""
    for folder in folders:
        try:
            for file in find_benchmark(task).files:
                find_questions(task, file, folder)
        except DataError:
            continue
        return folder
    for file in find_benchmark(task).files:  # where they are looked for, or downloaded, without a folder
        find_questions(task, file)
    return None


def evaluate(run: Path, task: str, folder: Path | None, limit: int | None) -> Evaluation:
    """What `gptlab eval` finds, taken from its file."""
    command = [sys.executable, "-m", "gptlab", "eval", str(run), "--tasks", task, "--resume"]
    command += ["--task-data", str(folder)] if folder else []
    command += ["--limit", str(limit)] if limit else []
    command += ["--sequence-length", str(WINDOW)] if task in TEXTS else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = read_evaluation(run, f"{task}-window{WINDOW}" if task in TEXTS else task)
    assert found is not None, task
    return found


def rows(found: Evaluation) -> list[str]:
    """A row a number that the task shows, with its 95% interval, or one standard error where there is none."""
    lines = []
    for column in find_benchmark(found.task).columns:
        value, error = found.results[column.key], found.standard_errors[column.key]
        if value is None:
            continue
        shown = f"{value:.{column.digits}f}"
        if interval := (found.results.get("intervals") or {}).get(column.key):
            shown += f" ({interval[0]:.3f} to {interval[1]:.3f})"
        elif error is not None:
            shown += f" ± {error:.{column.digits}f}"
        size = next(f"{found.results[of]} {of}" for of in ("questions", "pages") if of in found.results)
        lines.append(f"| `{found.task}` | {column.key} | {shown} | {size} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tasks", help="with commas; by default those of the suites small and perplexity")
    parser.add_argument("--limit", type=int, help="questions of a task; all by default")
    parser.add_argument("--pages", type=int, help="pages of wikitext and ptb; all by default")
    parser.add_argument("--task-data", type=Path, action="append", default=[], help="may be given several times")
    given = parser.parse_args()
    tasks = given.tasks.split(",") if given.tasks else tasks_of(["small", "perplexity"])
    for model in given.models:
        run = run_of(model)
        print(f"\n{run.name}:\n\n| task | number | ours | of |\n|---|---|---|---|", flush=True)
        for task in tasks:
            try:
                folder = folder_of(task, given.task_data)
            except DataError as error:
                print(f"{task} is left out: {error}", file=sys.stderr)
                continue
            limit = given.pages if task in TEXTS else given.limit
            print("\n".join(rows(evaluate(run, task, folder, limit))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (GptlabError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
