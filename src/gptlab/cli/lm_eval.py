"""`gptlab-lm-eval`: lm-evaluation-harness's own command line, with runs of gptlab among its models.

    gptlab-lm-eval run --model=gptlab --model_args run=runs/NAME --tasks arc_easy,gsm8k

All of the harness's tasks work then, without exporting. Texts are encoded and scored by gptlab's own path, the one that
`gptlab eval` takes: the end-of-text token stands before each context.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptlab.console import track
from gptlab.errors import GptlabError

try:
    from lm_eval.api.model import LM
except ImportError:  # an extra: the command says so
    LM = object


class GptlabLM(LM):  # type: ignore[misc]
    """A run behind the harness's interface.

    Args:
        run: its folder.
        checkpoint: a step, best or last; by default the run's own weights.
        device, dtype: as of `gptlab.load`.
        batch_size, max_batch_size: the harness's, which are not needed: batches are made by length.
    """

    def __init__(
        self,
        run: str,
        checkpoint: str | int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        from gptlab.interop import load

        super().__init__()
        named = None if checkpoint is None else str(checkpoint)
        self.run = load(Path(str(run)), device=device or "auto", dtype=dtype, checkpoint=named)

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps prompts of chats under."""
        return f"{self.run.tokenizer.name}-{self.run.tokenizer.hash[:12]}"

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each continuation given its context, and whether greedy decoding says it."""
        from gptlab.evals.likelihood import PairEncoder, log_likelihoods

        encode = PairEncoder(self.run.tokenizer, self.run.model.context_length)
        pairs = [encode(*request.args) for request in requests]
        found = log_likelihoods(self.run, pairs, description=f"{self.run.folder.name}: likelihoods", greedy=True)
        return [(one.logprob, bool(one.greedy)) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of each whole text."""
        from gptlab.evals.likelihood import log_likelihoods
        from gptlab.evals.perplexity import windows

        tokenizer, length = self.run.tokenizer, self.run.model.context_length
        cut = [list(windows(tokenizer.encode(request.args[0]), tokenizer.end_of_text, length)) for request in requests]
        every = [pair for pairs in cut for pair in pairs]
        found = iter(log_likelihoods(self.run, every, description=f"{self.run.folder.name}: texts"))
        return [sum(next(found).logprob for _ in pairs) for pairs in cut]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to the first of its stops."""
        said: list[str] = [""] * len(requests)
        asked: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            asked.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in asked.values():
            answers = self._say([requests[number].args[0] for number in numbers], dict(requests[numbers[0]].args[1]))
            for number, answer in zip(numbers, answers, strict=True):
                said[number] = answer
        return said

    def _say(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        from gptlab.evals.generation import ROWS, say_until, until
        from gptlab.inference.generate import Sampling

        run, stops = self.run, options.get("until") or []
        stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
        most = int(options.get("max_gen_toks", 256))
        sampled = bool(options.get("do_sample", False)) and float(options.get("temperature", 1.0)) > 0
        kept = {key: options[key] for key in ("top_k", "top_p", "min_p") if options.get(key) is not None}
        sampling = Sampling(most, float(options.get("temperature", 1.0)) if sampled else 0.0, **kept, seed=0)
        room = max(1, run.model.context_length - most)
        prompts = [run.encode_prompt(context)[-room:] for context in contexts]
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        rows = ROWS[run.device.type]
        batches = [order[start : start + rows] for start in range(0, len(order), rows)]
        said = [""] * len(prompts)
        title = f"{run.folder.name}: texts"
        for batch in track(batches, title, total=len(prompts), unit="answers", size=len):
            found = say_until(run, [prompts[number] for number in batch], stops, sampling)
            for number, tokens in zip(batch, found, strict=True):
                said[number] = until(run.tokenizer.decode_continuation(tokens, begins=False), stops)
        return said

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's template writes it."""
        from gptlab.inference.chat import render_chat

        if not add_generation_prompt:
            raise GptlabError("gptlab's chats end where the model is to answer; leave out the harness's gen_prefix")
        return render_chat(self.run.tokenizer, chat_history)


def main() -> None:
    """Entry point of `gptlab-lm-eval`."""
    if LM is object:
        print("error: gptlab-lm-eval needs the package lm-eval; pip install 'gptlab[lm-eval]'", file=sys.stderr)
        sys.exit(2)
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model("gptlab")(GptlabLM)
    try:
        cli_evaluate()
    except GptlabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
