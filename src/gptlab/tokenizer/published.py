"""Tokenizers that everybody knows by a name: OpenAI's encodings, through tiktoken, and those of the Hugging Face hub.

tiktoken and huggingface_hub fetch files once and keep them (`TIKTOKEN_CACHE_DIR`, `HF_HOME`): what is there needs no
network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gptlab.errors import DataError, option
from gptlab.tokenizer.core import END_OF_TEXT, Tokenizer
from gptlab.tokenizer.patterns import GPT2, GPT4, O200K

_PATTERNS = {
    "gpt2": GPT2,
    "r50k_base": GPT2,
    "p50k_base": GPT2,
    "p50k_edit": GPT2,
    "cl100k_base": GPT4,
    "o200k_base": O200K,
    "o200k_harmony": O200K,
}
"""How each cuts text, in the dialect that all engines of the house read alike."""

OPENAI = tuple(_PATTERNS)

HASHES = {
    "gpt2": "0c21b1d7e3aa5710",
    "r50k_base": "0c21b1d7e3aa5710",
    "p50k_base": "c4bc9d73b03ed3c1",
    "p50k_edit": "5827c6e791b1a666",
    "cl100k_base": "eacc044a8fbea320",
    "o200k_base": "a3063fe9139c036c",
    "o200k_harmony": "1933f27c6de97a1d",
}
"""`Tokenizer.hash` of each as published."""

_STOPS = {"o200k_harmony": ("<|return|>", "<|call|>")}  # what ends a turn of gpt-oss

_HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_HUB_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "encoder.json",
    "vocab.bpe",
]


def check_published(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, where it may have its name. Raises DataError where that belongs to another vocabulary."""
    if HASHES.get(tokenizer.name, tokenizer.hash) != tokenizer.hash:
        raise DataError(
            f"the name {tokenizer.name!r} belongs to another vocabulary than this, the one that OpenAI published; "
            f"choose another {option('name')}"
        )
    return tokenizer


def openai_tokenizer(encoding: str, name: str | None = None) -> Tokenizer:
    """OpenAI's `encoding` (one of `OPENAI`), called `name`, from tiktoken's cache or download.

    Raises DataError where it is neither cached nor can be downloaded.
    """
    import tiktoken_ext.openai_public as public  # type: ignore[import-untyped]

    try:
        content: dict[str, Any] = getattr(public, encoding)()
    except Exception as error:  # requests' and urllib3's, and tiktoken's own for a damaged file
        gpt2 = HASHES[encoding] == HASHES["gpt2"]
        files = f", or get encoder.json and vocab.bpe and run: gptlab tokenizer import FOLDER --name {encoding}"
        raise DataError(
            f"OpenAI's vocabulary {encoding} could not be downloaded by tiktoken ({type(error).__name__}); without "
            f"network, copy tiktoken's cache from where it is and set TIKTOKEN_CACHE_DIR{files if gpt2 else ''}"
        ) from None
    return vocabulary(
        name or encoding,
        content["mergeable_ranks"],
        content["special_tokens"],
        _PATTERNS[encoding],
        f"OpenAI's {encoding}, tiktoken's download",
        _STOPS.get(encoding, ()),
    )


def vocabulary(
    name: str,
    ranks: dict[bytes, int],
    special_tokens: dict[str, int],
    pattern: str,
    origin: str,
    stop_tokens: tuple[str, ...] = (),
) -> Tokenizer:
    """A tokenizer of `ranks` (token → id) and `special_tokens`.

    Of several special tokens with one id the first stays. An id that means nothing becomes the special token
    `<|reserved_ID|>`, as OpenAI itself calls such ids in o200k_harmony.
    """
    names: dict[int, str] = {}
    for text, index in special_tokens.items():
        names.setdefault(index, text)
    tokens = [b""] * (1 + max([*ranks.values(), *names]))
    for token, index in ranks.items():
        if not token or tokens[index] or index in names:
            raise DataError(f"{origin}: id {index} stands for two tokens or for none; get the file again")
        tokens[index] = token
    for index, token in enumerate(tokens):
        if not token:
            names.setdefault(index, f"<|reserved_{index}|>")
    specials = {text: index for index, text in names.items()}
    return Tokenizer(
        name,
        "bpe",
        tokens,
        specials,
        pattern=pattern,
        stop_tokens=stop_tokens,
        trained_on={"imported_from": origin},
    )


def gpt2_vocabulary(name: str, ranks: dict[bytes, int], origin: str) -> Tokenizer:
    """GPT-2's tokenizer from its `ranks`. Raises DataError where the ids are not 0, 1, 2, …"""
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"GPT-2's vocabulary from {origin}: the ids are not 0..{len(ranks) - 1}; download it again")
    return vocabulary(name, ranks, {END_OF_TEXT: len(ranks)}, GPT2, f"GPT-2, {origin}")


def is_hub_name(text: str) -> bool:
    """Whether `text` is a name of the hub (`owner/name`) rather than a path: nothing is there, nor is its folder."""
    path = Path(text)
    return re.fullmatch(_HUB_NAME, text) is not None and not path.exists() and not path.parent.is_dir()


def hub_folder(name: str) -> Path:
    """The folder with the tokenizer's files of the hub's model `name`: cached, or downloaded now.

    Raises DataError where the hub does not give it, or it holds no `tokenizer.json`.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(f"no folder {name}, and a tokenizer of the hub needs: pip install 'gptlab[hub]'") from None
    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises its own, requests' and httpx's
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"no folder {name}, and the hub does not give it ({type(error).__name__}: {reason}); check the name and the"
            " network (of a gated model: accept its terms and run `hf auth login`), or download its tokenizer.json and"
            " run: gptlab tokenizer import FOLDER"
        ) from None
    if not (folder / "tokenizer.json").is_file() and not (folder / "encoder.json").is_file():
        raise DataError(
            f"{name} of the hub holds no tokenizer.json; transformers makes one: "
            f"AutoTokenizer.from_pretrained({name!r}).save_pretrained('FOLDER'), then: gptlab tokenizer import FOLDER"
        )
    return folder
