"""Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783) and what is built like it: Mistral (arXiv:2310.06825), Qwen2
(arXiv:2407.10671), Qwen3 (arXiv:2505.09388), OLMo (arXiv:2402.00838) and OLMo 2 (arXiv:2501.00656).

All are one table: a norm, SwiGLU, rotary positions, grouped heads. They differ in where norms stand and what they
learn, in whether and over what width queries and keys are normalized, and in biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptlab.errors import CheckpointError
from gptlab.interop.table import Architecture, Field, Row, Values, get

_ROPE_FIELDS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
_THETA = 10000.0
# rope_type ↔ our component, and its arguments ↔ theirs; None: what is left out there is our default.
_ROPES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "default": ("RoPE", {}, {}),
    "llama3": (
        "Llama3RoPE",
        {
            "factor": "factor",
            "low_frequency": "low_freq_factor",
            "high_frequency": "high_freq_factor",
            "original_length": "original_max_position_embeddings",
        },
        {},
    ),
    "yarn": (
        "YaRN",
        {
            "factor": "factor",
            "fast": "beta_fast",
            "slow": "beta_slow",
            "original_length": "original_max_position_embeddings",
            "magnitude": "attention_factor",
        },
        {"fast": 32.0, "slow": 1.0, "magnitude": None},
    ),
}


def _read_rope(theirs: Values) -> Values:
    """Our `position` for `rope_theta` with `rope_scaling` (before transformers 5) or `rope_parameters`."""
    given = {**(theirs.get("rope_scaling") or {}), **(theirs.get("rope_parameters") or {})}
    theta = given.pop("rope_theta", None) or theirs.get("rope_theta") or _THETA
    kinds = [given.pop("rope_type", None), given.pop("type", None), "default"]
    kind = next(filter(None, kinds))
    if given.pop("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("config.json: partial_rotary_factor is not 1, and gptlab turns whole heads only")
    if kind not in _ROPES:
        raise CheckpointError(
            f"config.json: rope type {kind!r} is not one that gptlab imports; known: {', '.join(_ROPES)}"
        )
    component, names, defaults = _ROPES[kind]
    found: Values = {"position.use": component, "position.theta": float(theta), "position.angles": "float32"}
    for ours, name in names.items():
        value = given.pop(name, None)
        if value is None and ours not in defaults:
            raise CheckpointError(f"config.json: rope type {kind!r} needs {name}, and it is not there")
        found[f"position.{ours}"] = defaults[ours] if value is None else value
    if given:
        raise CheckpointError(f"config.json: {sorted(given)[0]!r} of rope type {kind!r} is not known to gptlab")
    return found


def _write_rope(model: Values) -> Values:
    """The form that transformers 4 and 5 both read."""
    position: Mapping[str, Any] = model["position"]
    written: Values = {"rope_theta": position.get("theta", _THETA)}
    for kind, (component, names, _) in _ROPES.items():
        if component == position["use"] and names:
            scaling = {name: position[ours] for ours, name in names.items() if position[ours] is not None}
            written["rope_scaling"] = {"rope_type": kind} | scaling
    return written


def _head_dim(theirs: Values) -> int:
    return int(theirs["hidden_size"] // theirs["num_attention_heads"])


_FIELDS = (
    Field("hidden_size", ("dim",)),
    Field("num_hidden_layers", ("layers",)),
    Field("num_attention_heads", ("heads",)),
    Field("num_key_value_heads", ("block.attention.kv_heads",), default=lambda theirs: theirs["num_attention_heads"]),
    Field("intermediate_size", ("block.mlp.hidden",)),
    Field("max_position_embeddings", ("context_length",)),
    Field("tie_word_embeddings", ("tied",), default=False),
)
_WITH_HEAD_DIM = (
    *_FIELDS,
    Field("head_dim", ("head_dim",), default=_head_dim),
    Field("rms_norm_eps", ("norm.eps",), default=1e-6),
)
_BIAS = Field("attention_bias", ("block.attention.bias",), default=False)
_CONSTANT = {
    "use": "GPT",
    "norm.use": "RMSNorm",
    "block.use": "Block",
    "block.attention.use": "Attention",
    "block.mlp.use": "SwiGLU",
}
_SILU = {"hidden_act": "silu"}
_INERT = frozenset({"attention_dropout", "pretraining_tp"})  # dropout acts in training alone
_NOT_READ = frozenset({"attention_bias", "mlp_bias"})  # where transformers knows them without asking; tensors tell
_OLD_BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def _rows(norms: tuple[str, str] | None, *, qk_norm: bool = False) -> Any:
    """The rows of a member of the family. `norms`: what it calls the norm of the attention and of the MLP; None where
    norms learn nothing."""

    def rows(model: Values) -> list[Row]:
        def kinds(flag: str, otherwise: str = "") -> tuple[str, ...]:
            given = get(model, flag)
            return ("weight", "bias") if (get(model, otherwise) if given is None else given) else ("weight",)

        attention, mlp = "blocks.{i}.attention", "blocks.{i}.mlp"
        q, k, v = (f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv")
        found = [
            Row("embedding", ("embed_tokens",)),
            Row(f"{attention}.qkv", (q, k, v), kinds("block.attention.bias")),
            Row(
                f"{attention}.out",
                ("layers.{i}.self_attn.o_proj",),
                kinds("block.attention.out_bias", "block.attention.bias"),
            ),
            *(
                Row(f"{mlp}.{n}", (f"layers.{{i}}.mlp.{n}_proj",), kinds("block.mlp.bias"))
                for n in ("gate", "up", "down")
            ),
        ]
        if norms is not None:
            found += [
                Row("blocks.{i}.attention_norm", (f"layers.{{i}}.{norms[0]}",)),
                Row("blocks.{i}.mlp_norm", (f"layers.{{i}}.{norms[1]}",)),
                Row("norm", ("norm",)),
            ]
        if qk_norm:
            found += [Row(f"{attention}.{n}_norm", (f"layers.{{i}}.self_attn.{n}_norm",)) for n in "qk"]
        return found if model["tied"] else [*found, Row("head", ("lm_head",))]

    return rows


LLAMA = Architecture(
    name="llama",
    class_name="LlamaForCausalLM",
    fields=(
        *_FIELDS,
        _BIAS,
        Field("head_dim", ("head_dim",), default=_head_dim),
        Field("rms_norm_eps", ("norm.eps",), default=1e-6),
        Field("mlp_bias", ("block.mlp.bias",), default=False),
    ),
    constant=_CONSTANT,
    rows=_rows(("input_layernorm", "post_attention_layernorm")),
    must_be=_SILU,
    inert=_INERT,
    ignored=_OLD_BUFFERS,
    prefix="model.",
    read_extra=_read_rope,
    write_extra=_write_rope,
    extra_fields=_ROPE_FIELDS,
    fillable=("norm.affine",),
)


def _no_window(theirs: Values) -> Values:
    """Qwen's window is a number that counts only where another field switches it on."""
    if theirs.get("use_sliding_window") or set(theirs.get("layer_types") or ()) - {"full_attention"}:
        raise CheckpointError("config.json: use_sliding_window is on, and gptlab imports Qwen with full attention only")
    return _read_rope(theirs)


def _window_of_all(theirs: Values) -> Values:
    """Mistral's window is 4,096 tokens where its config does not say; one as wide as the context is none."""
    window, context = theirs.get("sliding_window", 4096), theirs["max_position_embeddings"]
    if window is not None and window < context:
        raise CheckpointError(
            f"config.json: each token sees the last {window} of {context} (sliding_window), and gptlab imports Mistral "
            "with full attention only; where the model was trained so, set sliding_window to null"
        )
    return _read_rope(theirs)


MISTRAL = Architecture(
    name="mistral",
    class_name="MistralForCausalLM",
    fields=_WITH_HEAD_DIM,
    constant=_CONSTANT,
    rows=_rows(("input_layernorm", "post_attention_layernorm")),
    must_be=_SILU,
    inert=_INERT | _NOT_READ,
    ignored=_OLD_BUFFERS,
    prefix="model.",
    read_extra=_window_of_all,
    write_extra=lambda model: _write_rope(model) | {"sliding_window": None},
    extra_fields=_ROPE_FIELDS | {"sliding_window"},
    fillable=("norm.affine",),
)
QWEN2 = Architecture(
    name="qwen2",
    class_name="Qwen2ForCausalLM",
    fields=_WITH_HEAD_DIM,
    constant={**_CONSTANT, "block.attention.bias": True, "block.attention.out_bias": False},
    rows=_rows(("input_layernorm", "post_attention_layernorm")),
    must_be=_SILU,
    inert=_INERT | _NOT_READ | {"sliding_window", "max_window_layers"},
    ignored=_OLD_BUFFERS,
    prefix="model.",
    read_extra=_no_window,
    write_extra=lambda model: _write_rope(model) | {"use_sliding_window": False},
    extra_fields=_ROPE_FIELDS | {"use_sliding_window", "layer_types"},
    fillable=("norm.affine",),
)


QWEN3 = Architecture(
    name="qwen3",
    class_name="Qwen3ForCausalLM",
    fields=(
        *_FIELDS,
        _BIAS,
        Field("head_dim", ("head_dim",), default=128),
        Field("rms_norm_eps", ("norm.eps", "block.attention.qk_norm.eps"), default=1e-6),
    ),
    constant={**_CONSTANT, "block.attention.qk_norm.use": "RMSNorm"},
    rows=_rows(("input_layernorm", "post_attention_layernorm"), qk_norm=True),
    must_be=_SILU,
    inert=_INERT | {"sliding_window", "max_window_layers"},
    ignored=_OLD_BUFFERS,
    prefix="model.",
    read_extra=_no_window,
    write_extra=lambda model: _write_rope(model) | {"use_sliding_window": False},
    extra_fields=_ROPE_FIELDS | {"use_sliding_window", "layer_types"},
    fillable=("norm.affine", "block.attention.qk_norm.affine"),
)
OLMO2 = Architecture(
    name="olmo2",
    class_name="Olmo2ForCausalLM",
    fields=(*_FIELDS, _BIAS, Field("rms_norm_eps", ("norm.eps", "block.attention.qk_norm.eps"), default=1e-5)),
    constant={
        **_CONSTANT,
        "block.placement": "reordered",
        "block.attention.qk_norm.use": "RMSNorm",
        "block.attention.qk_norm_over": "width",
    },
    rows=_rows(("post_attention_layernorm", "post_feedforward_layernorm"), qk_norm=True),
    must_be=_SILU,
    inert=_INERT,
    ignored=_OLD_BUFFERS,
    prefix="model.",
    read_extra=_read_rope,
    write_extra=_write_rope,
    extra_fields=_ROPE_FIELDS,
    fillable=("norm.affine", "block.attention.qk_norm.affine"),
)
OLMO = Architecture(
    name="olmo",
    class_name="OlmoForCausalLM",
    fields=(*_FIELDS, _BIAS),
    constant={**_CONSTANT, "norm.use": "LayerNorm", "norm.affine": False, "norm.bias": False, "norm.eps": 1e-5},
    rows=_rows(None),
    must_be={**_SILU, "clip_qkv": None},
    inert=_INERT,
    ignored=_OLD_BUFFERS,
    prefix="model.",
    read_extra=_read_rope,
    write_extra=_write_rope,
    extra_fields=_ROPE_FIELDS,
)
