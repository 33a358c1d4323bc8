"""What configs of transformers are given in the tests of weights that come from there."""

from __future__ import annotations

from typing import Any

ROPE_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 256,
    "eos_token_id": 256,
}
GPT2_SIZES = {"n_embd": 64, "n_layer": 4, "n_head": 4, "bos_token_id": 256, "eos_token_id": 256}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2_SIZES),
    "gpt2-exact-gelu-untied": (
        "GPT2",
        {**GPT2_SIZES, "activation_function": "gelu", "n_inner": 100, "tie_word_embeddings": False},
    ),
    "llama2": ("Llama", {**SIZES, "num_key_value_heads": 8}),
    "llama3": ("Llama", {**SIZES, "rope_theta": 500000.0}),
    "llama3.1": ("Llama", {**SIZES, "rope_theta": 500000.0, "rope_scaling": ROPE_31}),
    "llama3.2-tied": ("Llama", {**SIZES, "rope_theta": 500000.0, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 16, "rope_theta": 1e6}),
    "qwen3-tied-yarn": ("Qwen3", {**SIZES, "head_dim": 16, "tie_word_embeddings": True, "rope_scaling": YARN}),
    "olmo2": ("Olmo2", {**SIZES, "pad_token_id": None, "rope_theta": 500000.0}),
}
"""What a config of transformers is given, by a name."""
