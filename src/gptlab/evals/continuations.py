"""What runs make of prompts, for someone else to read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gptlab.inference.generate import Sampling
from gptlab.run import load


def complete(folder: Path, prompts: Sequence[str], sampling: Sampling, *, device: str = "auto") -> Iterator[str]:
    """The continuation of each prompt by the run in `folder`, in their order, each as soon as it is there.

    Each is written alone, with a seed of its own that is drawn from `sampling.seed` and the prompt: a text depends on
    no other prompt, and two runs throw the same dice. Raises GptlabError where the run cannot be loaded, or a prompt
    cannot be encoded.
    """
    run = load(folder, device=device)
    for prompt in prompts:
        text = run.generate(prompt, sampling=replace(sampling, seed=seed_of(prompt, sampling.seed)))
        yield text


def seed_of(prompt: str, seed: int | None) -> int:
    """The seed of one prompt, from 0 to 2^63 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed or 0}:{prompt}".encode()).digest()[:8], "big") >> 1
