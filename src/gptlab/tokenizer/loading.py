"""Finding a tokenizer by name, and reading the folder that `Tokenizer.save` wrote."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from gptlab.errors import DataError, did_you_mean
from gptlab.files import not_a_folder, settle
from gptlab.seal import unsealed
from gptlab.tokenizer.byte_level import from_text
from gptlab.tokenizer.core import Tokenizer, byte_tokenizer
from gptlab.tokenizer.formats import Roles, huggingface_tokenizer, import_tokenizer, read_json, read_text
from gptlab.tokenizer.published import OPENAI, check_published, is_hub_name, openai_tokenizer
from gptlab.tokenizer.saving import META_FORMAT, description

_BUILT_IN = ("byte", *OPENAI)


def load_tokenizer(name_or_path: str | Path, *, root: Path = Path("tokenizers")) -> Tokenizer:
    """The tokenizer called `name_or_path`: a NAME under `root`, "byte", an OpenAI encoding ("gpt2", "cl100k_base", …),
    a name of the Hugging Face hub ("owner/name"), or the path of a tokenizer folder.

    "gpt2" is `root`/gpt2 where that was imported, otherwise tiktoken's download of OpenAI's files; so the other
    encodings. A folder is checked against its `meta.json`. Raises DataError where there is none, or it is damaged.
    """
    text = str(name_or_path)
    is_name = isinstance(name_or_path, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None
    settle(root / text if is_name else Path(text))
    if is_name and (root / text).is_dir():
        return _named(load_folder(root / text), text, root)
    if is_name and text == "byte":
        return byte_tokenizer()
    if is_name and text in OPENAI and not Path(text).exists():
        return openai_tokenizer(text)
    if isinstance(name_or_path, str) and is_hub_name(text):
        return import_tokenizer(text, name=text.rpartition("/")[2])
    if Path(text).is_dir():
        return load_folder(Path(text))
    known = {*_BUILT_IN, *(entry.name for entry in root.glob("[!.]*/") if (entry / "meta.json").is_file())}
    if is_name and not Path(text).exists():
        raise DataError(f"no tokenizer {text!r} under {root}: {did_you_mean(text, known)}")
    return load_folder(Path(text))


def load_folder(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to `folder`. Raises DataError where it is missing or damaged."""
    if not (folder / "meta.json").is_file():
        foreign = folder.is_file() or any((folder / name).is_file() for name in ("tokenizer.json", "encoder.json"))
        mend = (
            f"bring one in with: gptlab tokenizer import {folder} --name NAME"
            if foreign
            else "make one with: gptlab tokenizer train --name NAME …"
        )
        raise DataError(f"{not_a_folder(folder, 'a tokenizer of gptlab', 'meta.json')}; {mend}")
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != META_FORMAT:
        raise DataError(f"{folder / 'meta.json'}: not a meta.json of format {META_FORMAT} of gptlab")
    try:
        unsealed(meta)
    except ValueError as problem:
        raise DataError(
            f"{folder / 'meta.json'}: {problem}; restore it, or train or import the tokenizer again"
        ) from None
    content = read_text(folder / "tokenizer.json")
    damaged = f"tokenizer folder {folder} is damaged: "
    mend = "; train or import it again"
    if hashlib.sha256(content.encode("utf-8")).hexdigest() != meta.get("tokenizer_json_sha256"):
        raise DataError(f"{damaged}tokenizer.json does not match the checksum in meta.json{mend}")
    try:
        tokenizer = _from_own_json(meta, content)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{damaged}{type(error).__name__} in its files ({error}){mend}") from error
    if tokenizer.hash != meta.get("hash"):
        raise DataError(f"{damaged}its ids hash to {tokenizer.hash}, meta.json says {meta.get('hash')}{mend}")
    for key, is_so in description(tokenizer).items():
        if meta.get(key) != is_so:
            raise DataError(
                f"{damaged}meta.json says {key} {_short(meta.get(key))}, and tokenizer.json has {_short(is_so)}{mend}"
            )
    return _named(tokenizer, tokenizer.name, folder)


def _named(tokenizer: Tokenizer, name: str, place: Path) -> Tokenizer:
    """`tokenizer`, where it may be called `name`. Raises DataError where its folder says another, or it is taken."""
    if tokenizer.name != name:
        raise DataError(
            f"{place / name / 'meta.json'} calls its tokenizer {tokenizer.name!r}; give the folder that name, or name "
            f"it by its path: ./{place / name}"
        )
    if name == "byte" and tokenizer.kind != "byte":
        raise DataError(f"{place}: the name {name!r} belongs to another vocabulary than this; import it by another")
    # Of the other encodings an older gptlab may have written another reading (a tokenizer.json's special tokens).
    return check_published(tokenizer) if name == "gpt2" else tokenizer


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _from_own_json(meta: dict[str, Any], content: str) -> Tokenizer:
    if not isinstance(meta["name"], str):
        raise TypeError(f"name is {meta['name']!r}")
    kind, specials = meta["kind"], {str(text): int(index) for text, index in meta["special_tokens"].items()}
    config = meta.get("tokenizer_config", {})
    if not isinstance(config, dict):
        raise TypeError(f"tokenizer_config is {type(config).__name__}")
    roles = Roles(meta["end_of_text"], meta.get("document_end"), tuple(meta.get("stop_tokens", ())))
    if kind == "hf":
        return huggingface_tokenizer(meta["name"], content, roles, meta["trained_on"], config)
    vocabulary: dict[str, int] = json.loads(content)["model"]["vocab"]
    tokens = [b""] * len(vocabulary)
    for text, index in vocabulary.items():
        if text not in specials:
            token = text.encode("utf-8") if kind == "char" else from_text(text)
            if token is None:
                raise ValueError(f"token {text!r} is not written in the byte alphabet")
            tokens[index] = token
    return Tokenizer(
        meta["name"],
        kind,
        tokens,
        specials,
        **roles.arguments(),
        config=config,
        pattern=meta["pattern"],
        trained_on=meta["trained_on"],
    )
