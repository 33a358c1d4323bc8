"""Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783) and what is built like it: Mistral (arXiv:2310.06825), Qwen2
(arXiv:2407.10671), Qwen3 (arXiv:2505.09388), OLMo (arXiv:2402.00838), OLMo 2 (arXiv:2501.00656), Phi-3
(arXiv:2404.14219) and SmolLM3.

All are one table: a norm, SwiGLU, rotary positions, grouped heads. They differ in where norms stand and what they
learn, in whether and over what width queries and keys are normalized, and in biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptlab.config.numbers import BOUNDS
from gptlab.errors import CheckpointError
from gptlab.interop.table import Architecture, Field, Row, Values, get

ROPE_FIELDS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
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


def read_rope(theirs: Values, theta: float = _THETA) -> Values:
    """Our `position` for `rope_theta` with `rope_scaling` (before transformers 5) or `rope_parameters`. `theta`: where
    neither says it."""
    given = {**(theirs.get("rope_scaling") or {}), **(theirs.get("rope_parameters") or {})}
    theta = given.pop("rope_theta", None) or theirs.get("rope_theta") or theta
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


def write_rope(model: Values) -> Values:
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


FIELDS = (
    Field("hidden_size", ("dim",)),
    Field("num_hidden_layers", ("layers",)),
    Field("num_attention_heads", ("heads",)),
    Field("num_key_value_heads", ("block.attention.kv_heads",), default=lambda theirs: theirs["num_attention_heads"]),
    Field("intermediate_size", ("block.mlp.hidden",)),
    Field("max_position_embeddings", ("context_length",)),
    Field("tie_word_embeddings", ("tied",), default=False),
)
_WITH_HEAD_DIM = (
    *FIELDS,
    Field("head_dim", ("head_dim",), default=_head_dim),
    Field("rms_norm_eps", ("norm.eps",), default=1e-6),
)
BIAS = Field("attention_bias", ("block.attention.bias",), default=False)
CONSTANT = {
    "use": "GPT",
    "norm.use": "RMSNorm",
    "block.use": "Block",
    "block.attention.use": "Attention",
    "block.mlp.use": "SwiGLU",
}
_SILU = {"hidden_act": "silu"}
INERT = frozenset({"attention_dropout", "pretraining_tp"})  # dropout acts in training alone
_NOT_READ = frozenset({"attention_bias", "mlp_bias"})  # where transformers knows them without asking; tensors tell
_PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
OLD_BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def table_rows(norms: Mapping[str, str], *, qk_norm: bool = False, fused: bool = False, more: float = 0.0) -> Any:
    """The rows of a member of the family.

    `norms`: what it calls each norm of a block of ours; none where norms learn nothing. `fused`: queries, keys and
    values are one tensor there, and gate and up are another. `more`: of `Row`, of all norms.
    """

    def rows(model: Values) -> list[Row]:
        def kinds(flag: str, otherwise: str = "") -> tuple[str, ...]:
            given = get(model, flag)
            return ("weight", "bias") if (get(model, otherwise) if given is None else given) else ("weight",)

        attention, mlp = "blocks.{i}.attention", "blocks.{i}.mlp"
        one = ("qkv",) if fused else ("q", "k", "v")
        qkv = tuple(f"layers.{{i}}.self_attn.{part}_proj" for part in one)
        found = [
            Row("embedding", ("embed_tokens",)),
            Row(f"{attention}.qkv", qkv, kinds("block.attention.bias")),
            Row(
                f"{attention}.out",
                ("layers.{i}.self_attn.o_proj",),
                kinds("block.attention.out_bias", "block.attention.bias"),
            ),
            *(
                Row(
                    f"{mlp}.{n}",
                    (f"layers.{{i}}.mlp.{'gate_up' if fused and n != 'down' else n}_proj",),
                    kinds("block.mlp.bias"),
                    part=(index, 2) if fused and n != "down" else (0, 1),
                )
                for index, n in enumerate(("gate", "up", "down"))
            ),
            *(Row(f"blocks.{{i}}.{ours}", (f"layers.{{i}}.{theirs}",), more=more) for ours, theirs in norms.items()),
            *([Row("norm", ("norm",), more=more)] if norms else []),
        ]
        if qk_norm:
            found += [Row(f"{attention}.{n}_norm", (f"layers.{{i}}.self_attn.{n}_norm",), more=more) for n in "qk"]
        return found if model["tied"] else [*found, Row("head", ("lm_head",))]

    return rows


LLAMA = Architecture(
    name="llama",
    class_name="LlamaForCausalLM",
    fields=(
        *FIELDS,
        BIAS,
        Field("head_dim", ("head_dim",), default=_head_dim),
        Field("rms_norm_eps", ("norm.eps",), default=1e-6),
        Field("mlp_bias", ("block.mlp.bias",), default=False),
    ),
    constant=CONSTANT,
    rows=table_rows(_PRE),
    must_be=_SILU,
    inert=INERT,
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=read_rope,
    write_extra=write_rope,
    extra_fields=ROPE_FIELDS,
    fillable=("norm.affine",),
)


def _no_window(theirs: Values, theta: float = _THETA) -> Values:
    """Qwen's window is a number that counts only where another field switches it on."""
    if theirs.get("use_sliding_window") or set(theirs.get("layer_types") or ()) - {"full_attention"}:
        raise CheckpointError(
            f"config.json: use_sliding_window is on, and gptlab imports {theirs['model_type']} with full attention only"
        )
    return read_rope(theirs, theta)


def read_window(theirs: Values, width: int | None, pattern: str = "L") -> Values:
    """Our `window` and `pattern`. One as wide as the context is none."""
    if width is None or width >= theirs["max_position_embeddings"] or "L" not in pattern:
        return {"block.attention.window": None, "block.attention.pattern": "L"}
    return {"block.attention.window": width, "block.attention.pattern": pattern}


MISTRAL = Architecture(
    name="mistral",
    class_name="MistralForCausalLM",
    fields=_WITH_HEAD_DIM,
    constant=CONSTANT,
    rows=table_rows(_PRE),
    must_be=_SILU,
    inert=INERT | _NOT_READ,
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=lambda theirs: read_rope(theirs) | read_window(theirs, theirs.get("sliding_window", 4096)),
    write_extra=lambda model: write_rope(model) | {"sliding_window": get(model, "block.attention.window")},
    extra_fields=ROPE_FIELDS | {"sliding_window"},
    fillable=("norm.affine",),
)
QWEN2 = Architecture(
    name="qwen2",
    class_name="Qwen2ForCausalLM",
    fields=_WITH_HEAD_DIM,
    constant={**CONSTANT, "block.attention.bias": True, "block.attention.out_bias": False},
    rows=table_rows(_PRE),
    must_be=_SILU,
    inert=INERT | _NOT_READ | {"sliding_window", "max_window_layers"},
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=_no_window,
    write_extra=lambda model: write_rope(model) | {"use_sliding_window": False},
    extra_fields=ROPE_FIELDS | {"use_sliding_window", "layer_types"},
    fillable=("norm.affine",),
)


QWEN3 = Architecture(
    name="qwen3",
    class_name="Qwen3ForCausalLM",
    fields=(
        *FIELDS,
        BIAS,
        Field("head_dim", ("head_dim",), default=128),
        Field("rms_norm_eps", ("norm.eps", "block.attention.qk_norm.eps"), default=1e-6),
    ),
    constant={**CONSTANT, "block.attention.qk_norm.use": "RMSNorm"},
    rows=table_rows(_PRE, qk_norm=True),
    must_be=_SILU,
    inert=INERT | {"sliding_window", "max_window_layers"},
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=_no_window,
    write_extra=lambda model: write_rope(model) | {"use_sliding_window": False},
    extra_fields=ROPE_FIELDS | {"use_sliding_window", "layer_types"},
    fillable=("norm.affine", "block.attention.qk_norm.affine"),
)
OLMO2 = Architecture(
    name="olmo2",
    class_name="Olmo2ForCausalLM",
    fields=(*FIELDS, BIAS, Field("rms_norm_eps", ("norm.eps", "block.attention.qk_norm.eps"), default=1e-5)),
    constant={
        **CONSTANT,
        "block.placement": "reordered",
        "block.attention.qk_norm.use": "RMSNorm",
        "block.attention.qk_norm_over": "width",
    },
    rows=table_rows(
        {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}, qk_norm=True
    ),
    must_be=_SILU,
    inert=INERT,
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=read_rope,
    write_extra=write_rope,
    extra_fields=ROPE_FIELDS,
    fillable=("norm.affine", "block.attention.qk_norm.affine"),
)
OLMO = Architecture(
    name="olmo",
    class_name="OlmoForCausalLM",
    fields=(*FIELDS, BIAS),
    constant={**CONSTANT, "norm.use": "LayerNorm", "norm.affine": False, "norm.bias": False, "norm.eps": 1e-5},
    rows=table_rows({}),
    must_be={**_SILU, "clip_qkv": None},
    inert=INERT,
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=read_rope,
    write_extra=write_rope,
    extra_fields=ROPE_FIELDS,
)


def _read_phi3(theirs: Values) -> Values:
    """Phi-3 may turn a part of each head; its window is none where its config does not say."""
    rope: Values = {**(theirs.get("rope_scaling") or {}), **(theirs.get("rope_parameters") or {})}
    part = rope.pop("partial_rotary_factor", None) or theirs.get("partial_rotary_factor") or 1.0
    read = read_rope({**theirs, "rope_scaling": None, "rope_parameters": rope})
    if read["position.use"] != "RoPE":
        raise CheckpointError(
            "config.json: a Phi-3 has the rope type 'default' (and longrope, which gptlab lacks) only"
        )
    return read | {"position.fraction": float(part)} | read_window(theirs, theirs.get("sliding_window"))


def _write_phi3(model: Values) -> Values:
    part = {"partial_rotary_factor": model["position"].get("fraction", 1.0)}
    return write_rope(model) | part | {"sliding_window": get(model, "block.attention.window")}


PHI3 = Architecture(
    name="phi3",
    class_name="Phi3ForCausalLM",
    fields=(*FIELDS, Field("rms_norm_eps", ("norm.eps",), default=1e-5)),
    constant=CONSTANT,
    rows=table_rows(_PRE, fused=True),
    must_be=_SILU,
    inert=INERT | _NOT_READ | {"resid_pdrop", "embd_pdrop", "original_max_position_embeddings", "auto_map"},
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=_read_phi3,
    write_extra=_write_phi3,
    extra_fields=ROPE_FIELDS | {"sliding_window", "partial_rotary_factor"},
    fillable=("norm.affine",),
)


def _read_smollm3(theirs: Values) -> Values:
    """Of `no_rope_layers`, 1 is a layer that turns and 0 one that does not; else every fourth does not."""
    layers, flags = theirs["num_hidden_layers"], theirs.get("no_rope_layers")
    every = theirs.get("no_rope_layer_interval", 4)
    if flags is None:
        flags = [(index + 1) % every for index in range(min(layers, BOUNDS["layers"]))]
    still = [index for index, turns in enumerate(flags[:layers]) if not turns]
    return _no_window(theirs, theta=2e6) | {"block.attention.without_rotation": still}


def _write_smollm3(model: Values) -> Values:
    still = set(get(model, "block.attention.without_rotation") or ())
    flags = [int(index not in still) for index in range(model["layers"])]
    return write_rope(model) | {"no_rope_layers": flags, "use_sliding_window": False}


SMOLLM3 = Architecture(
    name="smollm3",
    class_name="SmolLM3ForCausalLM",
    fields=(
        *FIELDS[:-1],
        Field("tie_word_embeddings", ("tied",), default=True),
        BIAS,
        Field("rms_norm_eps", ("norm.eps",), default=1e-6),
        Field("mlp_bias", ("block.mlp.bias",), default=False),
    ),
    constant=CONSTANT,
    rows=table_rows(_PRE),
    must_be=_SILU,
    inert=INERT | {"sliding_window", "max_window_layers"},
    ignored=OLD_BUFFERS,
    prefix="model.",
    read_extra=_read_smollm3,
    write_extra=_write_smollm3,
    extra_fields=ROPE_FIELDS | {"use_sliding_window", "layer_types", "no_rope_layers", "no_rope_layer_interval"},
    fillable=("norm.affine",),
)
