"""The server with several clients at once, beside the same requests one after the other, taking turns:

    python benchmarks/serving.py [--turns 5] [--clients 1,4,16,64] [--tokens 64] [--threads 2]

One warm process serves a model of 6 layers × 384, V 50257, float32, on this CPU, and is asked over HTTP by threads of
it: prompts of 16 tokens, greedy. A turn answers as many requests as there are clients, once all at a time and once one
by one; the ratio is of the two rates of tokens in one turn. Clients and server share the interpreter.
"""

from __future__ import annotations

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from turns import ratio, spread

D, L, H, V, T = 384, 6, 6, 50257, 256
PROMPT = 16


def make_served(most: int) -> Any:
    """A random model behind an engine for `most` texts at once. Its tokenizer has a character for every id."""
    import torch

    from gptlab.config import config_from
    from gptlab.interop.gpt2 import gpt2_config
    from gptlab.model import build_model
    from gptlab.run import Run
    from gptlab.serving.models import Limits, Served
    from gptlab.tokenizer import char_tokenizer

    tokenizer = char_tokenizer([chr(0x10000 + number) for number in range(V - 1)], name="random")
    torch.manual_seed(0)
    model = build_model(gpt2_config(dim=D, layers=L, heads=H, context_length=T), tokenizer.vocab_size).eval()
    run = Run(Path("random"), config_from({}), model, tokenizer, torch.device("cpu"), torch.float32)
    limits = Limits(max_batch=most)
    return Served(run, "random", limits), limits


def ask(client: httpx.Client, number: int, tokens: int) -> int:
    """Tokens of one answer, as the server counts them."""
    prompt = [(7 * number + place) % 256 for place in range(PROMPT)]
    body = {"model": "random", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = client.post("/completions", json=body)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


def rate(client: httpx.Client, requests: int, at_once: int, tokens: int) -> float:
    """Tokens a second over so many requests."""
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        made = sum(pool.map(lambda number: ask(client, number, tokens), range(requests)))
    return made / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    import torch

    from gptlab.serving.server import listen, make_server

    torch.set_num_threads(options.threads)
    counts = [int(part) for part in options.clients.split(",")]
    served, limits = make_served(max(counts))
    listening = listen("127.0.0.1", 0)
    server = make_server([served], limits, local=True)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    try:
        with httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
            rate(client, max(counts), max(counts), 4)  # warm
            found: dict[int, tuple[list[float], list[float]]] = {count: ([], []) for count in counts}
            for turn in range(options.turns):
                for count, (together, one_by_one) in found.items():
                    order = [(together, count), (one_by_one, 1)]
                    for rates, at_once in order if turn % 2 == 0 else reversed(order):
                        rates.append(rate(client, count, at_once, options.tokens))
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
    for count, (together, one_by_one) in found.items():
        print(
            f"{count:3d} clients: {spread(together)} tokens/s at once, {spread(one_by_one)} one by one, "
            f"ratio {ratio(together, one_by_one)}"
        )


if __name__ == "__main__":
    main()
