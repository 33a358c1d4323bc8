"""Gemma 2 (arXiv:2408.00118) and the text models of Gemma 3 (arXiv:2503.19786).

Norms before and after each branch, GeGLU, embeddings times √D, windows in most layers. Their norms multiply by
1 + weight; ours hold the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptlab.config.numbers import BOUNDS
from gptlab.errors import CheckpointError
from gptlab.interop.llama import (
    BIAS,
    CONSTANT,
    FIELDS,
    INERT,
    OLD_BUFFERS,
    ROPE_FIELDS,
    read_rope,
    table_rows,
    write_rope,
)
from gptlab.interop.table import Architecture, Field, Values, get, shortest_pattern

_KINDS = {"full_attention": "F", "sliding_attention": "L"}
_LOCAL_THETA = 10000.0


def _read_layers(theirs: Values, every: int) -> Values:
    """What both have besides; one layer in `every` sees the whole context where layer_types does not say which."""
    if theirs.get("use_bidirectional_attention"):
        raise CheckpointError("config.json: use_bidirectional_attention is on, and gptlab's attention is causal")
    layers, kinds = theirs["num_hidden_layers"], theirs.get("layer_types")
    if kinds is None:
        pattern = "".join("L" if (i + 1) % every else "F" for i in range(min(layers, BOUNDS["layers"])))
    elif len(kinds) == layers and not set(kinds) - set(_KINDS):
        pattern = "".join(_KINDS[kind] for kind in kinds)
    else:
        raise CheckpointError(f"config.json: layer_types should say one of {', '.join(_KINDS)} for each layer")
    windows = "L" in pattern
    scalar = theirs.get("query_pre_attn_scalar", 256)
    return {
        "embedding_scale": theirs["hidden_size"] ** 0.5,
        "block.attention.scale": "sqrt" if scalar == theirs.get("head_dim", 256) else scalar**-0.5,
        "block.attention.window": theirs.get("sliding_window", 4096) if windows else None,
        "block.attention.pattern": shortest_pattern(pattern) if windows else "L",
    }


def _write_layers(model: Values) -> Values:
    """The reverse. What cannot be said there is written as what reads back as something else, and so found."""
    attention: Mapping[str, Any] = model["block"].get("attention", {})
    window, scale = attention.get("window"), attention.get("scale")
    letters = attention["pattern"] * model["layers"] if window is not None else "F" * model["layers"]
    kinds = {letter: kind for kind, letter in _KINDS.items()}
    by_number = isinstance(scale, float | int)
    return {
        "sliding_window": model["context_length"] if window is None else window,
        "layer_types": [kinds.get(letter, "half a window") for letter in letters[-model["layers"] :]],
        "query_pre_attn_scalar": max(1, round(max(scale, 1e-9) ** -2)) if by_number else model["head_dim"],
    }


def _read_gemma2(theirs: Values) -> Values:
    caps = {
        "block.attention.softcap": theirs.get("attn_logit_softcapping", 50.0),
        "logit_softcap": theirs.get("final_logit_softcapping", 30.0),
    }
    return read_rope(theirs) | _read_layers(theirs, 2) | caps


def _write_gemma2(model: Values) -> Values:
    caps = {
        "attn_logit_softcapping": get(model, "block.attention.softcap"),
        "final_logit_softcapping": model["logit_softcap"],
    }
    return write_rope(model) | _write_layers(model) | caps


def _read_gemma3(theirs: Values) -> Values:
    """Layers with a window turn by an angle of their own. Before transformers 5 both stand beside each other."""
    both = theirs.get("rope_parameters") or {}
    full, local = both.get("full_attention") or {}, dict(both.get("sliding_attention") or {})
    read = read_rope({**theirs, "rope_parameters": full}, theta=1e6)
    if read["position.use"] != "RoPE" or local.pop("rope_type", "default") != "default":
        raise CheckpointError("config.json: gptlab imports Gemma 3 with the rope type 'default' only")
    theta = float(local.pop("rope_theta", None) or theirs.get("rope_local_base_freq") or _LOCAL_THETA)
    if local:
        raise CheckpointError(f"config.json: {sorted(local)[0]!r} of sliding_attention is not known to gptlab")
    layers = _read_layers(theirs, theirs.get("sliding_window_pattern", theirs.get("_sliding_window_pattern", 6)))
    own = layers["block.attention.window"] is not None and theta != read["position.theta"]
    cap = {"logit_softcap": theirs.get("final_logit_softcapping")}
    return read | {"position.window_theta": theta if own else None} | layers | cap


def _write_gemma3(model: Values) -> Values:
    rope = write_rope(model)
    theta = model["position"].get("window_theta")
    return (
        rope
        | {"rope_local_base_freq": rope["rope_theta"] if theta is None else theta}
        | _write_layers(model)
        | {"final_logit_softcapping": model["logit_softcap"]}
    )


_GEMMA_FIELDS = (
    *(entry for entry in FIELDS if entry.theirs not in ("num_key_value_heads", "tie_word_embeddings")),
    Field("num_key_value_heads", ("block.attention.kv_heads",), default=4),
    Field("tie_word_embeddings", ("tied",), default=True),
    BIAS,
    Field("head_dim", ("head_dim",), default=256),
)
_GEMMA_CONSTANT = {
    **CONSTANT,
    "block.placement": "sandwich",
    "block.mlp.use": "GeGLU",
    "block.mlp.approximate": "tanh",
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
_EXTRA = ROPE_FIELDS | {
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "use_bidirectional_attention",
}
_GEMMA_INERT = INERT | {"cache_implementation", "hidden_act"}  # transformers reads hidden_activation alone

GEMMA2 = Architecture(
    name="gemma2",
    class_name="Gemma2ForCausalLM",
    fields=(*_GEMMA_FIELDS, Field("rms_norm_eps", ("norm.eps",), default=1e-6)),
    constant=_GEMMA_CONSTANT,
    rows=table_rows(_NORMS, more=1.0),
    must_be={"hidden_activation": "gelu_pytorch_tanh"},
    inert=_GEMMA_INERT,
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=_read_gemma2,
    write_extra=_write_gemma2,
    extra_fields=_EXTRA | {"attn_logit_softcapping"},
    fillable=("norm.affine",),
)
GEMMA3 = Architecture(
    name="gemma3_text",
    class_name="Gemma3ForCausalLM",
    fields=(*_GEMMA_FIELDS, Field("rms_norm_eps", ("norm.eps", "block.attention.qk_norm.eps"), default=1e-6)),
    constant={**_GEMMA_CONSTANT, "block.attention.qk_norm.use": "RMSNorm"},
    rows=table_rows(_NORMS, qk_norm=True, more=1.0),
    must_be={"hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None},
    inert=_GEMMA_INERT,
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=_read_gemma3,
    write_extra=_write_gemma3,
    extra_fields=_EXTRA | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
    fillable=("norm.affine", "block.attention.qk_norm.affine"),
)
