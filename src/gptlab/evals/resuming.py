"""What an evaluation depends on, known before it begins: by that a finished one is taken as it is, and one that was
killed goes on (`gptlab.evals.journal`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptlab.config.jsonfile import read_json
from gptlab.errors import DataError, GptlabError
from gptlab.evals.benchmark import Benchmark, Evaluation, Options, find_benchmark, find_questions
from gptlab.evals.questions import QuestionTask
from gptlab.evals.validation import data_sets
from gptlab.files import sha256_file
from gptlab.record.measurement import SCORER
from gptlab.run import Run
from gptlab.seal import seal_of

ASKED = "asked"
"""Among the settings of a result: the digest of what it depends on (`digest_of`)."""


def depends_on(run: Run, task: str, options: Options) -> dict[str, Any]:
    """All that the numbers of the benchmark `task` depend on, as JSON values: weights, how they are read, what is asked
    and of which files.

    Raises GptlabError where the questions or the data are not to be had.
    """
    benchmark = find_benchmark(task)
    return {
        "task": task,
        "version": f"{SCORER}.{benchmark.version}",
        "weights": run.weights or _digest_of_parameters(run),
        "step": run.step,
        "tokenizer": run.tokenizer.hash,
        "device": run.device.type,
        "dtype": str(run.dtype).removeprefix("torch."),
        "quantization": run.quantized,
        "context_length": run.model.context_length,
        "limit": options.limit,
        "sequence_length": options.sequence_length,
        "shots": options.shots,
        "stride": options.stride,
        "contamination": options.contamination,
        "questions": _digests_of_files(benchmark, options),
        "data": _fingerprints(run, benchmark, options),
    }


def digest_of(depends: Mapping[str, Any]) -> str:
    """16 digits that stand for what an evaluation depends on."""
    return seal_of(dict(sorted(depends.items())))


def finished(folder: Path, depends: Mapping[str, Any]) -> tuple[Path, Evaluation] | None:
    """The result in `folder` that is of just this, and its file; None where there is none. A file that is damaged is
    none."""
    digest = digest_of(depends)
    for path in sorted(folder.glob(f"{depends['task']}*.json")):
        try:
            found = read_json(path, Evaluation, mend="evaluate again")
        except (GptlabError, FileNotFoundError):
            continue
        if found.task == depends["task"] and found.settings.get(ASKED) == digest:
            return path, found
    return None


def _digests_of_files(benchmark: Benchmark, options: Options) -> dict[str, str]:
    """SHA-256 of each file of questions, and of those of examples and parts that are there."""
    task = getattr(benchmark.run, "__self__", None)
    more = task.examples if isinstance(task, QuestionTask) and options.shots else ()
    digests = {}
    for file in (*benchmark.files, *benchmark.optional, *more):
        try:
            digests[file.name] = sha256_file(find_questions(benchmark.name, file, options.task_data))
        except DataError:
            if file in benchmark.files:
                raise
    return digests


def _fingerprints(run: Run, benchmark: Benchmark, options: Options) -> dict[str, str]:
    if not benchmark.reads_data:
        return {}
    sets = data_sets(run.folder, run.config.data, run.tokenizer, options.data, "validation")
    return {name: dataset.fingerprint for name, dataset in sets.items()}


def _digest_of_parameters(run: Run) -> str:
    """16 digits of SHA-256 of weights that are in no model.safetensors: a checkpoint's, or somebody else's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(run.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
