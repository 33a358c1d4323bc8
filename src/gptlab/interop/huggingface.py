"""Folders of Hugging Face `transformers`, in and out: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import CheckpointError, option
from gptlab.files import not_a_folder
from gptlab.interop.gemma import GEMMA2, GEMMA3
from gptlab.interop.gpt2 import GPT2
from gptlab.interop.llama import LLAMA, MISTRAL, OLMO, OLMO2, PHI3, QWEN2, QWEN3, SMOLLM3
from gptlab.interop.runs import (
    NamedTensors,
    check_sizes,
    check_tensors,
    convert_tensors,
    import_record,
    new_folder,
    row_counts,
    run_config,
    save_tensors,
    write_run,
)
from gptlab.interop.table import Architecture, Values, neutral_tensor, with_computed_sizes
from gptlab.interop.tensors import TensorFiles
from gptlab.model import build_model
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer, import_tokenizer, load_tokenizer

_ALL = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, OLMO, OLMO2, PHI3, GEMMA2, GEMMA3, SMOLLM3)
ARCHITECTURES = {each.name: each for each in _ALL}
"""What can be imported and exported, by the `model_type` of config.json."""
_GPT2_VOCABULARY = 50257
GENERATION = "generation_config.json"
_BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", GENERATION)


class NoArchitecture(CheckpointError):
    """No architecture of others has the parts of a model."""


# ---------------------------------------------------------------- in


def import_huggingface(
    source: str | Path,
    *,
    name: str,
    tokenizer: str | None = None,
    end_of_text: str | None = None,
    document_end: str | None = None,
    stop: Sequence[str] = (),
    runs: Path = Path("runs"),
    origin: Path | None = None,
) -> Path:
    """Make a run folder `runs`/NAME-HASH of the weights in `source`, and return it.

    Args:
        source: a folder with config.json and weights, or the name of a model on the Hugging Face hub.
        name: of the run.
        tokenizer: name or folder of the tokenizer, where none is beside the weights or another is wanted.
        end_of_text, document_end: the tokens before and after every document; None: as the tokenizer's files say.
        stop: more tokens that end what is generated, besides these and what the files say.
        runs: the folder for the run's folder.
        origin: the file that `source` was made of, where it was.

    Raises GptlabError where anything is missing, damaged, unknown, or does not fit; then nothing is written.
    """
    folder = _folder(source)
    theirs = _read_config(folder / "config.json")
    where = str(folder / "config.json")
    architecture = _architecture(theirs, where)
    files = TensorFiles(folder)
    section = architecture.model_section(theirs, where)
    rows = theirs.get("vocab_size")
    if not isinstance(rows, int) or isinstance(rows, bool):
        raise CheckpointError(f"{where} does not say vocab_size, or not as a number")
    check_sizes(architecture, section, rows, files.shapes, where)
    roles = {"end_of_text": end_of_text, "document_end": document_end, "stop": stop}
    found = _tokenizer(folder, theirs, name, tokenizer, roles)
    config = run_config(name, section, rows, found, where)
    model = build_model(config, found.vocab_size, device="meta")
    tensors = NamedTensors(architecture, files, files.shapes, tied=section["tied"])
    check_tensors(architecture, model, section, tensors.shapes, str(folder))
    revision = folder.name if folder != Path(source) else None  # the hub's snapshots are folders named by their commit
    used = [folder / "config.json", *files.files] if origin is None else [origin]
    record = import_record(origin or source, used, architecture=architecture.name, revision=revision)
    beside = {GENERATION: (folder / GENERATION).read_bytes()} if (folder / GENERATION).is_file() else {}
    return write_run(name, config, convert_tensors(architecture, section, tensors), found, record, runs, beside)


def _folder(source: str | Path) -> Path:
    """The folder that `source` is or that the hub gives for it."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CheckpointError(
            f"{not_a_folder(folder, 'a Hugging Face folder', 'config.json')}; give one that holds config.json and "
            "weights, a nanoGPT ckpt.pt, or a model of the hub (owner/name)"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(f"no folder {source}, and a model of the hub needs: pip install 'gptlab[hub]'") from None
    try:
        place = Path(
            snapshot_download(str(source), allow_patterns=[*_BESIDE, "*.safetensors", "*.safetensors.index.json"])
        )
        if not any(place.glob("*.safetensors")):
            snapshot_download(str(source), allow_patterns=[*_BESIDE, "*.bin", "*.bin.index.json"])
        return place
    except Exception as error:  # the hub's client raises its own, requests' and httpx's
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"no folder {source}, and the hub does not give it ({type(error).__name__}: {reason}); "
            "check the name and the network, or download it and name the folder"
        ) from None


def _read_config(path: Path) -> Values:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no Hugging Face folder: it holds no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no config: it is not a table of names and values")
    return content


def _architecture(theirs: Values, where: str) -> Architecture:
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)  # and no guess at one of like name: that would be another model
        raise CheckpointError(
            f"{where}: architecture {kind if kind is None else str(kind)[:60]!r} is not known; known are {known}"
        )
    return ARCHITECTURES[kind]


def _tokenizer(folder: Path, theirs: Values, name: str, chosen: str | None, roles: Mapping[str, Any]) -> Tokenizer:
    """The one that was asked for, the one beside the weights, or GPT-2's for a model that can only have that."""
    new_name = f"{name}-tokenizer"
    place = Path(chosen) if chosen is not None else folder
    holds_theirs = (place / "tokenizer.json").is_file() or (place.is_file() and place.suffix == ".json")
    if holds_theirs and not (place / "meta.json").is_file():
        return import_tokenizer(str(place), name=new_name, **roles)
    if given := next((role for role, value in roles.items() if value), None):
        raise CheckpointError(
            f"{option(given)} is for a tokenizer.json of others, and {chosen or folder} has a tokenizer of gptlab, "
            "which says it itself; leave it out"
        )
    if (place / "meta.json").is_file() and chosen is None:
        return load_tokenizer(place)
    if chosen is not None:
        return load_tokenizer(chosen)
    if theirs["model_type"] == "gpt2" and theirs.get("vocab_size") == _GPT2_VOCABULARY:
        return load_tokenizer("gpt2")
    hint = " (tokenizer.model is SentencePiece's; transformers turns it into tokenizer.json)"
    raise CheckpointError(
        f"{folder} holds no tokenizer.json{hint if (folder / 'tokenizer.model').is_file() else ''}; "
        f"name the model's tokenizer: {option('tokenizer', 'NAME_OR_FOLDER')}"
    )


# ---------------------------------------------------------------- out


def export_huggingface(run: Run, folder: Path) -> Path:
    """Write `run` as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; return it.

    Logits and token ids are equal. Raises CheckpointError where transformers has no class for a part of the model,
    where the folder holds something already, or the disk refuses.
    """
    architecture, section = fitting_architecture(run)
    config = huggingface_config(run, architecture, section)
    tensors = {name: tensor.contiguous() for name, tensor in huggingface_tensors(run, architecture, section).items()}
    return write_folder(run, folder, config, tensors, {})


def write_folder(
    run: Run, folder: Path, config: Values, tensors: Mapping[str, Tensor], texts: Mapping[str, str]
) -> Path:
    """Write a folder for transformers in one step: weights, config.json, the run's tokenizer, and `texts` by name."""
    with new_folder(folder) as aside:
        run.tokenizer.save(aside / "tokenizer", for_others=True)
        for file in (aside / "tokenizer").iterdir():
            file.rename(aside / file.name)
        (aside / "tokenizer").rmdir()
        if (run.folder / GENERATION).is_file():
            (aside / GENERATION).write_bytes((run.folder / GENERATION).read_bytes())
        save_tensors(tensors, aside / "model.safetensors")
        for name, text in {"config.json": json.dumps(config, indent=2) + "\n", **texts}.items():
            (aside / name).write_text(text, encoding="utf-8")
    return folder


def fitting_architecture(
    run: Run, among: tuple[Architecture, ...] = tuple(ARCHITECTURES.values())
) -> tuple[Architecture, Values]:
    """The architecture that a run's model is of, with its `model` section written out.

    Raises CheckpointError naming the parts that stand in the way of the one that comes closest.
    """
    if run.config.model.use != "GPT":
        raise NoArchitecture(f"{run.folder} cannot be exported: model is {run.config.model.use}, a class of your own")
    section = with_computed_sizes(run.config.model.plain(), run.config.train.sequence_length)
    found = [(architecture.mismatches(section), architecture) for architecture in among]
    came_as = _imported_as(run.folder)  # of two that fit, as which it came: Mistral without a window is a Llama, too
    obstacles, closest = min(found, key=lambda pair: (len(pair[0]), pair[1].name != came_as))
    if not obstacles:
        return closest, section
    parts = ", ".join(f"model.{key} is {_short(here)} (there: {_short(there)})" for key, here, there in obstacles[:4])
    raise NoArchitecture(
        f"{run.folder} cannot be exported: no known architecture has its parts; {closest.name} comes closest, but "
        f"{parts}"
    )


def _imported_as(folder: Path) -> str | None:
    """The architecture that a run was imported as, from its env.json; None for one that was trained here."""
    try:
        sessions = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        return str(sessions[0]["imported"]["architecture"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def huggingface_config(run: Run, architecture: Architecture, section: Values) -> Values:
    """config.json."""
    rows = run.model.embedding.weight.shape[0]
    no_pad = {"pad_token_id": None}  # a class of transformers may have one of its own, beyond the ids that there are
    return architecture.to_config_json(section, rows) | no_pad | token_ids(run.tokenizer) | {"torch_dtype": "float32"}


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the tokens that have a role: `bos_token_id`, `eos_token_id`, and `pad_token_id` where there is one."""
    named = {role: tokenizer.named_token(f"{role}_token") for role in ("bos", "eos", "pad")}
    return {f"{role}_token_id": tokenizer.special_tokens[text] for role, text in named.items() if text is not None}


def huggingface_tensors(run: Run, architecture: Architecture, section: Values) -> dict[str, Tensor]:
    """The weights under the architecture's names; parts that ours lacks as what they do, zeros or ones."""
    own = {name: p.detach().float().cpu() for name, p in run.model.named_parameters()}
    found: dict[str, Tensor] = {}
    for ours, theirs, row, kind in architecture.names(section):
        tensor = own.pop(ours, None)
        if tensor is None:
            tensor = neutral_tensor(ours, _like(run, ours, kind))
        tensor = tensor - row.more if row.more else tensor
        pieces = tensor.split(row_counts(tensor.shape[0], len(theirs), run.model))
        for name, piece in zip(theirs, pieces, strict=True):
            piece = piece.t() if row.turned and piece.ndim == 2 else piece
            found[name] = torch.cat((found[name], piece)) if row.part[0] else piece
    if own:
        raise AssertionError(f"the table of {architecture.name} has no place for {sorted(own)[0]}")
    return found


def _like(run: Run, name: str, kind: str) -> Tensor:
    """A tensor of the shape that a missing gain or bias would have."""
    module = run.model.get_submodule(name.removesuffix(f".{kind}"))
    return torch.empty(module.out_features if hasattr(module, "out_features") else module.dim)


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "use" in value:
        return str(value["use"])
    return "null" if value is None else str(value)
