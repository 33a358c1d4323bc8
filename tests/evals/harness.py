"""lm-evaluation-harness's own tasks over rows of ours, and a run of ours behind its interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.run import Run

Rows = list[dict[str, Any]]


def harness_task(file: str, rows: Rows, examples: Rows | None = None, *, fewshot_split: str | None = None) -> Any:
    """The task of the harness's `tasks/FILE`, its YAML and its functions, over `rows` instead of a download."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / file, resolve_func=True)
    split = config.get("test_split") or config["validation_split"]
    splits = {split: datasets.Dataset.from_list(rows)}
    if examples is None:
        config["training_split"] = None
    else:
        splits[fewshot_split or config["training_split"]] = datasets.Dataset.from_list(examples)
    # The harness asks the test questions where there are both, and the validation split has none here.
    config |= {"validation_split": split if config.get("test_split") is None else None}
    config |= {"metadata": {}, "custom_dataset": lambda **_: datasets.DatasetDict(splits)}
    config.pop("tag", None)
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(1234)  # what `simple_evaluate` does
    return task


def harness_requests(task: Any, shots: int) -> tuple[Rows, list[list[Any]]]:
    """Each document of a task with its requests."""
    docs = [doc for _, doc in task.doc_iterator()]
    requests = []
    for number, doc in enumerate(docs):
        asked = task.construct_requests(doc, task.fewshot_context(doc, shots), doc_id=number, metadata=("t", number, 1))
        requests.append(asked if isinstance(asked, list) else [asked])
    return docs, requests


def harness_model(run: Run) -> Any:
    """The run's model behind the harness's interface: the harness encodes, the model reads one row at a time."""
    from lm_eval.api.model import TemplateLM

    class Adapter(TemplateLM):
        eot_token_id = run.tokenizer.end_of_text  # type: ignore[assignment]

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids = run.tokenizer.encode(string)
            return ids if add_special_tokens is False else [self.eot_token_id, *ids]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            answers = []
            for _, context, continuation in requests:
                ids = torch.tensor((context + continuation)[-(run.model.context_length + 1) :])
                with torch.no_grad():
                    logprobs = run.model(ids[None, :-1], return_logits=True)[0].log_softmax(-1)
                count = len(continuation)
                chosen = logprobs[-count:].gather(-1, ids[-count:, None])
                greedy = bool((logprobs[-count:].argmax(-1) == ids[-count:]).all())
                answers.append((chosen.sum().item(), greedy))
            return answers

        # The base class wants these two as well; a task of questions asks for neither, and the test fails if it does.
        def loglikelihood_rolling(self, *_: Any, **__: Any) -> list[float]:
            pytest.fail("the task asked for the likelihood of a whole text")

        def generate_until(self, *_: Any, **__: Any) -> list[str]:
            pytest.fail("the task asked for generated text")

    return Adapter()
