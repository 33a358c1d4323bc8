"""GGUF, the file that llama.cpp reads: hyperparameters, tokenizer and weights in one.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the `gguf` package writes it, and
transformers reads it, quantized weights included.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptlab.console import say
from gptlab.errors import CheckpointError, option
from gptlab.interop.gpt2 import nanogpt_layout
from gptlab.interop.huggingface import fitting_architecture, huggingface_tensors, import_huggingface, token_ids
from gptlab.interop.llama import LLAMA, OLMO, OLMO2, QWEN2, QWEN3
from gptlab.interop.runs import new_folder, save_tensors
from gptlab.interop.table import Values
from gptlab.tokenizer import Tokenizer
from gptlab.tokenizer.byte_level import to_text
from gptlab.tokenizer.patterns import GPT2, GPT4

if TYPE_CHECKING:
    import gguf

    from gptlab.run import Run

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = "each digit, then GPT-2's"
CUTS = {
    GPT2: "gpt-2",
    GPT4: "llama-bpe",  # the same cuts, written for four engines (gptlab.tokenizer.patterns)
    _LLAMA3: "llama-bpe",
    _LLAMA3.replace("{1,3}", ""): "qwen2",
    _DIGITS: "smollm",
}
"""What llama.cpp calls a split pattern; it knows no others than those it was built with."""


def export_gguf(run: Run, folder: Path) -> Path:
    """Write `run` as `folder`/NAME.gguf in float32, and return the file.

    llama.cpp approximates GPT-2's GELU; where the run does not, that is said. Raises CheckpointError where the model is
    none that llama.cpp has, its positions or its tokenizer are not among llama.cpp's, the `gguf` package is missing, or
    the disk refuses.
    """
    try:
        import gguf
    except ImportError:
        raise CheckpointError("GGUF needs the gguf package: pip install 'gptlab[gguf]'") from None

    architecture, section = fitting_architecture(run, _KNOWN)  # Mistral is a Llama there
    if section["position"]["use"] not in ("RoPE", "Llama3RoPE", "Learned"):
        raise CheckpointError(
            f"{run.folder}: model.position is {section['position']['use']}; GGUF takes RoPE, Llama3RoPE and Learned "
            "from gptlab"
        )
    if section["block"]["attention"]["out_bias"] and architecture.name not in ("llama", "gpt2"):
        raise CheckpointError(
            f"{run.folder}: model.block.attention.out_bias is true, and llama.cpp's {architecture.name} adds none to "
            f"what attention gives; export it as {option('format', 'hf')}"
        )
    if section["block"]["mlp"].get("approximate") == "none":
        say("llama.cpp approximates the GELU that this model computes exactly: logits will differ in the third digit")
    vocabulary = tokenizer_fields(run.tokenizer, run.model.embedding.weight.shape[0])
    tensors = gguf_tensors(huggingface_tensors(run, architecture, section), architecture.name, section)
    with new_folder(folder) as aside:
        writer = gguf.GGUFWriter(aside / f"{run.folder.name}.gguf", architecture.name)
        _write_fields(writer, run, section, architecture.name)
        _write_tokenizer(writer, run.tokenizer, vocabulary)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / f"{run.folder.name}.gguf"


def import_gguf(path: Path, *, name: str, tokenizer: str | None = None, runs: Path = Path("runs")) -> Path:
    """Make a run folder `runs`/NAME-HASH of a `.gguf`, and return it; quantized weights become float32.

    `tokenizer`: name or folder of another than the file's own. Raises CheckpointError where the file is missing,
    damaged, of an architecture that transformers or gptlab does not have, or transformers is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}; check the path")
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("gguf") is None:
        raise CheckpointError("GGUF is read by transformers and gguf: pip install 'gptlab[gguf]'")
    with tempfile.TemporaryDirectory() as folder:
        try:
            _unpack(path, Path(folder), with_tokenizer=tokenizer is None)
        except Exception as error:  # a reader fed with junk raises whatever the junk asks for
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{path} cannot be read as GGUF ({type(error).__name__}: {reason})") from None
        return import_huggingface(folder, name=name, tokenizer=tokenizer, runs=runs, origin=path)


def _unpack(path: Path, folder: Path, *, with_tokenizer: bool) -> None:
    """Write what is in a `.gguf` as a folder of transformers, without its progress bars and advice."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    verbosity, given = logging.get_verbosity(), {"gguf_file": path.name}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path.parent.resolve()), **given, dtype=torch.float32)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # it was: these are float32
        model.config.save_pretrained(folder)
        left_out = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in left_out}
        save_tensors(tensors, folder / "model.safetensors")
        if with_tokenizer:
            AutoTokenizer.from_pretrained(str(path.parent.resolve()), **given).save_pretrained(folder)
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


_KNOWN = (LLAMA, QWEN2, QWEN3, OLMO, OLMO2, nanogpt_layout())


def _write_fields(writer: gguf.GGUFWriter, run: Run, section: Values, architecture: str) -> None:
    import gguf

    attention, head_dim = section["block"]["attention"], section["head_dim"]
    writer.add_name(run.config.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(run.model.embedding.weight.shape[0])
    writer.add_context_length(section["context_length"])
    writer.add_embedding_length(section["dim"])
    writer.add_block_count(section["layers"])
    writer.add_feed_forward_length(section["block"]["mlp"]["hidden"])
    writer.add_head_count(section["heads"])
    if section["norm"]["use"] == "RMSNorm":
        writer.add_layer_norm_rms_eps(section["norm"]["eps"])
    else:
        writer.add_layer_norm_eps(section["norm"]["eps"])
    if architecture == "gpt2":
        return
    writer.add_head_count_kv(attention["kv_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(section["position"]["theta"])


# ---------------------------------------------------------------- tensors


def gguf_tensors(tensors: Mapping[str, Tensor], architecture: str, section: Values) -> dict[str, Tensor]:
    """Hugging Face's tensors under GGUF's names.

    llama.cpp turns neighbours (2i, 2i + 1) of a head of Llama or OLMo, where Hugging Face and gptlab turn halves (i,
    i + C/2), so that its rows of queries and keys stand in another order; those of the others do not.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], section["layers"])
    heads = {"q_proj": section["heads"], "k_proj": section["block"]["attention"]["kv_heads"]}
    found: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        part = theirs.split(".")[-2]
        turned = architecture in ("llama", "olmo") and part in heads
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"GGUF's {architecture} has no name for {theirs}"
        found[name] = interleave(tensor, heads[part]) if turned else tensor
    if architecture == "olmo2":  # llama.cpp takes no tied head of an OLMo 2
        found.setdefault("output.weight", found["token_embd.weight"])
    if section["position"]["use"] == "Llama3RoPE":
        found["rope_freqs.weight"] = rope_factors(section)
    return found


def interleave(rows: Tensor, heads: int) -> Tensor:
    """Rows of heads from halves to neighbours: (H·C, …) → (H·C, …), row i + jC/2 of a head to 2i + j."""
    width = rows.shape[0] // heads
    return rows.view(heads, 2, width // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rope_factors(section: Values) -> Tensor:
    """What llama.cpp divides the frequency of each pair by, (C/2,), from Llama 3.1's rule (see `Llama3RoPE`)."""
    position, width = section["position"], section["head_dim"]
    frequency = position["theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = position["original_length"] * frequency / (2 * torch.pi)
    low, high = position["low_frequency"], position["high_frequency"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / (kept + (1 - kept) / position["factor"])).float()


# ---------------------------------------------------------------- tokenizer


def tokenizer_fields(tokenizer: Tokenizer, rows: int) -> Values:
    """`tokens`, `types` and `merges` of a byte-level BPE, and `pre`, llama.cpp's name for its split pattern.

    Ids beyond the tokenizer's are marked as unused. Raises CheckpointError where llama.cpp has no such tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer")
        document = json.loads((Path(folder) / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    model = document["model"]
    odd = model["type"] != "BPE" or model.get("byte_fallback") or document.get("normalizer") is not None
    pattern = None if odd else _pattern(document["pre_tokenizer"])
    if pattern is None or (model["merges"] and pattern not in CUTS):
        raise CheckpointError(
            f"tokenizer {tokenizer.name} ({tokenizer.kind}) cannot go into GGUF: llama.cpp knows byte-level BPE whose "
            f"split pattern is that of {', '.join(dict.fromkeys(CUTS.values()))}"
        )
    import gguf

    special = {token["id"] for token in document["added_tokens"] if token["special"]}
    by_id = {index: text for text, index in model["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in document["added_tokens"]}
    tokens = [by_id.get(index, f"[unused {index}]") for index in range(rows)]
    kind = gguf.TokenType
    types = [kind.UNUSED if i not in by_id else kind.CONTROL if i in special else kind.NORMAL for i in range(rows)]
    # llama.cpp loads no vocabulary without merges. Two bytes 0 make no token, and stay two bytes 0.
    nothing = to_text(b"\0")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"] or [[nothing, nothing]]]
    return {"tokens": tokens, "types": types, "merges": merges, "pre": CUTS.get(pattern, "gpt-2")}


def _pattern(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The split pattern of a byte-level pre-tokenizer, "" where it cuts nothing; None where it is another kind."""
    if pre_tokenizer is None:
        return None
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *cuts, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(cuts) > 1:
        return None
    if not cuts:
        return GPT2 if last.get("use_regex", True) else ""
    if cuts[0]["type"] == "Digits":
        return _DIGITS if cuts[0]["individual_digits"] and last.get("use_regex", True) else None
    return str(cuts[0]["pattern"].get("Regex")) if cuts[0]["type"] == "Split" else None


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocabulary: Values) -> None:
    writer.add_tokenizer_model("gpt2")  # GGUF's word for byte-level BPE
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    ids = token_ids(tokenizer)
    writer.add_bos_token_id(ids["bos_token_id"])
    writer.add_eos_token_id(ids["eos_token_id"])
    if "pad_token_id" in ids:
        writer.add_pad_token_id(ids["pad_token_id"])
    if (unknown := tokenizer.named_token("unk_token")) is not None:
        writer.add_unk_token_id(tokenizer.special_tokens[unknown])
    writer.add_add_bos_token(tokenizer.adds_bos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
