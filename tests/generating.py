"""Small models of every kind that generates, and somebody who listens to an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch

from gptlab.config import config_from
from gptlab.inference.engine import Scored
from gptlab.model import build_model

HALF = {"head_dim": 16, "position": {"use": "RoPE", "fraction": 0.5}}
VARIANTS = {
    "rope": {},
    "learned": {"position": "Learned"},
    "slopes": {"position": "ALiBi"},
    "grouped queries and QK-norm": {"block": {"attention": {"kv_heads": 2, "qk_norm": "RMSNorm"}}},
    "windows": {"block": {"attention": {"window": 6, "pattern": "SLF"}}, "layers": 3},
    "windows everywhere": {"block": {"attention": {"window": 5}}},
    "windows that turn by another angle": {
        "block": {"attention": {"window": 6, "pattern": "LF"}},
        "position": {"use": "RoPE", "window_theta": 50.0},
    },
    "document mask": {"block": {"attention": {"document_mask": True, "window": 7}}},
    "latent": {"block": {"attention": {"use": "MLA", "kv_rank": 16, "rope_dim": 8}}, **HALF},
    "the key before": {"block": {"attention": {"key_offset": True, "value_embeddings": 1}}, **HALF},
    "soft-cap, gate and value residual": {
        "block": {"attention": {"softcap": 5.0, "gate": "head", "value_residual": True}}
    },
    "latent block": {"block": "LatentAttentionBlock", "position": "NoPosition"},
    "experts": {"block": {"mlp": "MoE"}},
    "odd context": {"context_length": 13},
}


def make_model(**changes: object) -> torch.nn.Module:
    """A model whose logits differ enough that rounding cannot change which is the largest."""
    torch.manual_seed(0)
    values = {
        "model": {"dim": 32, "layers": 2, "heads": 4, "context_length": 24, **changes},
        "train": {"sequence_length": 8},
    }
    config = config_from(values, ["model.initialization.std=0.4", "model.tied=false"])
    return build_model(config, 61).eval()


class Heard:
    """A listener that keeps everything. `enough`: how many tokens it wants; `waits`: seconds that it takes for each."""

    def __init__(self, enough: int | None = None, waits: float = 0.0) -> None:
        self.scores: list[Scored] = []
        self.tokens: list[Scored] = []
        self.reason, self.last = "", None
        self.enough, self.waits, self.done = enough, waits, threading.Event()

    def prompt(self, scores: Sequence[Scored]) -> None:
        self.scores = list(scores)

    def token(self, scored: Scored) -> bool:
        self.tokens.append(scored)
        time.sleep(self.waits)
        return len(self.tokens) == self.enough

    def end(self, reason: str, last: Scored | None = None) -> None:
        self.reason, self.last = reason, last
        self.done.set()

    @property
    def ids(self) -> list[int]:
        assert self.done.wait(60), "no end came"
        return [scored.id for scored in self.tokens]
