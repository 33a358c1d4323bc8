"""The published models at full size but without weights: config.json is read, and every tensor has its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.config import config_from
from gptlab.interop.huggingface import ARCHITECTURES, fitting_architecture
from gptlab.interop.runs import expected_shapes
from gptlab.model import build_model
from gptlab.run import Run
from gptlab.tokenizer import load_tokenizer

GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
FAMILY = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
    "use_cache": True,
}
LLAMA31 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": ({**GPT2, "n_embd": 768, "n_head": 12, "n_layer": 12}, 124_439_808),
    "gpt2-medium": (
        {**GPT2, "n_embd": 1024, "n_head": 16, "n_layer": 24, "n_special": 0, "predict_special_tokens": True},
        354_823_168,
    ),
    "gpt2-large": (
        {**GPT2, "n_embd": 1280, "n_head": 20, "n_layer": 36, "n_special": 0, "predict_special_tokens": True},
        774_030_080,
    ),
    "gpt2-xl": ({**GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True}, 1_557_611_200),
    "Llama-2-7b": (
        {
            **FAMILY,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    "Llama-3.1-8B": (
        {
            **FAMILY,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": LLAMA31,
            "rope_theta": 500000.0,
            "vocab_size": 128256,
        },
        8_030_261_248,
    ),
    "Llama-3.2-1B": (
        {
            **FAMILY,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {**LLAMA31, "factor": 32.0},
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
        1_235_814_400,
    ),
    "SmolLM2-135M-Instruct": (
        {
            **FAMILY,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pad_token_id": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
            "vocab_size": 49152,
        },
        134_515_008,
    ),
    "Mistral-7B-v0.3": (
        {
            **FAMILY,
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "vocab_size": 32768,
        },
        7_248_023_552,
    ),
    "Qwen2.5-0.5B": (
        {
            **FAMILY,
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        494_032_768,
    ),
    "OLMo-1B": (
        {
            **FAMILY,
            "architectures": ["OlmoForCausalLM"],
            "model_type": "olmo",
            "clip_qkv": None,
            "eos_token_id": 50279,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 2048,
            "num_attention_heads": 16,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "pad_token_id": 1,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "vocab_size": 50304,
        },
        1_176_764_416,
    ),
    "Qwen3-0.6B": (
        {
            **FAMILY,
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        596_049_920,
    ),
    "OLMo-2-1124-7B": (
        {
            **FAMILY,
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "eos_token_id": 100257,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pad_token_id": 100277,
            "rms_norm_eps": 1e-06,
            "rope_theta": 500000,
            "vocab_size": 100352,
        },
        7_298_617_344,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_model_has_its_place(name: str) -> None:
    """Names and shapes are those of transformers' model, and the parameters are as many as were published."""
    transformers = pytest.importorskip("transformers")
    theirs, count = PUBLISHED[name]
    architecture = ARCHITECTURES[theirs["model_type"]]
    section = architecture.model_section(theirs, "config.json")
    config = config_from({"model": section})
    model = build_model(config, theirs["vocab_size"], device="meta")
    assert sum(p.numel() for p in model.parameters()) == count

    with torch.device("meta"):
        kind = architecture.class_name.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        made = getattr(transformers, f"{kind}Config")(**theirs)
        reference = getattr(transformers, architecture.class_name)(made)
    shapes = {key: tuple(p.shape) for key, p in reference.named_parameters()}
    assert expected_shapes(architecture, model, section) == shapes

    run = Run(Path("runs/it"), config, model, load_tokenizer("byte"), torch.device("cpu"), torch.float32)
    # Mistral without a window is a Llama, and goes out as what it came in as only where that is known
    assert fitting_architecture(run)[0].name == ("llama" if architecture.name == "mistral" else architecture.name)
