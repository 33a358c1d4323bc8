"""templateGPT's trained/NAME, in: model_config.json, model.pth, and the merges of its tokenizer.

What https://github.com/evintunador/templateGPT computes, as its code says: an MLP that is not gated applies no
nonlinearity (our `Linear`), and norms made on a GPU or a Mac are no parameters, so that they are not in the file and
are ones and zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.config.jsonfile import read_json
from gptlab.console import say
from gptlab.errors import CheckpointError, GptlabError, option
from gptlab.interop.nanogpt import PlainUnpickler
from gptlab.interop.runs import import_record, run_config, write_run
from gptlab.interop.table import Values, neutral_tensor
from gptlab.interop.tensors import read_pickle
from gptlab.model import build_model
from gptlab.tokenizer import Tokenizer, load_tokenizer

_GATED = {"SiLU": "SwiGLU", "GeLU": "GeGLU", "ReLU": "ReGLU"}
_BUFFERS = ("precompute_freqs.inv_freq", "pos_embedding")
_SPECIAL = ("<bos>", "<eos>", "<pad>")
_WHOLE_TEXT = r"[\s\S]+"  # its encoder merges over the text as a whole


def import_templategpt(folder: Path, *, name: str, tokenizer: str | None = None, runs: Path = Path("runs")) -> Path:
    """Make a run folder `runs`/NAME-HASH of a model of templateGPT, and return it.

    `tokenizer`: the `.model` file of its merges, or the name or folder of another; None: the one that its config names,
    in tokenizers/ of the clone that the folder is in. Raises CheckpointError where a file is missing or damaged, or the
    model has a part that gptlab does not.
    """
    where, weights = folder / "model_config.json", folder / "model.pth"
    theirs = read_json(where, dict[str, Any], mend="get it again")
    tensors = read_pickle(weights)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{weights} is no table of names and tensors; get it again")
    try:
        section, rows = _section(theirs, str(where)), int(theirs["vocab_len"])
        found = _tokenizer(folder, theirs, rows, name, tokenizer)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} is no config of templateGPT ({type(error).__name__}: {error})") from None
    config = run_config(name, section, rows, found, str(where))
    left = {key: value for key, value in tensors.items() if key not in _BUFFERS}
    model = build_model(config, found.vocab_size, device="meta")
    converted = _convert(model, theirs, left, str(weights))
    source = import_record(folder, [where, weights], architecture="templateGPT")
    return write_run(name, config, converted, found, source, runs)


def _section(theirs: Values, where: str) -> Values:
    """Our `model` section for a model_config.json."""
    gated, kind = theirs["mlp_gated"], theirs["mlp_nonlinearity"]
    if gated and kind not in _GATED:
        raise CheckpointError(
            f"{where}: mlp_nonlinearity is {str(kind)[:40]!r}, which gptlab does not have gated; known: "
            f"{', '.join(_GATED)}"
        )
    position = theirs["pos_enc_type"]
    if position not in ("RoPE", "learnable", "Sinusoidal"):
        raise CheckpointError(f"{where}: pos_enc_type is {str(position)[:40]!r}, which is not templateGPT's")
    if not gated:
        say(f"{where}: an MLP without gate, to which templateGPT applies no nonlinearity: imported as that, `Linear`")
    dim, norm = theirs["dim"], {"use": theirs["norm_type"], "eps": theirs["eps"], "affine": theirs["norm_affine"]}
    if theirs["norm_type"] != "CosineNorm":
        norm["bias"] = theirs["norm_affine"] and theirs["norm_bias"]
    ratio = theirs["mlp_hidden_mult"] * 2 / 3 if gated else theirs["mlp_hidden_mult"]
    mlp = {"use": _GATED[kind] if gated else "Linear", "hidden": int(dim * ratio), "bias": theirs["linear_bias"]}
    if mlp["use"] == "GeGLU":
        mlp["approximate"] = "none"
    attention = {"kv_heads": theirs["num_kv_heads"] or theirs["num_q_heads"], "bias": theirs["linear_bias"]}
    rope = {"use": "RoPE", "theta": float(theirs["theta"]), "angles": "float32"}
    return {
        "use": "GPT",
        "dim": dim,
        "layers": theirs["num_layers"],
        "heads": theirs["num_q_heads"],
        "head_dim": theirs["head_dim"] or dim // theirs["num_q_heads"],
        "context_length": theirs["max_seq_len"],
        "norm": norm,
        "block": {
            "use": "Block",
            "attention": {"use": "Attention", **attention},
            "mlp": mlp,
            "placement": "sandwich" if theirs["second_resid_norm"] else "pre",
        },
        "position": rope if position == "RoPE" else {"use": "Learned"},
        "tied": theirs["out_weight_share"],
        "embedding_scale": _scale(theirs),
    }


def _scale(theirs: Values) -> float:
    return math.sqrt(theirs["dim"]) if theirs["scale_first_resid"] else 1.0


# ---------------------------------------------------------------- tensors

_NORMS = {
    "attention_norm": "pre_attn_norm",
    "attention_out_norm": "post_attn_norm",
    "mlp_norm": "pre_mlp_norm",
    "mlp_out_norm": "post_mlp_norm",
}
_LINEAR = {"attention.out": "attn.Wo", "mlp.up": "mlp.Wup", "mlp.gate": "mlp.Wgate", "mlp.down": "mlp.Wdown"}


def _convert(model: nn.Module, theirs: Values, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under our names, every one accounted for. `model` may be on the meta device."""
    converted, used = {}, set()
    for ours, like in model.named_parameters():
        names = _names(ours, tied=theirs["out_weight_share"])
        there = [name for name in names if name in tensors]
        if ours == "position.embedding.weight" and theirs["pos_enc_type"] == "Sinusoidal":
            tensor = _waves(theirs)
        elif there == names:
            parts = [tensors[name].float() for name in names]
            tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        elif "norm" in ours.split(".")[-2]:
            tensor = neutral_tensor(ours, torch.empty(like.shape))
        else:
            raise CheckpointError(
                f"{where}: tensor {next(n for n in names if n not in there)} is missing; get it again"
            )
        if tensor.shape != like.shape:
            raise CheckpointError(
                f"{where}: tensor {names[0]} is {tuple(tensor.shape)} and model_config.json asks for "
                f"{tuple(like.shape)}; get the config and the weights of one model"
            )
        used |= set(there)
        converted[ours] = (tensor * _scale(theirs) if ours.startswith("position.") else tensor).contiguous()
    if theirs["out_weight_share"]:
        used.add("token_embedder.weight")  # the same matrix as the head, which is read
    lost = [name for name in sorted(set(tensors) - used) if not (name.endswith(".b") and not tensors[name].any())]
    if lost:
        raise CheckpointError(f"{where}: gptlab has no place for tensor {lost[0]}; this model cannot be imported")
    return converted


def _names(ours: str, *, tied: bool) -> list[str]:
    """What templateGPT calls a tensor of ours; several where ours are its rows one after another."""
    module, _, kind = ours.rpartition(".")
    letter = {"weight": "w", "bias": "b"}[kind]
    if module == "norm":
        return [f"final_norm.{letter}"]
    if not module.startswith("blocks."):
        embedding = "output" if tied else "token_embedder"
        return [f"{ {'embedding': embedding, 'head': 'output', 'position.embedding': 'pos_embedder'}[module] }.{kind}"]
    _, layer, part = module.split(".", 2)
    if part in _NORMS:
        return [f"layers.{layer}.{_NORMS[part]}.{letter}"]
    if part == "attention.qkv":
        return [f"layers.{layer}.attn.W{each}.{kind}" for each in "qkv"]
    return [f"layers.{layer}.{_LINEAR[part]}.{kind}"]


def _waves(theirs: Values) -> Tensor:
    """Its sinusoidal positions, sines and cosines by turns: (T, D); imported as a table that can learn."""
    dim, length = theirs["dim"], theirs["max_seq_len"]
    angles = torch.arange(length).unsqueeze(1) * torch.exp(torch.arange(0, dim, 2) * (-math.log(theirs["theta"]) / dim))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


# ---------------------------------------------------------------- tokenizer


def _tokenizer(folder: Path, theirs: Values, rows: int, name: str, chosen: str | None) -> Tokenizer:
    """The one that was asked for, or the one that the config names, in the clone that the folder is in."""
    kind = str(theirs["tokenizer"])
    if chosen is not None and not chosen.endswith(".model"):
        return load_tokenizer(chosen)
    if chosen is None and kind == "byte":
        return _make([], f"{name}-tokenizer", "byte")
    size = f"{rows - len(_SPECIAL)}.model"
    place = Path(chosen or folder.resolve().parents[1] / "tokenizers" / Path(kind).name / "models" / size)
    if not place.is_file():
        raise CheckpointError(
            f"no merges of the tokenizer {kind!r} at {place}; name the file: {option('tokenizer', f'…/{size}')}"
        )
    return read_merges(place, f"{name}-tokenizer")


def read_merges(path: Path, name: str) -> Tokenizer:
    """A byte-level BPE from a `.model` of templateGPT: a table of pairs of ids and the id that they make.

    Raises CheckpointError where the file is missing or anything but that; nothing in it is run.
    """
    try:
        with path.open("rb") as file:
            merges = PlainUnpickler(file).load()["merges"]
        pairs = sorted(merges.items(), key=lambda item: item[1])
        if [made for _, made in pairs] != list(range(256, 256 + len(pairs))):
            raise ValueError("its ids are not 256, 257, …")
        return _make([pair for pair, _ in pairs], name, "bpe")
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; check the path") from None
    except GptlabError:
        raise
    except Exception as error:  # an unpickler fed with junk raises whatever the junk asks for
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path} is no tokenizer of templateGPT ({type(error).__name__}: {reason})") from None


def _make(pairs: list[tuple[int, int]], name: str, kind: str) -> Tokenizer:
    """The tokenizer of these merges: bytes, what is merged, and the three that begin, end and fill a text."""
    tokens = [bytes([index]) for index in range(256)]
    for left, right in pairs:
        tokens.append(tokens[left] + tokens[right])
    special = {text: len(tokens) + index for index, text in enumerate(_SPECIAL)}
    return Tokenizer(
        name,
        kind,
        [*tokens, *[b""] * len(_SPECIAL)],
        special,
        end_of_text=_SPECIAL[0],
        document_end=_SPECIAL[1],
        pattern=_WHOLE_TEXT if kind == "bpe" else None,
        trained_on={"imported from": "templateGPT"},
    )
