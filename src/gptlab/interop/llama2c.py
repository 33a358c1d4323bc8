"""llama2.c's models, in: its `.bin` files (versions 0 and 1), the `ckpt.pt` of its train.py, and `tokenizer.bin`.

They are Llamas of small size, most of them of TinyStories. The format is that of https://github.com/karpathy/llama2.c:
seven numbers, then all weights in float32, tensor by tensor. Its rotary positions turn neighbours, and transformers'
(and ours) the two halves of a head, so that the rows of queries and keys change places.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlab.config import RunConfig
from gptlab.errors import CheckpointError, DataError, option
from gptlab.interop.llama import LLAMA
from gptlab.interop.runs import (
    NamedTensors,
    check_sizes,
    check_tensors,
    convert_tensors,
    import_record,
    run_config,
    write_run,
)
from gptlab.interop.table import Values
from gptlab.model import build_model
from gptlab.tokenizer import Tokenizer, import_tokenizer, load_tokenizer

_MAGIC = 0x616B3432  # "ak42", before version 1
_NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
_V1_HEADER = 256  # bytes
_MOST = 1 << 28  # of any of the numbers
_EPS = 1e-5
_IN_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
"""What train.py calls a tensor of a block, and what transformers calls it."""
_OUTSIDE = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def import_llama2c(path: Path, *, name: str, tokenizer: str | None = None, runs: Path = Path("runs")) -> Path:
    """Make a run folder `runs`/NAME-HASH of a model of llama2.c, and return it.

    `tokenizer`: its tokenizer.bin, or the name or folder of another; None: tokenizer.bin or tokV.bin beside the model.
    Raises CheckpointError where the file is missing, cut short, quantized, or none of llama2.c's.
    """
    sizes, tensors = _read_bin(path) if path.suffix == ".bin" else _read_checkpoint(path)
    config, converted, found = _convert(path, name, sizes, tensors, tokenizer)
    return write_run(name, config, converted, found, import_record(path, [path], architecture="llama2.c"), runs)


def _convert(
    path: Path, name: str, sizes: Values, tensors: Mapping[str, Tensor], tokenizer: str | None
) -> tuple[RunConfig, dict[str, Tensor], Tokenizer]:
    """Config, tensors under our names, and tokenizer, all checked."""
    theirs = {
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["hidden_dim"],
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "max_position_embeddings": sizes["max_seq_len"],
        "rms_norm_eps": _EPS,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    section, shapes = LLAMA.model_section(theirs, str(path)), {key: tuple(t.shape) for key, t in tensors.items()}
    check_sizes(LLAMA, section, sizes["vocab_size"], shapes, str(path))
    found = _tokenizer(path, name, sizes["vocab_size"], tokenizer)
    config = run_config(name, section, sizes["vocab_size"], found, str(path))
    named = NamedTensors(LLAMA, tensors, shapes, tied=section["tied"])
    model = build_model(config, found.vocab_size, device="meta")
    check_tensors(LLAMA, model, section, named.shapes, str(path))
    halves = {full: _halves(full, tensor, section) for full, tensor in named.items()}
    return config, convert_tensors(LLAMA, section, halves), found


def _halves(name: str, tensor: Tensor, section: Values) -> Tensor:
    """Rows of queries and keys, whose positions turn neighbours, in the order in which they turn halves: within a head
    of width C, rows 0, 2, … then 1, 3, …"""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    width = section["dim"] // section["heads"]
    return tensor.view(-1, width // 2, 2, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)


# ---------------------------------------------------------------- files


def _read_bin(path: Path) -> tuple[Values, dict[str, Tensor]]:
    """The numbers and the tensors, under transformers' names, of a `.bin`. Tensors are views of the file."""
    try:
        content = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; check the path") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    magic, version = struct.unpack("<Ii", content[:8].tobytes()) if len(content) >= _V1_HEADER else (0, 0)
    if magic == _MAGIC and version != 1:
        raise CheckpointError(
            f"{path} is of version {version} of llama2.c's format, whose weights are quantized; export it in float32 "
            "(version 0 or 1)"
        )
    start, first = (_V1_HEADER, 8) if magic == _MAGIC else (28, 0)
    if len(content) < start:
        raise CheckpointError(f"{path} is no model of llama2.c: it ends within its first {start} bytes")
    sizes: Values = dict(zip(_NUMBERS, struct.unpack("<7i", content[first : first + 28].tobytes()), strict=True))
    tied = bool(content[first + 28]) if magic == _MAGIC else sizes["vocab_size"] > 0
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    if not all(0 < size < _MOST for size in sizes.values()) or sizes["dim"] % (2 * sizes["n_heads"]):
        raise CheckpointError(f"{path} is no model of llama2.c: its first numbers are no sizes of a model")
    tensors, at = {}, start
    for name, shape in _layout(sizes, tied, version=int(magic == _MAGIC)):
        end = at + 4 * int(np.prod(shape, dtype=np.int64))
        if end > len(content):
            raise CheckpointError(f"{path} is cut short: {name} ends at byte {end:,} of {len(content):,}; get it again")
        if name:
            tensors[name] = torch.from_numpy(np.array(content[at:end]).view("<f4").reshape(shape))
        at = end
    if at != len(content):
        raise CheckpointError(
            f"{path} is no model of llama2.c: {len(content) - at:,} bytes stand after its last tensor"
        )
    return sizes, tensors


def _layout(sizes: Values, tied: bool, version: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor in the file's order; "" for the angles that version 0 keeps."""
    dim, hidden, layers = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"]
    keys = dim // sizes["n_heads"] * sizes["n_kv_heads"]
    shapes = {
        "attention_norm": (dim,),
        "attention.wq": (dim, dim),
        "attention.wk": (keys, dim),
        "attention.wv": (keys, dim),
        "attention.wo": (dim, dim),
        "ffn_norm": (dim,),
        "feed_forward.w1": (hidden, dim),
        "feed_forward.w2": (dim, hidden),
        "feed_forward.w3": (hidden, dim),
    }
    table, last = ("model.embed_tokens.weight", (sizes["vocab_size"], dim)), ("model.norm.weight", (dim,))

    def blocks(*names: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        for each in names:
            for layer in range(layers):
                yield f"model.layers.{layer}.{_IN_BLOCK[each]}.weight", shapes[each]

    if version == 0:
        yield table
        yield from blocks(*shapes)
        yield last
        yield from [("", (sizes["max_seq_len"], dim // sizes["n_heads"] // 2))] * 2
    else:
        yield from blocks("attention_norm", "ffn_norm")
        yield from (last, table)
        yield from blocks(*(each for each in shapes if not each.endswith("norm")))
    if not tied:
        yield "lm_head.weight", (sizes["vocab_size"], dim)


def _read_checkpoint(path: Path) -> tuple[Values, dict[str, Tensor]]:
    """The same of the `ckpt.pt` of train.py."""
    from gptlab.interop.tensors import read_pickle

    content = read_pickle(path)
    try:
        sizes, theirs = dict(content["model_args"]), dict(content["model"])
        sizes["n_kv_heads"] = sizes.get("n_kv_heads") or sizes["n_heads"]
        tensors = {}
        for key, tensor in theirs.items():
            name = key.removeprefix("_orig_mod.")
            if name.startswith("freqs_"):
                continue  # angles, which the config says
            head, _, rest = name.removeprefix("layers.").partition(".")
            if name.startswith("layers."):
                tensors[f"model.layers.{head}.{_IN_BLOCK[rest.removesuffix('.weight')]}.weight"] = tensor
            else:
                tensors[f"{_OUTSIDE[name.removesuffix('.weight')]}.weight"] = tensor
        sizes["hidden_dim"] = tensors["model.layers.0.mlp.gate_proj.weight"].shape[0]
        if torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            del tensors["lm_head.weight"]
        {name: int(sizes[name]) for name in _NUMBERS}  # what is not there, or no number, is none of llama2.c's
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise CheckpointError(f"{path} is no checkpoint of llama2.c (it should hold model and model_args)") from None
    return sizes, tensors


# ---------------------------------------------------------------- tokenizer


def _tokenizer(path: Path, name: str, rows: int, chosen: str | None) -> Tokenizer:
    """The one that was asked for, or the one beside the model."""
    places = [Path(chosen)] if chosen is not None else [path.parent / f"tok{rows}.bin", path.parent / "tokenizer.bin"]
    place = next((place for place in places if place.suffix == ".bin" and place.is_file()), None)
    if place is not None:
        return read_tokenizer_bin(place, rows, f"{name}-tokenizer")
    if chosen is not None:
        return load_tokenizer(chosen)
    raise CheckpointError(
        f"{path} has no tokenizer.bin beside it; name the model's tokenizer: {option('tokenizer', 'tokenizer.bin')}"
    )


def read_tokenizer_bin(path: Path, rows: int, name: str) -> Tokenizer:
    """A tokenizer.bin of llama2.c, which has `rows` tokens: SentencePiece's pieces with their scores, in Llama 2's
    conventions: ids 0, 1 and 2 are unknown, begin and end, then come the 256 bytes.

    Raises CheckpointError where the file is missing, cut short or of another number of tokens.
    """
    pieces, scores, at = [], [], 4
    try:
        content = path.read_bytes()
        while at < len(content):
            score, length = struct.unpack_from("<fI", content, at)
            if at + 8 + length > len(content):
                raise struct.error("the last piece is cut")
            pieces.append(content[at + 8 : at + 8 + length].decode("utf-8"))
            scores.append(score)
            at += 8 + length
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; check the path") from None
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no tokenizer.bin of llama2.c, or cut short ({error})") from None
    if len(pieces) != rows or rows < 260:
        raise CheckpointError(f"{path} has {len(pieces)} tokens and the model {rows}; get the tokenizer of this model")
    document, config = _sentencepiece(pieces, scores)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            return import_tokenizer(folder, name=name)
        except DataError as error:
            raise CheckpointError(f"{path} is no tokenizer of Llama 2's kind: {error}") from None


def _sentencepiece(pieces: list[str], scores: list[float]) -> tuple[Values, Values]:
    """A tokenizer.json, and its config: BPE whose merges are the pairs of pieces that make a piece, the best first."""
    texts = ["<unk>", "<s>", "</s>", *(piece.replace(" ", "▁") for piece in pieces[3:])]
    ids = {text: index for index, text in enumerate(texts)}
    merges = [
        (index, (text[:cut], text[cut:]))
        for index, text in enumerate(texts[259:], start=259)
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    merges.sort(key=lambda merge: (-scores[merge[0]], ids[merge[1][0]], ids[merge[1][1]]))
    special = [{"id": i, "content": texts[i], "special": True, **dict.fromkeys(_NO_FLAGS, False)} for i in range(3)]
    document: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": [list(pair) for _, pair in merges],
        },
    }
    return document, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}


_NO_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
