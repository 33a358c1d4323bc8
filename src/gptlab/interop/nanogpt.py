"""nanoGPT's `ckpt.pt` and `meta.pkl`, in and out; read without running what a pickle may hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from gptlab.config import RunConfig
from gptlab.console import say
from gptlab.errors import CheckpointError, DataError, option
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
from gptlab.tokenizer.core import plain_char_tokenizer
from gptlab.tokenizer.published import HASHES

_META = "meta.pkl"
_GPT2_IDS = 50257
_NO_FILE = "is no nanoGPT checkpoint (it should hold model and model_args)"


def load_nanogpt(path: Path) -> tuple[RunConfig, nn.Module, Tokenizer]:
    """Config, model and tokenizer of a nanoGPT checkpoint.

    The tokenizer is the folder `tokenizer/` beside the file, the characters of `meta.pkl` beside it or in nanoGPT's
    folder of the data set, or GPT-2's. Raises CheckpointError where the file is missing, holds anything but tensors and
    plain values, or is not nanoGPT's.
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

    Where the tokenizer is not GPT-2's, `data/NAME/meta.pkl` beside it says what ids stand for; sample.py looks for it
    in the folder that it runs in. It encodes prompts character by character, which is said where ours does not.

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
    name = None if run.tokenizer.hash == HASHES["gpt2"] else run.config.name
    content = {"model": tensors, "model_args": arguments, "iter_num": run.step or 0, "best_val_loss": 1e9}
    content["config"] = {} if name is None else {"dataset": name}
    with new_folder(folder) as aside:
        torch.save(content, aside / "ckpt.pt")
        run.tokenizer.save(aside / "tokenizer")
        if name is not None:
            (aside / "data" / name).mkdir(parents=True)
            meta = _meta(run.tokenizer, arguments["vocab_size"])
            (aside / "data" / name / "meta.pkl").write_bytes(pickle.dumps(meta))
    if name is not None:
        say(
            f"nanoGPT's sample.py reads data/{name}/meta.pkl in the folder where it runs: "
            f"copy {folder}/data/{name} into its data/"
        )
        if run.tokenizer.kind not in ("char", "byte"):
            say("sample.py encodes prompts character by character, and not with this tokenizer's merges")
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
    tokenizer = _tokenizer(path, chosen, name, rows, content.get("config"))
    check_sizes(layout, whole, rows, shapes, str(path))
    config = run_config(name, section, rows, tokenizer, str(path))
    named = NamedTensors(layout, tensors, shapes, tied=True)
    check_tensors(layout, build_model(config, tokenizer.vocab_size, device="meta"), section, named.shapes, str(path))
    return config, convert_tensors(layout, section, named), tokenizer


def _tokenizer(path: Path, chosen: str | None, name: str, rows: int, config: Any) -> Tokenizer:
    """The one that was asked for, the one beside the checkpoint, nanoGPT's characters, or GPT-2's."""
    if chosen is not None:
        return read_meta(Path(chosen), f"{name}-tokenizer") if chosen.endswith(".pkl") else load_tokenizer(chosen)
    if (path.parent / "tokenizer").is_dir():
        return load_tokenizer(path.parent / "tokenizer")
    data = config.get("dataset") if isinstance(config, Mapping) else None
    places = [
        path.parent / _META,
        *([path.parent.parent / "data" / Path(data).name / _META] if isinstance(data, str) else []),
    ]
    for place in places:
        if place.is_file():
            say(f"{name}: characters of {place}")
            return read_meta(place, f"{name}-tokenizer")
    if rows < _GPT2_IDS:
        raise CheckpointError(
            f"{path} has {rows} token ids, too few for GPT-2's; name what they stand for: "
            f"{option('tokenizer', 'FOLDER')}, or "
            f"nanoGPT's {option('tokenizer')} data/{data or 'DATASET'}/{_META}"
        )
    return load_tokenizer("gpt2")


def read_meta(path: Path, name: str) -> Tokenizer:
    """The characters of a `meta.pkl` of nanoGPT's; a line end stands between texts, as its sample.py begins with one.

    Raises CheckpointError where it holds anything but tables of texts and numbers, or is no table of characters.
    """
    try:
        with path.open("rb") as file:
            meta = PlainUnpickler(file).load()
        itos = meta["itos"]
        characters = [itos[index] for index in range(len(itos))]
        separator = "\n" if "\n" in characters else characters[0]
        return plain_char_tokenizer(characters, name=name, separator=separator)
    except DataError as error:
        raise CheckpointError(f"{path} is no table of characters: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; check the path") from None
    except Exception as error:  # an unpickler fed with junk raises whatever the junk asks for
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path} is no meta.pkl of nanoGPT ({type(error).__name__}: {reason})") from None


class PlainUnpickler(pickle.Unpickler):
    """Reads tables, lists, texts and numbers; whatever would have to be looked up, and could be run, is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and was not run")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object from elsewhere")


def _meta(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """nanoGPT's `meta.pkl`: `itos`, what each id reads as, and `stoi`, the id of each single character."""
    names = {index: text for text, index in tokenizer.special_tokens.items()}
    pieces = tokenizer.token_bytes()
    itos = {i: names[i] if i in names else pieces[i].decode("utf-8", "replace") for i in range(len(pieces))}
    itos |= dict.fromkeys(range(len(pieces), rows), "")  # rows beyond the tokenizer's
    single = {piece.decode("utf-8"): i for i, piece in reversed(list(enumerate(pieces))) if _is_character(piece)}
    return {"vocab_size": rows, "itos": itos, "stoi": single}


def _is_character(piece: bytes) -> bool:
    return len(piece.decode("utf-8", "ignore")) == 1 and piece.decode("utf-8", "ignore").encode("utf-8") == piece


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
