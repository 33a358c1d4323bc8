"""nanoGPT's `ckpt.pt`, in and out; read without running what a pickle may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.config import RunConfig
from gptlab.console import say
from gptlab.errors import CheckpointError
from gptlab.interop.gpt2 import gpt2_config, model_arguments, nanogpt_layout
from gptlab.interop.huggingface import fitting_architecture, huggingface_tensors
from gptlab.interop.runs import (
    NamedTensors,
    check_sizes,
    check_tensors,
    convert_tensors,
    import_record,
    new_folder,
    run_config,
    write_run,
)
from gptlab.interop.table import Architecture, Values, get, with_computed_sizes
from gptlab.interop.tensors import read_pickle
from gptlab.model import build_model
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer, load_tokenizer

_NO_FILE = "is no nanoGPT checkpoint (it should hold model and model_args)"


def load_nanogpt(path: Path) -> tuple[RunConfig, nn.Module, Tokenizer]:
    """Config, model and tokenizer of a nanoGPT checkpoint.

    The tokenizer is the folder `tokenizer/` beside the file where there is one, else GPT-2's. Raises CheckpointError
    where the file is missing, holds anything but tensors and plain values, or is not nanoGPT's.
    """
    config, tensors, tokenizer = _read(path, "nanogpt", None)
    model = build_model(config, tokenizer.vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    return config, model, tokenizer


def import_nanogpt(path: Path, *, name: str, tokenizer: str | None = None, runs: Path = Path("runs")) -> Path:
    """Make a run folder `runs`/NAME-HASH of a nanoGPT checkpoint, and return it. See `load_nanogpt`."""
    config, tensors, found = _read(path, name, tokenizer)
    return write_run(name, config, tensors, found, import_record(path, [path], architecture="nanogpt"), runs)


def export_nanogpt(run: Run, folder: Path) -> Path:
    """Write `run` as `folder`/ckpt.pt, which nanoGPT's sample.py reads; return the file.

    nanoGPT computes the exact GELU; where the run approximates it, that is said, because logits then differ in the
    third digit. Raises CheckpointError where the model is not GPT-2's, or the disk refuses.
    """
    layout = nanogpt_layout()
    architecture, section = fitting_architecture(run, (layout,))
    full = section["block"]["attention"]["bias"], section["block"]["mlp"]["bias"], section["norm"]["bias"]
    if section["block"]["mlp"]["hidden"] != 4 * section["dim"] or section["norm"]["eps"] != 1e-5 or not section["tied"]:
        raise CheckpointError(f"{run.folder}: nanoGPT's MLP is 4 widths wide, its norm's eps 1e-5, and its head tied")
    if section["block"]["mlp"]["approximate"] != "none":
        say(
            "nanoGPT computes the exact GELU and this model an approximation: its logits will differ in the third digit"
        )
    tensors = huggingface_tensors(run, architecture, section)
    arguments = model_arguments(section) | {"vocab_size": run.model.embedding.weight.shape[0], "bias": any(full)}
    if not any(full):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    content = {"model": tensors, "model_args": arguments, "iter_num": run.step or 0, "best_val_loss": 1e9, "config": {}}
    with new_folder(folder) as aside:
        torch.save(content, aside / "ckpt.pt")
        run.tokenizer.save(aside / "tokenizer")
    return folder / "ckpt.pt"


def _read(path: Path, name: str, chosen: str | None) -> tuple[RunConfig, dict[str, Tensor], Tokenizer]:
    """Config, tensors under our names, and tokenizer of a checkpoint, all checked."""
    content = read_pickle(path)
    try:
        sizes, tensors = dict(content["model_args"]), dict(content["model"])
        section = _section(sizes, str(path))
        rows = int(sizes["vocab_size"])
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        layout, whole = _layout(section), with_computed_sizes(section, 1)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError):
        raise CheckpointError(f"{path} {_NO_FILE}") from None
    beside = path.parent / "tokenizer"
    tokenizer = load_tokenizer(chosen if chosen is not None else beside if beside.is_dir() else "gpt2")
    check_sizes(layout, whole, rows, shapes, str(path))
    config = run_config(name, section, rows, tokenizer, str(path))
    named = NamedTensors(layout, tensors, shapes, tied=True)
    check_tensors(layout, build_model(config, tokenizer.vocab_size, device="meta"), section, named.shapes, str(path))
    return config, convert_tensors(layout, section, named), tokenizer


def _section(sizes: Values, where: str) -> Values:
    """Our `model` section for nanoGPT's `model_args`. nanoGPT's GELU is torch's own, the exact one."""
    unknown = sorted(set(sizes) - {"n_layer", "n_head", "n_embd", "block_size", "bias", "dropout", "vocab_size"})
    if unknown:
        raise CheckpointError(f"{where}: model_args.{unknown[0]} is not nanoGPT's; a fork's model cannot be imported")
    return gpt2_config(
        dim=sizes["n_embd"],
        layers=sizes["n_layer"],
        heads=sizes["n_head"],
        context_length=sizes["block_size"],
        bias=sizes["bias"],
        dropout=sizes.get("dropout", 0.0),
        approximate="none",
    ).model.plain()


def _layout(section: Mapping[str, Any]) -> Architecture:
    """The names and shapes of a checkpoint with or without biases."""
    layout = nanogpt_layout()
    if get(section, "norm.bias"):
        return layout
    return replace(layout, rows=lambda model: [replace(row, kinds=("weight",)) for row in layout.rows(model)])
