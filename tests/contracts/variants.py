"""What the contracts are checked on: every component that ships, and every one of its options at least once.

`VARIANTS` holds, by slot and component, dictionaries of arguments. Every component of a menu is checked with its
defaults as well, so only what differs is listed. An option that no variant sets must be in `EXCUSED`, with the reason;
test_shipped.py fails for one that is in neither. `BESIDE` says what else of a run a variant needs.

`OFF` is the off-switch rule for components that ship: arguments that are switched off, or on and neutral, and the slot
value that they must equal bit for bit.
"""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "model": {
        "GPT": [
            {"tied": False, "head_bias": True, "head_dim": 12, "pad_vocab": 64, "logit_softcap": 15.0},
            {"norm": "LayerNorm", "position": "Learned", "initialization": {"use": "GPT2Init", "residual": "plain"}},
            {"embedding_norm": "RMSNorm", "embedding_scale": 4.0, "logit_scale": 0.5, "final_norm": False},
            {"block": {"placement": "post"}, "residual": {"skip_scale": 1.0}, "context_length": 40},
            {"dropout": 0.1, "embedding_dropout": 0.2, "dim": 24, "layers": 2, "heads": 2},
            {"ahead": 1},
            {"float8_head": True, "pad_vocab": 16},
            {"mup": {"dim": 16, "heads": 2}},
        ],
    },
    "block": {
        "Block": [
            {"placement": "post"},
            {"placement": "sandwich", "branch_scale": 0.0},
            {"placement": "reordered", "attention_dropout": 0.2, "mlp_dropout": 0.1},
            {"attention": {"kv_heads": 1}, "mlp": "SwiGLU"},
            {"without_attention": [1], "placement": "sandwich", "branch_scale": 0.5},
        ],
        "ParallelBlock": [{"shared_norm": False, "attention": {"kv_heads": 2}, "mlp": "SwiGLU"}],
        "LatentAttentionBlock": [{"expand": 3, "qk_divisor": 4, "document_mask": True}],
    },
    "attention": {
        "Attention": [
            {"kv_heads": 2, "qk_norm": "RMSNorm", "bias": True},
            {"kv_heads": 1, "qk_norm": "RMSNorm", "qk_norm_over": "width", "out_bias": True},
            {"document_mask": True, "window": 8, "pattern": "SLF"},
            {"window": 12, "window_start": 4, "window_step": 4},
            {"scale": "inverse", "softcap": 5.0, "weight_dropout": 0.1},
            {"scale": 0.2, "backend": "explicit"},
            {"key_offset": True, "value_embeddings": 1},
            {"value_residual": True, "gate": "head", "gate_width": 8},
            {"gate": "element", "kv_heads": 2, "without_rotation": [0]},
        ],
        "MLA": [
            {"kv_rank": 16, "rope_dim": 8, "q_rank": 12, "latent_norm": "LayerNorm", "document_mask": True},
        ],
    },
    "mlp": {
        "GELU": [
            {"approximate": "openai", "bias": True},
            {"approximate": "none", "ratio": 2.0, "multiple_of": 16, "hidden_dropout": 0.1},
            {"hidden": 40},
        ],
        "Linear": [{"ratio": 3.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1}, {"hidden": 40}],
        "ReLU": [{"ratio": 3.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1}, {"hidden": 40}],
        "SiLU": [{"ratio": 3.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1}, {"hidden": 40}],
        "ReLU2": [{"ratio": 3.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1}, {"hidden": 40}],
        "SwiGLU": [{"ratio": 2.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1}, {"hidden": 40}],
        "GeGLU": [
            {"ratio": 2.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1},
            {"hidden": 40, "approximate": "tanh"},
        ],
        "ReGLU": [{"ratio": 2.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1}, {"hidden": 40}],
        "ReGLU2": [{"ratio": 2.0, "multiple_of": 16, "bias": True, "hidden_dropout": 0.1}, {"hidden": 40}],
        "MoE": [
            {"experts": 4, "top_k": 1, "shared": 0, "expert": "ReLU2", "score": "softmax", "balance_rate": 0.0},
        ],
    },
    "norm": {
        "RMSNorm": [{"affine": False, "eps": 1e-5}, {"bias": True}],
        "LayerNorm": [{"affine": False, "eps": 1e-6}, {"bias": False}],
        "CosineNorm": [{"affine": False, "eps": 1e-5, "scale": 5.0}],
    },
    "position": {
        "Sinusoidal": [{"theta": 100.0, "scale": 0.1}],
        "RoPE": [{"theta": 500.0, "fraction": 0.5, "angles": "float32"}, {"window_theta": 50.0}],
        "Llama3RoPE": [
            {
                "theta": 100.0,
                "factor": 4.0,
                "low_frequency": 1.0,
                "high_frequency": 3.0,
                "original_length": 16,
                "angles": "float32",
            }
        ],
        "YaRN": [
            {"theta": 100.0, "factor": 2.0, "fast": 4.0, "slow": 0.5, "original_length": 16, "magnitude": 1.1},
            {"angles": "float32"},
        ],
    },
    "residual": {
        "Residual": [{"stream_scale": 1.0, "input_scale": 0.1}, {"skip_scale": 0.5}],
    },
    "initialization": {
        "GPT2Init": [
            {"std": 0.01, "residual": "plain"},
            {"residual": "zero", "position_std": 0.01},
            {"embedding_std": 0.5, "head_std": 0.01},
        ],
    },
    "loss": {
        "CrossEntropy": [{"chunk": 48}, {"chunk": None, "label_smoothing": 0.1, "z_loss": 1e-4}],
        "MultiToken": [{"weights": [1.0, 0.3], "chunk": 48}, {"label_smoothing": 0.1, "z_loss": 1e-4}],
    },
    "optimizer": {
        "AdamW": [
            {"lr": 2e-3, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0.0},
            {"embedding_lr": 3e-3, "head_lr": 1e-4, "scalar_lr": 1e-2},
            {"weight_decay": 16.0, "perplexity_power": 1.0},
        ],
        "Muon": [
            {"lr": 0.01, "momentum": 0.9, "nesterov": False, "ns_steps": 3, "adjust_lr": "match_rms_adamw"},
            {"weight_decay": 0.1, "adamw_lr": 2e-3, "embedding_lr": 3e-3, "head_lr": 1e-4, "scalar_lr": 1e-2},
            {"betas": [0.8, 0.99], "eps": 1e-6, "unstack": False},
            {"momentum_warmup": 4, "momentum_start": 0.5},
            {"weight_decay": 16.0, "perplexity_power": 1.0},
        ],
    },
    "schedule": {
        "Cosine": [{"warmup": 0.5, "final": 0.0}, {"cycles": 3, "growth": 2.0}],
        "Linear": [{"warmup": 0.0, "final": 0.5}, {"cycles": 3, "growth": 0.5}],
        "OneCycle": [{"warmup": 0.5, "initial": 0.1, "final": 0.0, "anneal": "linear"}],
        "WSD": [{"warmup": 0.1, "decay": 0.9, "final": 0.05}],
        "Constant": [{"warmup": 0.3}],
        "PowerLaw": [{"warmup": 0.1, "power": 0.08}],
    },
    "growth": {
        "Fixed": [{"batches": 3}],
        "Ramp": [{"tokens": 20_000, "most": 5}],
        "GradientNorm": [{"most": 7, "rate": 0.5, "every": 2, "scale": 0.1, "power": 0.5}],
    },
    "mix": {
        "Weights": [{"weights": {"web": 3.0, "books": 1.0}}],
        "Schedule": [
            {"stages": [{"at": 0.0, "weights": {"web": 1, "books": 0}}, {"at": 0.8, "weights": {"web": 1, "books": 3}}]}
        ],
    },
    "stream": {
        "BatchStream": [],
        "GrowingSequences": [{"start": 4, "every": 200}],
    },
}

REQUIRED: set[tuple[str, str]] = {("mix", "Schedule"), ("growth", "Ramp"), ("stream", "GrowingSequences")}
"""Components that cannot be built with defaults alone."""

BESIDE: dict[tuple[str, ...], dict[str, Any]] = {
    # What is moved are the dimensions that stand still.
    ("attention", "Attention", "key_offset"): {"model": {"head_dim": 16, "position": {"use": "RoPE", "fraction": 0.5}}},
    # An angle for layers that have a window.
    ("position", "RoPE", "window_theta"): {"model": {"block": {"attention": {"window": 8, "pattern": "LF"}}}},
    # The rotated part of MLA's keys is as wide as what the position turns.
    ("attention", "MLA", "rope_dim"): {"model": {"head_dim": 16, "position": {"use": "RoPE", "fraction": 0.5}}},
    # It looks back by a distance of its own.
    ("block", "LatentAttentionBlock"): {"model": {"position": "NoPosition"}},
    # A std for vectors that only this position has.
    ("initialization", "GPT2Init", "position_std"): {"model": {"position": "Learned"}},
    # A rate for a head of its own.
    ("optimizer", "AdamW", "head_lr"): {"model": {"tied": False}},
    ("optimizer", "Muon", "head_lr"): {"model": {"tied": False}},
    # Embeddings of Normal(0, 1) are no head: with a tied one the loss would start far above ln V.
    ("initialization", "PyTorchInit"): {"model": {"tied": False}},
    ("initialization", "GPT2Init", "embedding_std"): {"model": {"tied": False}},
    ("loss", "MultiToken", "chunk"): {"model": {"ahead": 1}},
    # Blocks for the tokens further on are used by this loss alone.
    ("model", "GPT", "ahead"): {"loss": {"use": "MultiToken"}},
}
"""What else of the config a component needs, whatever its arguments; or a variant that sets the option named third."""

KNOWN: dict[tuple[str, str, str], str] = {}
"""Contracts that a component does not keep, and why. The test fails when it comes to keep one."""

EXCUSED: dict[tuple[str, str, str], str] = {
    ("model", "GPT", "block"): "the slot block",
    ("model", "GPT", "norm"): "the slot norm",
    ("model", "GPT", "init_from"): "names a run; tests/train checks it",
}
"""Options that no variant sets, and why."""

OFF: list[tuple[str, dict[str, Any], Any]] = [
    # slot, switched off (or neutral), what it must equal bit for bit
    ("attention", {"use": "Attention", "kv_heads": 4}, "Attention"),
    ("attention", {"use": "Attention", "window": 1000}, "Attention"),
    ("attention", {"use": "Attention", "window": 8, "pattern": "F"}, "Attention"),
    ("attention", {"use": "Attention", "value_embeddings": 0, "gate": "none", "softcap": None}, "Attention"),
    ("attention", {"use": "Attention", "out_bias": False, "weight_dropout": 0.0}, "Attention"),
    ("attention", {"use": "Attention", "scale": 8**-0.5}, "Attention"),
    ("attention", {"use": "Attention", "without_rotation": []}, "Attention"),
    ("mlp", {"use": "GELU", "hidden": 128, "hidden_dropout": 0.0}, "GELU"),
    ("block", {"use": "Block", "attention_dropout": 0.0, "mlp_dropout": 0.0, "branch_scale": 1.0}, "Block"),
    ("block", {"use": "Block", "without_attention": []}, "Block"),
    ("model", {"use": "GPT", "logit_scale": 1.0, "embedding_scale": 1.0, "pad_vocab": 97}, "GPT"),
    ("model", {"use": "GPT", "head_dim": 8, "context_length": 32, "embedding_dropout": 0.0}, "GPT"),
    ("model", {"use": "GPT", "mup": {"dim": 32, "heads": 4}}, "GPT"),
    ("model", {"use": "GPT", "float8_head": False}, "GPT"),
    ("residual", {"use": "Residual", "stream_scale": 1.0, "input_scale": 0.0, "skip_scale": 0.0}, "Residual"),
    ("position", {"use": "RoPE", "fraction": 1.0, "theta": 10000.0, "window_theta": None}, "RoPE"),
    ("position", {"use": "Llama3RoPE", "theta": 10000.0, "factor": 1.0}, "RoPE"),
    ("position", {"use": "YaRN", "factor": 1.0}, "RoPE"),
    ("initialization", {"use": "GPT2Init", "position_std": 0.02}, "GPT2Init"),
    ("initialization", {"use": "GPT2Init", "embedding_std": 0.02}, "GPT2Init"),
    ("norm", {"use": "RMSNorm", "bias": False}, "RMSNorm"),
    ("loss", {"use": "CrossEntropy", "label_smoothing": 0.0, "z_loss": 0.0, "chunk": None}, "CrossEntropy"),
    ("optimizer", {"use": "AdamW", "embedding_lr": 1e-3, "head_lr": 1e-3, "scalar_lr": 1e-3}, "AdamW"),
    ("optimizer", {"use": "Muon", "embedding_lr": 1e-3, "head_lr": 1e-3, "scalar_lr": 1e-3}, "Muon"),
    ("optimizer", {"use": "Muon", "momentum_warmup": 9, "momentum_start": 0.95}, "Muon"),
    ("schedule", {"use": "Cosine", "cycles": 1, "growth": 2.0}, "Cosine"),
    ("schedule", {"use": "OneCycle", "warmup": 0.0, "final": 0.0}, {"use": "Cosine", "warmup": 0.0, "final": 0.0}),
    ("schedule", {"use": "Linear", "final": 1.0}, "Constant"),
    ("schedule", {"use": "Cosine", "final": 1.0}, "Constant"),
    ("schedule", {"use": "PowerLaw", "power": 0.0}, "Constant"),
    ("optimizer", {"use": "AdamW", "perplexity_power": 0.0}, "AdamW"),
    ("optimizer", {"use": "Muon", "weight_decay": 0.1, "perplexity_power": 0.0}, {"use": "Muon", "weight_decay": 0.1}),
    ("growth", {"use": "Ramp", "tokens": 5000, "most": 1}, "Fixed"),
    ("growth", {"use": "GradientNorm", "most": 1}, "Fixed"),
    (
        "mix",
        {"use": "Schedule", "stages": [{"at": 0.5, "weights": {"web": 3, "books": 1}}]},
        {"use": "Weights", "weights": {"web": 3, "books": 1}},
    ),
]
