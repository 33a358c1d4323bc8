"""GPT-2's weights: OpenAI's names, as Hugging Face and nanoGPT store them, to gptlab's and back.

Hugging Face keeps the four matrices of a block as Conv1D, (in, out); nanoGPT as Linear, (out, in), like gptlab.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gptlab.config import RunConfig, config_from
from gptlab.errors import CheckpointError, did_you_mean

_BLOCK = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
_OUTSIDE = {"wte": "embedding", "wpe": "position.embedding", "ln_f": "norm"}
_MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
# Causal masks that some versions saved, the copy of the tied embedding, and torch.compile's prefix.
_IGNORED = re.compile(r"(h\.\d+\.attn\.(masked_)?bias|lm_head\.weight)")


def gpt2_config(
    *, dim: int, layers: int, heads: int, context_length: int, bias: bool = True, dropout: float = 0.0
) -> RunConfig:
    """The config of a model with GPT-2's architecture and the given sizes."""
    norm = {"use": "LayerNorm", "eps": 1e-5, "bias": bias}
    block = {
        "use": "Block",
        "attention": {"use": "Attention", "bias": bias},
        "mlp": {"use": "GELU", "bias": bias, "approximate": "tanh"},
    }
    model: dict[str, Any] = {
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "context_length": context_length,
        "block": block,
        "norm": norm,
        "position": "Learned",
        "dropout": dropout,
    }
    return config_from(
        {"name": "gpt2", "model": model, "train": {"sequence_length": context_length, "batch_tokens": context_length}}
    )


def from_gpt2(tensors: Mapping[str, Tensor], *, conv1d: bool) -> dict[str, Tensor]:
    """GPT-2's tensors under gptlab's names. `conv1d`: matrices are (in, out), as in Hugging Face files.

    Raises CheckpointError for a tensor that GPT-2 does not have.
    """
    found = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("_orig_mod.").removeprefix("transformer.")
        if _IGNORED.fullmatch(short):
            continue
        part, _, kind = short.rpartition(".")
        block = re.fullmatch(r"h\.(\d+)\.(.+)", part)
        if block is not None and block[2] in _BLOCK:
            turned = conv1d and kind == "weight" and block[2] in _MATRICES
            found[f"blocks.{block[1]}.{_BLOCK[block[2]]}.{kind}"] = tensor.t() if turned else tensor
        elif part in _OUTSIDE:
            found[f"{_OUTSIDE[part]}.{kind}"] = tensor
        else:
            raise CheckpointError(f"tensor {name!r} is not one of GPT-2; {did_you_mean(part, _OUTSIDE)}")
    return found
