"""A full house on a model of a real one's shape: SmolLM2-135M's, with random weights."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from serving.place import running

from gptlab.config import config_from
from gptlab.inference.generate import Sampling, generate
from gptlab.model import build_model
from gptlab.run import Run
from gptlab.serving.models import Limits
from gptlab.tokenizer import char_tokenizer

D, L, H, K, C, F, V, T = 576, 30, 9, 3, 64, 1536, 49152, 2048
CLIENTS, AT_ONCE = 64, 32
STATM = Path("/proc/self/statm")
FLOAT = 4  # bytes
LONGEST = 68 + 6  # tokens of a text, as `asked` has them
READ = 1024  # places of prompts that are read together
WORK = 160 * 2**20  # activations, logits, threads of the clients and the server


@pytest.fixture(scope="module")
def run() -> Run:
    """The shape of SmolLM2-135M; a character for every id. Weights wild enough that texts differ."""
    values = {
        "model": {
            "dim": D,
            "layers": L,
            "heads": H,
            "context_length": T,
            "tied": True,
            "block": {"attention": {"kv_heads": K}, "mlp": {"use": "SwiGLU", "hidden": F}},
        },
        "train": {"sequence_length": T},
        "system": {"device": "cpu"},
    }
    config = config_from(values, ["model.initialization.std=0.1"])
    torch.manual_seed(11)
    model = build_model(config, V).eval()
    assert 134e6 < model.parameter_count() < 135e6
    tokenizer = char_tokenizer([chr(0x10000 + number) for number in range(V - 1)], name="random")
    return Run(Path("smollm2"), config, model, tokenizer, torch.device("cpu"), torch.float32)


class Resident:
    """The most memory that this process has while the context is held, in bytes more than at its beginning."""

    def __enter__(self) -> Resident:
        self.before = self.most = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def more(self) -> int:
        return self.most - self.before

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cache_bytes(rows: int, places: int) -> int:
    """Of keys and values."""
    return 2 * L * rows * K * places * C * FLOAT


def asked(number: int) -> dict[str, Any]:
    """What a client wants: a prompt of 5 to 68 tokens, an answer of 2 to 6."""
    prompt = [(9_973 * number + 31 * place * place) % V for place in range(5 + number)]
    return {"prompt": prompt, "max_tokens": 2 + number % 5}


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="this machine does not say how much memory a process has")
def test_64_clients_of_smollm2s_shape_get_what_each_gets_alone_in_bounded_memory(run: Run) -> None:
    expected = []
    for number in range(CLIENTS):
        one = asked(number)
        sampling = Sampling(one["max_tokens"], 0.0, stop_at_end=False)
        expected += generate(run.generator, [one["prompt"]], sampling, stop_ids=(), device=run.device)
    assert len({tuple(row) for row in expected}) == CLIENTS

    with running([run], Limits(max_batch=AT_ONCE)) as place:

        def ask(number: int) -> tuple[str, int]:
            body = {"model": "smollm2", "temperature": 0, "ignore_eos": True, **asked(number)}
            answer = place.http.post("/completions", json=body, timeout=600)
            answer.raise_for_status()
            found = answer.json()
            return found["choices"][0]["text"], found["usage"]["completion_tokens"]

        ask(0)  # what a first request takes for good is none of the cache's
        with Resident() as memory, ThreadPoolExecutor(CLIENTS) as pool:
            found = [list(pool.map(ask, range(CLIENTS))) for _ in range(2)]  # and nothing is added the second time
        assert place.settled()
        load = place.served[0].engine.load
    texts = [run.tokenizer.decode_continuation(row) for row in expected]
    assert found == [[(text, asked(number)["max_tokens"]) for number, text in enumerate(texts)]] * 2
    assert load.most_at_once == AT_ONCE
    # The cache has room for half as much again, and is there twice while it is moved to more room.
    most = 2 * cache_bytes(AT_ONCE, LONGEST + 2 * 64) + cache_bytes(1, READ) + WORK
    assert memory.more < most, (memory.more, most)
