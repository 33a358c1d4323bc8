"""nanoGPT's `ckpt.pt`, read without running what a pickle may hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gptlab.config import RunConfig
from gptlab.errors import CheckpointError, DataError
from gptlab.interop.gpt2 import from_gpt2, gpt2_config
from gptlab.model import build_model
from gptlab.tokenizer import Tokenizer, load_tokenizer


def load_nanogpt(path: Path) -> tuple[RunConfig, nn.Module, Tokenizer]:
    """Config, model and tokenizer of a nanoGPT checkpoint.

    The tokenizer is the folder `tokenizer/` beside the file where there is one, else GPT-2's. Raises CheckpointError
    where the file is missing, holds anything but tensors and plain values, or is not nanoGPT's.
    """
    content = _read(path)
    try:
        sizes, tensors = content["model_args"], content["model"]
        config = gpt2_config(
            dim=sizes["n_embd"],
            layers=sizes["n_layer"],
            heads=sizes["n_head"],
            context_length=sizes["block_size"],
            bias=sizes["bias"],
            dropout=sizes.get("dropout", 0.0),
        )
        model = build_model(config, sizes["vocab_size"])
        converted = from_gpt2(tensors, conv1d=False)
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is no nanoGPT checkpoint (it should hold model and model_args)") from None
    own = dict(model.named_parameters())
    odd = sorted(set(own) ^ set(converted)) or [n for n in own if own[n].shape != converted[n].shape]
    if odd:
        raise CheckpointError(f"{path}: tensor {odd[0]} does not fit the sizes that model_args states")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(converted[name])
    beside = path.parent / "tokenizer"
    tokenizer = load_tokenizer(beside if beside.is_dir() else "gpt2")
    if tokenizer.vocab_size > sizes["vocab_size"]:
        raise DataError(
            f"{path} has {sizes['vocab_size']} token ids and tokenizer {tokenizer.name} {tokenizer.vocab_size}; "
            f"put the right one in {beside}"
        )
    model.vocab_size = tokenizer.vocab_size  # nanoGPT pads its vocabulary; ids beyond the tokenizer's mean nothing
    return config, model, tokenizer


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; check the path") from None
    except pickle.UnpicklingError as error:
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and was not run ({' '.join(first.split())[:120]}); "
            "save it again with tensors only, and do not trust where it came from"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {' '.join(str(error).split())[:160]}") from None
