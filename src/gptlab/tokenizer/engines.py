"""The engines that encode ordinary text, one for each kind of tokenizer.

* `bpe`: tiktoken. A token's id is its merge rank; ids of special tokens are gaps in the ranks, which tiktoken allows.
* `byte`, `char`: NumPy look-ups.
* `hf`: Hugging Face's `tokenizers`, for a `tokenizer.json` that tiktoken cannot express (see `formats`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from gptlab.errors import DataError
from gptlab.tokenizer.patterns import cut_long_whitespace

if TYPE_CHECKING:
    import tokenizers


class Engine(Protocol):
    """Turns ordinary text (no special tokens) into ids, and any ids into bytes."""

    def encode(self, text: str) -> list[int]: ...

    def encode_array(self, text: str) -> npt.NDArray[Any]: ...

    def decode_bytes(self, ids: list[int]) -> bytes: ...


class BpeEngine:
    def __init__(self, tokens: list[bytes], special_tokens: dict[str, int], pattern: str) -> None:
        import tiktoken

        specials = set(special_tokens.values())
        ranks = {token: index for index, token in enumerate(tokens) if index not in specials}
        self._encoding = tiktoken.Encoding(
            "gptlab", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )
        self.decode_bytes = self._encoding.decode_bytes

    def encode(self, text: str) -> list[int]:
        return list(self.encode_array(text).tolist())

    def encode_array(self, text: str) -> npt.NDArray[Any]:
        pieces = cut_long_whitespace(text)
        if len(pieces) > 1:
            return np.concatenate([self.encode_array(piece) for piece in pieces])
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:
            if not (is_rust_panic(error) or (isinstance(error, ValueError) and "Regex" in str(error))):
                raise
            raise DataError(
                f"the split pattern gives up on a text of {len(text):,} characters that starts {text[:40]!r}:"
                f" {error}; cut the text, or use a pattern with less backtracking"
            ) from None


class ByteEngine:
    def __init__(self, tokens: list[bytes], special_tokens: dict[str, int]) -> None:
        self._table = list(tokens)
        for text, index in special_tokens.items():
            self._table[index] = text.encode("utf-8")

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_array(self, text: str) -> npt.NDArray[Any]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode_bytes(self, ids: list[int]) -> bytes:
        if max(ids, default=0) < 256:
            return bytes(ids)
        return b"".join(map(self._table.__getitem__, ids))


class CharEngine:
    def __init__(self, tokens: list[bytes], special_tokens: dict[str, int]) -> None:
        self._table = list(tokens)
        for text, index in special_tokens.items():
            self._table[index] = text.encode("utf-8")
        specials = set(special_tokens.values())
        characters = [token.decode("utf-8") for i, token in enumerate(tokens) if i not in specials]
        codes = np.array([ord(character) for character in characters], dtype=np.int64)
        self._ids = np.full(int(codes.max()) + 1, -1, dtype=np.int64)
        self._ids[codes] = [i for i in range(len(tokens)) if i not in specials]

    def encode(self, text: str) -> list[int]:
        return list(self.encode_array(text).tolist())

    def encode_array(self, text: str) -> npt.NDArray[Any]:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        inside = codes < len(self._ids)
        ids = self._ids[np.where(inside, codes, 0)]
        unknown = ~inside | (ids < 0)
        if unknown.any():
            position = int(unknown.argmax())
            character = text[position]
            raise DataError(
                f"character {character!r} (U+{ord(character):04X}) at position {position:,} is not in the"
                " char tokenizer; train it on text that has it, or use a bpe or byte tokenizer"
            )
        return ids

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(map(self._table.__getitem__, ids))


BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""How SentencePiece writes a token that stands for a byte."""


class HuggingFaceEngine:
    """Hugging Face's `tokenizers`. Two of them: many files list their special tokens among the ordinary ones too, so
    that the model itself finds them in plain text; the one that encodes knows them by names that no text has."""

    def __init__(self, hf_json: str, special_tokens: dict[str, int]) -> None:
        import tokenizers

        self._decoder: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(hf_json)
        hidden = _hide_specials(json.loads(hf_json), special_tokens)
        self._encoder: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(json.dumps(hidden))
        self._encoder.no_padding()
        self._encoder.no_truncation()
        self._document = json.loads(hf_json)

    def encode(self, text: str) -> list[int]:
        text.encode("utf-8")  # raises where the engine would only say TypeError
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def encode_array(self, text: str) -> npt.NDArray[Any]:
        return np.array(self.encode(text), dtype=np.uint32)

    def decode_bytes(self, ids: list[int]) -> bytes:
        text: str = self._decoder.decode(ids, skip_special_tokens=False)
        return text.encode("utf-8")

    def pieces(self, written: list[bytes]) -> list[bytes]:
        """What each id adds to a text that goes on, by id; `written`: as the file's vocabulary writes them.

        A decoder treats the first token of a text in ways of its own (drops its blank, say), so each is decoded behind
        an ordinary one. Tokens that stand for bytes are those bytes: alone they may be no text.
        """
        document = self._document
        if '"ByteLevel"' in json.dumps([document.get("decoder"), document.get("pre_tokenizer")]):
            return written
        if suffix := document["model"].get("end_of_word_suffix"):
            return [token.replace(suffix.encode("utf-8"), b" ") for token in written]
        anchor = self._anchor()
        if anchor is None:
            return written
        before = len(self._decoder.decode([anchor], skip_special_tokens=False))
        names = [self._decoder.id_to_token(index) or "" for index in range(len(written))]
        asked = [i for i, name in enumerate(names) if written[i] and not BYTE_TOKEN.fullmatch(name)]
        decoded = self._decoder.decode_batch([[anchor, index] for index in asked], skip_special_tokens=False)
        found = [bytes([int(n[3:5], 16)]) if BYTE_TOKEN.fullmatch(n) else b"" for n in names]  # special or not
        for index, text in zip(asked, decoded, strict=True):
            found[index] = text[before:].encode("utf-8")
        return found

    def adds_blank(self, pieces: list[bytes]) -> bool:
        """Whether a text begins with a blank in its first token that is not the text's own."""
        anchor = self._anchor()
        word = "" if anchor is None else self._decoder.decode([anchor], skip_special_tokens=False)
        return b"".join(pieces[index] for index in self.encode(word)).startswith(b" ")

    def _anchor(self) -> int | None:
        """An ordinary word of the vocabulary that stays as it is when another follows."""
        vocabulary = self._decoder.get_vocab(with_added_tokens=False)
        for text, index in sorted(vocabulary.items(), key=lambda item: item[1]):
            word = text.lstrip("▁")
            if word.isascii() and word.isalpha():
                alone = self._decoder.decode([index], skip_special_tokens=False)
                if alone == word and self._decoder.decode([index, index], skip_special_tokens=False).startswith(word):
                    return index
        return None


def _hide_specials(document: dict[str, Any], special_tokens: dict[str, int]) -> dict[str, Any]:
    """A `tokenizer.json` with each special token under another name, but under the same id."""
    names = {  # but not of tokens that stand for bytes: the model itself looks for these, wherever they are declared
        text: f"\ue000special {index}\ue001" for text, index in special_tokens.items() if not BYTE_TOKEN.fullmatch(text)
    }
    model = document["model"]
    for token in document["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): index for text, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    document["post_processor"] = None  # it adds special tokens, by their names; nothing here asks for that
    return document


def is_rust_panic(error: BaseException) -> bool:
    """Whether `error` is a panic inside a Rust extension: pyo3 makes it a BaseException of a class nobody exports."""
    return type(error).__name__ == "PanicException"
