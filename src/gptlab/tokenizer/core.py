"""The `Tokenizer` class, and how one is made.

A tokenizer is data (token bytes, `pattern`, `special_tokens`) and an engine chosen by its kind (`engines`).

Special tokens are never handed to an engine: where they are asked for, the text is cut at them first (leftmost,
longest), so all kinds treat them alike.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gptlab.errors import DataError, did_you_mean, option
from gptlab.tokenizer.engines import BpeEngine, ByteEngine, CharEngine, Engine, HuggingFaceEngine
from gptlab.tokenizer.saving import save_tokenizer

END_OF_TEXT = "<|endoftext|>"
"""The document separator, in GPT-2's spelling."""

SpecialPolicy = bool | str | Collection[str]
"""What becomes of special tokens in a text: "all" (or True) are read as such, "none" (or False) is, "raise" refuses a
text that has one; a set of special tokens reads these and takes the others as text, and one with "raise" in it reads
these and refuses the others (which is tiktoken's own way with a set)."""

_POLICIES = ("all", "none", "raise")

_Result = TypeVar("_Result")


class Tokenizer:
    """Text to ids and back; ids are `0..vocab_size-1`.

    Made by `load_tokenizer`, `training`, `byte_tokenizer` or `char_tokenizer` rather than by calling the class.

    Attributes:
        name: what the tokenizer is called; does not influence `hash`.
        kind: "bpe", "byte", "char" or "hf".
        vocab_size: number of ids, special tokens included.
        special_tokens: text of each special token → its id.
        end_of_text: id of the document separator: it begins every document, in training, evaluation and generation.
        document_end: id that stands after every document too; None where nothing does.
        stop_ids: ids that end what is generated: these two, and what the source says (an instruct model's end of turn).
        config: what its source's `tokenizer_config.json` said, chat template included; goes out with an export.
        pattern: the split pattern of a "bpe" tokenizer, otherwise None.
        trained_on: what is known of where it came from (goes to `meta.json`, does not influence `hash`).
        hash: 16 hex digits of SHA-256 over what decides the ids.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        tokens: Sequence[bytes],
        special_tokens: dict[str, int],
        *,
        end_of_text: str = END_OF_TEXT,
        document_end: str | None = None,
        stop_tokens: Sequence[str] = (),
        pattern: str | None = None,
        hf_json: str | None = None,
        trained_on: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.vocab_size = len(tokens)
        self.special_tokens = dict(sorted(special_tokens.items(), key=lambda item: item[1]))
        self.end_of_text_token = end_of_text
        # Of nanoGPT's characters none is special: what stands between its texts is one of the text's own.
        self.end_of_text = special_tokens[end_of_text] if special_tokens else tokens.index(end_of_text.encode("utf-8"))
        self.document_end_token = document_end
        self.document_end = None if document_end is None else special_tokens[document_end]
        self.stop_tokens = tuple(stop_tokens)
        ends = [end_of_text, *([] if document_end is None else [document_end]), *stop_tokens]
        self.stop_ids = frozenset(special_tokens[text] for text in ends if text in special_tokens)
        self.config = config or {}
        self.pattern = pattern
        self.hf_json = hf_json
        self.trained_on = trained_on or {}
        self._tokens = list(tokens)
        self.hash = self._content_hash()
        self._engine = self._make_engine()
        self._special_splitter = _splitter(self.special_tokens)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, kind={self.kind!r}, vocab_size={self.vocab_size}, hash={self.hash!r})"

    def _content_hash(self) -> str:
        decides = {
            "kind": self.kind,
            "pattern": self.pattern,
            "specials": self.special_tokens,
            "end_of_text": self.end_of_text_token,
            "tokens": [token.hex() for token in self._tokens],
            "hf": self.hf_json,
        }
        if self.document_end_token is not None:  # absent where absent, so that older hashes stay
            decides["document_end"] = self.document_end_token
        canonical = json.dumps(decides, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

    def _make_engine(self) -> Engine:
        if self.kind == "bpe":
            assert self.pattern is not None
            return BpeEngine(self._tokens, self.special_tokens, self.pattern)
        if self.kind == "hf":
            assert self.hf_json is not None
            return HuggingFaceEngine(self.hf_json, self.special_tokens)
        if self.kind == "byte":
            return ByteEngine(self._tokens, self.special_tokens)
        return CharEngine(self._tokens, self.special_tokens)

    def named_token(self, role: str) -> str | None:
        """The token that others call `role` ("bos_token", "pad_token", …): what the source said; else, for the two that
        gptlab has itself, the separator for "bos_token" and what ends a text for "eos_token"."""
        named = token_text(self.config.get(role))
        if named is not None and named in self.special_tokens:
            return named
        if not self.special_tokens:
            return None
        ends = {"bos_token": self.end_of_text_token}
        ends["eos_token"] = (*self.stop_tokens, self.document_end_token or self.end_of_text_token)[0]
        return ends.get(role)

    @property
    def adds_bos(self) -> bool:
        """Whether other programs are to begin every text with "bos_token": as the source had it, as gptlab does it."""
        return bool(self.config.get("add_bos_token")) if self.config else True

    @property
    def chat_template(self) -> str | None:
        """How its source writes a conversation, as a Jinja template."""
        found = self.config.get("chat_template")
        if isinstance(found, list):  # several, by name
            found = next((each.get("template") for each in found if each.get("name") == "default"), None)
        return found if isinstance(found, str) else None

    # Text to ids

    def encode(self, text: str, *, allow_special: SpecialPolicy = False) -> list[int]:
        """The ids of `text`. Special-token text is ordinary text unless `allow_special`, a `SpecialPolicy`, says not.

        Raises DataError where `text` is not valid Unicode, holds a character that a char tokenizer does not know, or a
        special token that is refused; and for a policy that names none.
        """
        pattern, refused = self._specials_read(allow_special)
        if pattern is None:
            return _with_readable_errors(self._engine.encode, text)
        ids: list[int] = []
        for number, part in enumerate(pattern.split(text)):
            if part in refused and number % 2:
                as_token, as_text = (option("special_tokens", w, argument="allow_special") for w in ("all", "none"))
                raise DataError(
                    f"the text holds the special token {part!r} at character {text.index(part):,}; take it out, or say "
                    f"how it is meant: {as_token} as the token, {as_text} as text"
                )
            if number % 2:
                ids.append(self.special_tokens[part])
            elif part:
                ids.extend(_with_readable_errors(self._engine.encode, part))
        return ids

    def _specials_read(self, policy: SpecialPolicy) -> tuple[re.Pattern[str] | None, frozenset[str]]:
        """What finds the special tokens that `policy` reads or refuses (None: there are none), and those it refuses."""
        nothing = frozenset[str]()
        if isinstance(policy, bool):
            return (self._special_splitter if policy else None), nothing
        named = {policy} if isinstance(policy, str) else set(policy)
        for text in named.difference(_POLICIES, self.special_tokens):
            raise DataError(
                f"{option('special_tokens', text, argument='allow_special')}: is neither a policy (all, none, raise) "
                f"nor a special token of {self.name!r}: {did_you_mean(text, {*_POLICIES, *self.special_tokens})}"
            )
        if "all" in named:
            return self._special_splitter, nothing
        if "raise" in named:
            return self._special_splitter, frozenset(self.special_tokens) - named
        return _splitter(named.difference(_POLICIES)), nothing

    def encode_documents(
        self, texts: Sequence[str], *, threads: int = 1, allow_special: SpecialPolicy = False
    ) -> list[npt.NDArray[Any]]:
        """The ids of each document, as `uint16` where the vocabulary fits and `uint32` where not.

        Special-token text is text unless `allow_special` says otherwise, as in `encode`; no separators are added.
        `threads` run in parallel (the engines of "bpe" and "hf"
        release the interpreter lock). Raises DataError as `encode` does.
        """
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

        def encode_one(text: str) -> npt.NDArray[Any]:
            if allow_special not in (False, "none"):
                return np.array(self.encode(text, allow_special=allow_special), dtype=dtype)
            return _with_readable_errors(self._engine.encode_array, text).astype(dtype)

        if threads <= 1 or len(texts) <= 1:
            return [encode_one(text) for text in texts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(encode_one, texts))

    # Ids to text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; special tokens appear as their text. Raises DataError for an id outside."""
        listed = ids.tolist() if isinstance(ids, np.ndarray) else [int(token) for token in ids]
        if listed and not (min(listed) >= 0 and max(listed) < self.vocab_size):
            bad = next(token for token in listed if not 0 <= token < self.vocab_size)
            raise DataError(f"id {bad} is not in tokenizer {self.name!r}: its ids are 0..{self.vocab_size - 1}")
        return self._engine.decode_bytes(listed)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for; bytes that are no UTF-8 (half a character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # Looking inside

    def token_bytes(self) -> list[bytes]:
        """What each id adds to a text that goes on, by id, blanks included; `b""` for special tokens."""
        return list(self._pieces)

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        # Not `_tokens`, which is part of the hash: what a file writes and what its decoder makes of it may differ.
        return self._engine.pieces(self._tokens) if isinstance(self._engine, HuggingFaceEngine) else self._tokens

    @functools.cached_property
    def adds_blank(self) -> bool:
        """Whether the first token of a text holds a blank that is not the text's own (SentencePiece's habit)."""
        return isinstance(self._engine, HuggingFaceEngine) and self._engine.adds_blank(self._pieces)

    @functools.cached_property
    def keeps_text(self) -> bool:
        """Whether tokens are the text, so that its bytes can be counted from them: False where the tokenizer changes
        text (other case, other blanks, unknown characters), as a probe in the alphabets of the world shows."""
        if not isinstance(self._engine, HuggingFaceEngine):
            return True
        probe = probe_text().replace("▁", "")  # SentencePiece's word for a blank: nobody else's text has it
        found = b"".join(map(self._pieces.__getitem__, self.encode(probe)))
        return found.removeprefix(b" " if self.adds_blank else b"") == probe.encode("utf-8")

    def text_stream(self, *, begins: bool = False) -> TextStream:
        """A decoder that takes ids one by one. `begins`: they begin a text; otherwise they go on with one."""
        return TextStream(self._pieces, self.special_tokens, drop_blank=begins and self.adds_blank)

    def decode_continuation(self, ids: Iterable[int], *, begins: bool = False) -> str:
        """The text that `ids` add to one before them, as `text_stream` gives it; `decode` is for a whole text."""
        stream = self.text_stream(begins=begins)
        return "".join([*map(stream.feed, ids), stream.end()])

    def pieces(self, text: str) -> list[tuple[int, bytes]]:
        """`text` as (id, bytes of that token), in order; special-token text is ordinary text."""
        return [(token, self._pieces[token]) for token in self.encode(text)]

    # On disk

    def save(self, folder: Path, *, for_others: bool = False) -> None:
        """Write the tokenizer's folder (`tokenizer.json`, `merges.txt`, `meta.json`) in one atomic step.

        `for_others`: such that other programs begin a text as gptlab or its source does, and not with its first word.
        A folder that is there already is replaced. Raises DataError where the tokenizer cannot be written so that
        `transformers` reads the same ids.
        """
        save_tokenizer(self, folder, for_others=for_others)


class TextStream:
    """Text from ids that come one by one: a character appears with the id that completes it, never half of it.

    However ids are handed over, the text is the same; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, pieces: Sequence[bytes], special_tokens: dict[str, int], *, drop_blank: bool) -> None:
        self._pieces, self._drop_blank = pieces, drop_blank
        self._specials = {i: text.encode("utf-8") for text, i in special_tokens.items() if not pieces[i]}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """What is known of the text with this id that was not before; may be empty."""
        piece = self._specials.get(token, self._pieces[token])
        if self._drop_blank and token not in self._specials:
            piece, self._drop_blank = piece.removeprefix(b" "), False
        return self._decoder.decode(piece)

    def end(self) -> str:
        """What half a character at the end becomes."""
        return self._decoder.decode(b"", final=True)


def probe_text() -> str:
    """Text that two engines would cut differently if they read a pattern differently: words, numbers, contractions,
    line ends and blanks in many neighbourhoods, and the alphabets of the world."""
    bits = [
        "don't",
        "WE'LL",
        "x1234567",
        "  two",
        "\ttab",
        "\r\n\r\n",
        " \n  end",
        "...!?\n",
        "中文字",
        "🙂🙂",
        "é",
        "  ",
    ]
    woven = "".join(left + gap + right for left in bits for right in bits for gap in ("", " ", "\n", "  "))
    letters = "".join(chr(code) + (" " if code % 7 == 0 else "") for code in range(0x20, 0x3000))
    return woven + letters


def _splitter(special_tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Cuts a text at the leftmost, longest of `special_tokens`; None where there are none."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None


def token_text(entry: Any) -> str | None:
    """The text of a token as a `tokenizer_config.json` names one: itself, or in a table."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def byte_tokenizer(*, name: str = "byte", special_tokens: Sequence[str] = ()) -> Tokenizer:
    """The 256 bytes, then END_OF_TEXT, then `special_tokens`."""
    return with_special_tokens(name, "byte", [bytes([value]) for value in range(256)], special_tokens)


def plain_char_tokenizer(characters: Sequence[str], *, name: str, separator: str) -> Tokenizer:
    """`characters`, by id, and nothing else: of a model that has no special tokens. `separator`: one of them.

    Raises DataError where one is no character, or is there twice.
    """
    seen = set[str]()
    for index, character in enumerate(characters):
        if len(character) != 1 or character in seen:
            raise DataError(f"{name}: {character!r} (id {index}) is no character, or is there twice")
        seen.add(character)
    return Tokenizer(name, "char", [_utf8(character) for character in characters], {}, end_of_text=separator)


def char_tokenizer(characters: Iterable[str], *, name: str, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """The distinct `characters` in order of their code points, then END_OF_TEXT, then `special_tokens`.

    Raises DataError where there are none, or one is half of a surrogate pair.
    """
    distinct = sorted(set(characters))
    if not distinct:
        raise DataError("a char tokenizer needs at least one character: the training text is empty")
    return with_special_tokens(name, "char", [_utf8(character) for character in distinct], special_tokens)


def with_special_tokens(
    name: str,
    kind: str,
    tokens: Sequence[bytes],
    special_tokens: Sequence[str],
    *,
    pattern: str | None = None,
    trained_on: dict[str, Any] | None = None,
) -> Tokenizer:
    """A tokenizer of `tokens` followed by END_OF_TEXT and `special_tokens`, in that order."""
    specials = check_special_tokens(special_tokens)
    ids = {text: len(tokens) + index for index, text in enumerate(specials)}
    return Tokenizer(name, kind, [*tokens, *[b""] * len(specials)], ids, pattern=pattern, trained_on=trained_on)


def check_special_tokens(special_tokens: Sequence[str]) -> list[str]:
    """END_OF_TEXT and then `special_tokens`. Raises DataError for an empty or repeated one."""
    specials = [END_OF_TEXT, *(text for text in special_tokens if text != END_OF_TEXT)]
    for index, text in enumerate(specials):
        if not text.strip():
            raise DataError("a special token cannot be empty or blank; write it like '<|user|>'")
        if text in specials[:index]:
            raise DataError(f"special token {text!r} is given twice")
        _utf8(text)
    return specials


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _surrogate_error(text, error) from None


def _surrogate_error(text: str, error: UnicodeEncodeError) -> DataError:
    return DataError(
        f"the text is not valid Unicode: half a surrogate pair, U+{ord(text[error.start]):04X}, at character"
        f" {error.start:,}; read the file as UTF-8 with errors='replace'"
    )


def _with_readable_errors(encode: Callable[[str], _Result], text: str) -> _Result:
    """Call `encode(text)`. Raises DataError, with the place, for text that is no Unicode."""
    try:
        return encode(text)
    except UnicodeEncodeError:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _surrogate_error(text, error) from None
        raise
