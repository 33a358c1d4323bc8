"""GPT-2 (Radford et al. 2019): OpenAI's names, as Hugging Face and nanoGPT store them, and gptlab's.

Hugging Face keeps the four matrices of a block as Conv1D, (in, out); nanoGPT as Linear, (out, in), like gptlab.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gptlab.config import RunConfig, config_from
from gptlab.console import say
from gptlab.errors import CheckpointError, did_you_mean
from gptlab.interop.table import Architecture, Field, Row, Values, get, set_key

_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_BOTH = ("weight", "bias")


def _rows(model: Values) -> list[Row]:
    rows = [
        Row("embedding", ("wte",)),
        Row("position.embedding", ("wpe",)),
        Row("blocks.{i}.attention_norm", ("h.{i}.ln_1",), _BOTH),
        Row("blocks.{i}.attention.qkv", ("h.{i}.attn.c_attn",), _BOTH, turned=True),
        Row("blocks.{i}.attention.out", ("h.{i}.attn.c_proj",), _BOTH, turned=True),
        Row("blocks.{i}.mlp_norm", ("h.{i}.ln_2",), _BOTH),
        Row("blocks.{i}.mlp.up", ("h.{i}.mlp.c_fc",), _BOTH, turned=True),
        Row("blocks.{i}.mlp.down", ("h.{i}.mlp.c_proj",), _BOTH, turned=True),
        Row("norm", ("ln_f",), _BOTH),
    ]
    return rows if model["tied"] else [*rows, Row("head", ("lm_head",))]


def _read_dropout(theirs: Values) -> Values:
    """One rate where the three are one. It acts in training alone, so that different ones need not stop an import."""
    rates = {theirs.get(name, 0.1) for name in _DROPOUTS}
    if len(rates) == 1:
        return {"dropout": rates.pop()}
    say("config.json has different dropout rates, gptlab one for all: taken as 0; set model.dropout to train with it")
    return {"dropout": 0.0}


GPT2 = Architecture(
    name="gpt2",
    class_name="GPT2LMHeadModel",
    fields=(
        Field("n_embd", ("dim",)),
        Field("n_layer", ("layers",)),
        Field("n_head", ("heads",)),
        Field("n_positions", ("context_length",), default=1024),
        Field("n_inner", ("block.mlp.hidden",), default=lambda theirs: 4 * theirs["n_embd"]),
        Field("layer_norm_epsilon", ("norm.eps",), default=1e-5),
        Field("tie_word_embeddings", ("tied",), default=True),
        Field(
            "activation_function",
            ("block.mlp.approximate",),
            default="gelu_new",
            # gelu_new is GPT-2's own formula, written out; only operation by operation is it equal to the last bit
            words={"gelu_new": "openai", "gelu_pytorch_tanh": "tanh", "gelu": "none"},
        ),
    ),
    constant={
        "use": "GPT",
        "norm.use": "LayerNorm",
        "norm.bias": True,
        "position.use": "Learned",
        "block.use": "Block",
        "block.attention.use": "Attention",
        "block.attention.bias": True,
        "block.mlp.use": "GELU",
        "block.mlp.bias": True,
    },
    rows=_rows,
    must_be={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    inert=frozenset(
        [
            "n_ctx",
            "n_special",
            "predict_special_tokens",
            "output_past",
            "reorder_and_upcast_attn",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
            "gradient_checkpointing",
        ]
    ),
    ignored=re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias"),  # causal masks that some versions saved
    prefix="transformer.",
    read_extra=_read_dropout,
    write_extra=lambda model: dict.fromkeys(_DROPOUTS, model["dropout"]),
    extra_fields=frozenset(_DROPOUTS),
    fillable=("norm.bias", "norm.affine", "block.attention.bias", "block.attention.out_bias", "block.mlp.bias"),
)


def gpt2_config(
    *,
    dim: int,
    layers: int,
    heads: int,
    context_length: int,
    bias: bool = True,
    dropout: float = 0.0,
    approximate: str = "openai",
) -> RunConfig:
    """The config of a model with GPT-2's architecture and the given sizes. `approximate`: the MLP's GELU."""
    section = GPT2.model_section({"n_embd": dim, "n_layer": layers, "n_head": heads, "n_positions": context_length}, "")
    changed = {"norm.bias": bias, "block.attention.bias": bias, "block.mlp.bias": bias, "dropout": dropout}
    for key, value in (changed | {"block.mlp.approximate": approximate}).items():
        set_key(section, key, value)
    train = {"sequence_length": context_length, "batch_tokens": context_length}
    return config_from({"name": "gpt2", "model": section, "train": train})


def from_gpt2(tensors: Mapping[str, Tensor], *, conv1d: bool) -> dict[str, Tensor]:
    """GPT-2's tensors under gptlab's names, for a tied head. `conv1d`: matrices are (in, out), as Hugging Face's.

    Raises CheckpointError for a tensor that GPT-2 does not have.
    """
    blocks = 1 + max((int(n[1]) for name in tensors if (n := re.search(r"\bh\.(\d+)\.", name))), default=-1)
    table = {theirs[0]: (ours, row) for ours, theirs, row, _ in GPT2.names({"layers": blocks, "tied": True})}
    found = {}
    for name, tensor in tensors.items():
        full = GPT2.canonical_name(name)
        if full == "lm_head.weight" or GPT2.ignored.fullmatch(full):
            continue
        if full not in table:
            hint = did_you_mean(full, {theirs for theirs in table if ".h." not in theirs})
            raise CheckpointError(f"tensor {name!r} is not one of GPT-2; {hint}")
        ours, row = table[full]
        found[ours] = tensor.t() if conv1d and row.turned and tensor.ndim == 2 else tensor
    return found


def nanogpt_layout() -> Architecture:
    """GPT-2 as nanoGPT stores it: matrices as Linear keeps them."""
    return replace(GPT2, rows=lambda model: [replace(row, turned=False) for row in _rows(model)])


def model_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """nanoGPT's `model_args` for a `model` section."""
    return {
        "n_layer": model["layers"],
        "n_head": model["heads"],
        "n_embd": model["dim"],
        "block_size": model["context_length"],
        "bias": bool(get(model, "block.attention.bias")),
        "dropout": model["dropout"],
    }
