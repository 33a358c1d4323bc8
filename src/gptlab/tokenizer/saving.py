"""The files of a tokenizer folder.

* `tokenizer.json`: the tokenizer in the format of Hugging Face `tokenizers`; `transformers` reads the same ids from it;
* `tokenizer_config.json`: tells `transformers` the class, the first and the last token, and what the source said;
* `merges.txt` (kind "bpe"): the merges in order, to read, in the format of GPT-2's `vocab.bpe`;
* `meta.json`: name, kind, pattern, special tokens, what it was trained on, and two checksums: `hash` over what decides
  the ids, and SHA-256 of `tokenizer.json`.

Bytes are written in JSON as GPT-2 writes them: each of the 256 as one printable character (`byte_level.byte_alphabet`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from gptlab.errors import DataError
from gptlab.files import atomic_folder
from gptlab.seal import sealed_json
from gptlab.tokenizer.byte_level import recover_merges, to_text
from gptlab.version import __version__

META_FORMAT = 1


class TokenizerData(Protocol):
    """What of a tokenizer is written; `core.Tokenizer` says what each attribute means."""

    name: str
    kind: str
    vocab_size: int
    pattern: str | None
    special_tokens: dict[str, int]
    end_of_text_token: str
    document_end_token: str | None
    stop_tokens: tuple[str, ...]
    config: dict[str, Any]
    hash: str
    hf_json: str | None
    trained_on: dict[str, Any]

    def token_bytes(self) -> list[bytes]: ...

    @property
    def adds_bos(self) -> bool: ...

    def named_token(self, role: str) -> str | None: ...


def save_tokenizer(tokenizer: TokenizerData, folder: Path, *, for_others: bool = False) -> None:
    """Write `tokenizer`'s folder atomically, in place of one that is there. See `Tokenizer.save`."""
    merges = None
    if tokenizer.kind == "bpe":
        merges = recover_merges(tokenizer.token_bytes())
        if merges is None:
            raise DataError(
                f"tokenizer {tokenizer.name!r} cannot be written as merges: some of its tokens are not a"
                " merge of two earlier ones"
            )
    config = _transformers_config(tokenizer)
    document = {} if tokenizer.hf_json else _hf_document(tokenizer, merges)
    if for_others:
        config["add_bos_token"] = tokenizer.adds_bos
        document["post_processor"] = _template(tokenizer, config)
    content = tokenizer.hf_json or json.dumps(document, ensure_ascii=False, indent=1)
    meta = {
        "format": META_FORMAT,
        **description(tokenizer),
        "tokenizer_json_sha256": hashlib.sha256(content.encode("utf-8")).hexdigest(),
        "trained_on": tokenizer.trained_on,
        **({"tokenizer_config": tokenizer.config} if tokenizer.config else {}),
        "written_by": f"gptlab {__version__}",
    }
    with atomic_folder(folder) as aside:
        (aside / "tokenizer.json").write_bytes(content.encode("utf-8"))
        (aside / "tokenizer_config.json").write_text(
            json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if merges is not None:
            written = [to_text(token) for token in tokenizer.token_bytes()]
            lines = ["#version: 0.2", *(f"{written[left]} {written[right]}" for left, right in merges)]
            (aside / "merges.txt").write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
        (aside / "meta.json").write_text(sealed_json(meta), encoding="utf-8")


def _transformers_config(tokenizer: TokenizerData) -> dict[str, Any]:
    """`tokenizer_config.json`: what the source said, with a first and a last token whatever it said."""
    return {
        **tokenizer.config,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{r: token for r in ("bos_token", "eos_token") if (token := tokenizer.named_token(r)) is not None},
        "clean_up_tokenization_spaces": False,
    }


def _template(tokenizer: TokenizerData, config: dict[str, Any]) -> dict[str, Any] | None:
    """The post-processor that puts the first token before a text (and the last after it), where `config` says so;
    transformers 5 reads `add_bos_token` of none but its own classes."""
    roles = [role for role in ("bos_token", "eos_token") if config.get(f"add_{role}") and role in config]
    if not roles:
        return None

    def piece(role: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": config[role], "type_id": 0}}

    def text(name: str) -> list[dict[str, Any]]:
        sequence = {"Sequence": {"id": name, "type_id": 0}}
        return [
            *(piece(r) for r in roles if r == "bos_token"),
            sequence,
            *(piece(r) for r in roles if r == "eos_token"),
        ]

    ids = {config[role]: tokenizer.special_tokens[config[role]] for role in roles}
    return {
        "type": "TemplateProcessing",
        "single": text("A"),
        "pair": text("A") + text("B"),
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in ids.items()},
    }


def description(tokenizer: TokenizerData) -> dict[str, Any]:
    """What `meta.json` says of a tokenizer that can be held against the tokenizer itself."""
    newer: dict[str, Any] = {}  # what a folder of 0.3 does not have
    if tokenizer.document_end_token is not None:
        newer["document_end"] = tokenizer.document_end_token
    if tokenizer.stop_tokens:
        newer["stop_tokens"] = list(tokenizer.stop_tokens)
    return newer | {
        "name": tokenizer.name,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "pattern": tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "end_of_text": tokenizer.end_of_text_token,
        "hash": tokenizer.hash,
    }


def _hf_document(tokenizer: TokenizerData, merges: list[tuple[int, int]] | None) -> dict[str, Any]:
    """`tokenizer` as a `tokenizer.json`. Special tokens are in the model's vocabulary too: only so do they keep their
    ids when later merges have larger ones."""
    specials = tokenizer.special_tokens
    names = {index: text for text, index in specials.items()}
    tokens = tokenizer.token_bytes()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if tokenizer.kind == "char":
        written = [token.decode("utf-8") for token in tokens]
        split: dict[str, Any] = {"Regex": "[\\s\\S]"}
        pre_tokenizer = {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False}
        decoder: dict[str, Any] = {"type": "Fuse"}
    else:
        written = [to_text(token) for token in tokens]
        pre_tokenizer = byte_level
        if tokenizer.pattern is not None:
            split = {"Regex": tokenizer.pattern}
            cut = {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False}
            pre_tokenizer = {"type": "Sequence", "pretokenizers": [cut, byte_level]}
        decoder = byte_level
    vocabulary = {names.get(index, text): index for index, text in enumerate(written)}
    if len(vocabulary) != len(tokens):
        clash = next(text for text, index in specials.items() if vocabulary[text] != index or text in written)
        raise DataError(f"special token {clash!r} is also an ordinary token; choose another text for it")
    if tokenizer.kind == "char":
        model: dict[str, Any] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": ""}
    else:
        pairs = [[written[left], written[right]] for left, right in merges or []]
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": pairs,
        }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": text, **flags} for text, index in specials.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
