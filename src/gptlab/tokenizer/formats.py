"""Tokenizer folders, and the files of other programs: Hugging Face's `tokenizer.json`, GPT-2's `encoder.json`
+ `vocab.bpe`.

A tokenizer folder holds

* `tokenizer.json`: the tokenizer, in the format of Hugging Face `tokenizers`; `transformers` reads the same
  ids from it;
* `tokenizer_config.json`: tells `transformers` the class and the end-of-text token;
* `merges.txt` (kind "bpe"): the merges in order, to read, in the format of GPT-2's `vocab.bpe`;
* `meta.json`: name, kind, pattern, special tokens, what it was trained on, and two checksums: `hash` over
  what decides the ids, and SHA-256 of `tokenizer.json`.

Bytes are written in JSON as GPT-2 writes them: each of the 256 as one printable character (`byte_alphabet`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from gptlab.errors import DataError, did_you_mean
from gptlab.files import atomic_folder
from gptlab.tokenizer.core import END_OF_TEXT, Tokenizer, byte_tokenizer
from gptlab.tokenizer.patterns import GPT2
from gptlab.version import __version__

META_FORMAT = 1
_BUILT_IN = ("byte", "gpt2")
_USUAL_END_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """The character for each byte, as in GPT-2's `encoder.json`: printable Latin-1 stays, the rest moves to
    U+0100…"""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [value for value in range(256) if value not in kept]
    table = {value: chr(value) for value in kept} | {value: chr(256 + i) for i, value in enumerate(moved)}
    return tuple(table[value] for value in range(256))


@functools.cache
def _alphabet_bytes() -> dict[str, int]:
    return {character: value for value, character in enumerate(byte_alphabet())}


def _written(token: bytes) -> str:
    return "".join(map(byte_alphabet().__getitem__, token))


def _read(text: str) -> bytes | None:
    """The bytes that `text` is written for, or None where it holds a character outside the byte alphabet."""
    values = [_alphabet_bytes().get(character) for character in text]
    return None if None in values else bytes(values)  # type: ignore[arg-type]


def recover_merges(tokens: list[bytes]) -> list[tuple[int, int]] | None:
    """The merges, as pairs of ids in rank order, that make `tokens` (by id; `b""` is skipped), or None if
    none do.

    While a token is trained no merge crosses its ends, so encoding its bytes with the merges before it gives
    exactly the two parts it was made of. Where that fails, the vocabulary is not the result of byte-pair
    merges in id order.
    """
    ranks = {token: index for index, token in enumerate(tokens) if token}
    if len(ranks) != sum(map(bool, tokens)) or any(bytes([value]) not in ranks for value in range(256)):
        return None
    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            best = min(joined)
            if best >= rank:
                return None
            at = joined.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append((ranks[parts[0]], ranks[parts[1]]))
    return merges


# Writing


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer`'s folder atomically, in place of one that is there. See `Tokenizer.save`."""
    merges = None
    if tokenizer.kind == "bpe":
        merges = recover_merges(tokenizer.token_bytes())
        if merges is None:
            raise DataError(
                f"tokenizer {tokenizer.name!r} cannot be written as merges: some of its tokens are not a"
                " merge of two earlier ones"
            )
    content = tokenizer.hf_json or json.dumps(_hf_document(tokenizer, merges), ensure_ascii=False, indent=1)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.end_of_text_token,
        "clean_up_tokenization_spaces": False,
    }
    meta = {
        "format": META_FORMAT,
        "name": tokenizer.name,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "pattern": tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "end_of_text": tokenizer.end_of_text_token,
        "hash": tokenizer.hash,
        "tokenizer_json_sha256": hashlib.sha256(content.encode("utf-8")).hexdigest(),
        "trained_on": tokenizer.trained_on,
        "written_by": f"gptlab {__version__}",
    }
    with atomic_folder(folder) as aside:
        (aside / "tokenizer.json").write_bytes(content.encode("utf-8"))
        (aside / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if merges is not None:
            written = [_written(token) for token in tokenizer.token_bytes()]
            lines = ["#version: 0.2", *(f"{written[left]} {written[right]}" for left, right in merges)]
            (aside / "merges.txt").write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
        text = json.dumps(meta, ensure_ascii=False, indent=1) + "\n"
        (aside / "meta.json").write_text(text, encoding="utf-8")


def _hf_document(tokenizer: Tokenizer, merges: list[tuple[int, int]] | None) -> dict[str, Any]:
    """`tokenizer` as a `tokenizer.json`. Special tokens are in the model's vocabulary too: only so do they
    keep their ids when later merges have larger ones."""
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
        written = [_written(token) for token in tokens]
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


# Reading


def check_name(name: str) -> str:
    """`name` where it can be a tokenizer's name. Raises DataError for a path, a blank, or a built-in's
    name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DataError(
            f"{name!r} cannot be a tokenizer's name: letters, digits, '.', '_' and '-' only, and no path; the"
            " tokenizer goes to tokenizers/NAME"
        )
    if name == "byte":
        raise DataError("the name 'byte' belongs to the built-in byte tokenizer; choose another --name")
    return name


def load_tokenizer(name_or_path: str | Path, *, root: Path = Path("tokenizers")) -> Tokenizer:
    """The tokenizer called `name_or_path`: a NAME under `root`, "byte", "gpt2", or the path of a tokenizer
    folder.

    "gpt2" is `root`/gpt2 where that was imported, otherwise tiktoken's download of OpenAI's files. A folder
    is checked against its `meta.json`. Raises DataError where there is none, or it is damaged.
    """
    text = str(name_or_path)
    is_name = isinstance(name_or_path, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None
    if is_name and (root / text).is_dir():
        return load_folder(root / text)
    if is_name and text == "byte":
        return byte_tokenizer()
    if is_name and text == "gpt2":
        return _gpt2_download()
    if Path(text).is_dir():
        return load_folder(Path(text))
    known = {*_BUILT_IN, *(entry.name for entry in root.glob("*/") if (entry / "meta.json").is_file())}
    if is_name:
        raise DataError(f"no tokenizer {text!r} under {root}: {did_you_mean(text, known)}")
    raise DataError(f"no tokenizer folder at {text}; make one with: gptlab tokenizer train --name NAME …")


def load_folder(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to `folder`. Raises DataError where it is missing or
    damaged."""
    if not (folder / "meta.json").is_file():
        hint = "no meta.json in it"
        if (folder / "tokenizer.json").is_file() or (folder / "encoder.json").is_file():
            hint += f"; bring it in with: gptlab tokenizer import {folder} --name NAME"
        raise DataError(f"{folder} is not a tokenizer folder of gptlab: {hint}")
    meta = _read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != META_FORMAT:
        raise DataError(f"{folder / 'meta.json'}: not a meta.json of format {META_FORMAT} of gptlab")
    content = _read_text(folder / "tokenizer.json")
    damaged = f"tokenizer folder {folder} is damaged: "
    mend = "; train or import it again"
    if hashlib.sha256(content.encode("utf-8")).hexdigest() != meta.get("tokenizer_json_sha256"):
        raise DataError(f"{damaged}tokenizer.json does not match the checksum in meta.json{mend}")
    try:
        tokenizer = _from_own_json(meta, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{damaged}{type(error).__name__} in its files ({error}){mend}") from error
    if tokenizer.hash != meta.get("hash"):
        raise DataError(f"{damaged}its ids hash to {tokenizer.hash}, meta.json says {meta.get('hash')}{mend}")
    return tokenizer


def _from_own_json(meta: dict[str, Any], content: str) -> Tokenizer:
    kind, specials = meta["kind"], {str(text): int(index) for text, index in meta["special_tokens"].items()}
    if kind == "hf":
        return _hf_tokenizer(meta["name"], content, meta["end_of_text"], meta["trained_on"])
    vocabulary: dict[str, int] = json.loads(content)["model"]["vocab"]
    tokens = [b""] * len(vocabulary)
    for text, index in vocabulary.items():
        if text not in specials:
            token = text.encode("utf-8") if kind == "char" else _read(text)
            if token is None:
                raise ValueError(f"token {text!r} is not written in the byte alphabet")
            tokens[index] = token
    return Tokenizer(
        meta["name"],
        kind,
        tokens,
        specials,
        end_of_text=meta["end_of_text"],
        pattern=meta["pattern"],
        trained_on=meta["trained_on"],
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start:,} is 0x{error.object[error.start]:02x}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg} at line {error.lineno}") from None


# Importing


def import_tokenizer(source: str, *, name: str, end_of_text: str | None = None) -> Tokenizer:
    """The tokenizer in `source`, under a new name.

    Args:
        source: "gpt2" (tiktoken's download), a folder with `encoder.json` and `vocab.bpe`, a
            `tokenizer.json`, or a folder that holds one.
        name: its name here.
        end_of_text: which special token of a `tokenizer.json` separates documents; found by itself where
            `tokenizer_config.json` beside it names an `eos_token` or the file has a usual one.

    Raises DataError where `source` is none of these or is damaged. A `tokenizer.json` that tiktoken can
    express becomes kind "bpe", any other kind "hf".
    """
    check_name(name)
    path = Path(source)
    if source == "gpt2" and not path.exists():
        tokenizer = _gpt2_download(name)
    elif (path / "encoder.json").is_file() and (path / "vocab.bpe").is_file():
        tokenizer = _gpt2_files(path, name)
    elif path.is_file() or (path / "tokenizer.json").is_file():
        tokenizer = _import_hf(path if path.is_file() else path / "tokenizer.json", name, end_of_text)
    else:
        wanted = "encoder.json with vocab.bpe, or tokenizer.json"
        what = f"holds no {wanted}" if path.is_dir() else f"does not exist; give gpt2, or a folder with {wanted}"
        raise DataError(f"nothing to import: {source} {what}")
    if name == "gpt2" and tokenizer.hash != GPT2_HASH:
        raise DataError("the name 'gpt2' belongs to GPT-2's published vocabulary, and this is another; choose a --name")
    return tokenizer


GPT2_HASH = "0c21b1d7e3aa5710"
"""`Tokenizer.hash` of GPT-2's published vocabulary."""


def _gpt2_download(name: str = "gpt2") -> Tokenizer:
    from tiktoken_ext.openai_public import gpt2  # type: ignore[import-untyped]

    try:
        ranks: dict[bytes, int] = gpt2()["mergeable_ranks"]
    except Exception as error:
        raise DataError(
            f"GPT-2's vocabulary could not be downloaded by tiktoken ({type(error).__name__}); without"
            " network, get encoder.json and vocab.bpe and run: gptlab tokenizer import FOLDER --name gpt2"
        ) from error
    return _gpt2(name, ranks, "tiktoken's download")


def _gpt2_files(folder: Path, name: str) -> Tokenizer:
    encoder = _read_json(folder / "encoder.json")
    if not isinstance(encoder, dict):
        raise DataError(f"{folder / 'encoder.json'} is not a table of tokens to ids")
    ranks: dict[bytes, int] = {}
    for text, index in encoder.items():
        if text != END_OF_TEXT:
            token = _read(text)
            if token is None or not isinstance(index, int):
                raise DataError(f"{folder / 'encoder.json'}: token {text!r} is not written in GPT-2's byte alphabet")
            ranks[token] = index
    tokenizer = _gpt2(name, ranks, "encoder.json and vocab.bpe")
    merges = recover_merges(tokenizer.token_bytes())
    lines = [line for line in _read_text(folder / "vocab.bpe").split("\n")[1:] if line]
    written = [_written(token) for token in tokenizer.token_bytes()]
    if merges is None or lines != [f"{written[left]} {written[right]}" for left, right in merges]:
        raise DataError(f"{folder}: encoder.json and vocab.bpe do not belong together; download both again")
    return tokenizer


def _gpt2(name: str, ranks: dict[bytes, int], origin: str) -> Tokenizer:
    tokens = [b""] * (len(ranks) + 1)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"GPT-2's vocabulary from {origin}: the ids are not 0..{len(ranks) - 1}; download it again")
    for token, index in ranks.items():
        tokens[index] = token
    specials = {END_OF_TEXT: len(ranks)}
    return Tokenizer(name, "bpe", tokens, specials, pattern=GPT2, trained_on={"imported_from": f"GPT-2, {origin}"})


def _import_hf(path: Path, name: str, end_of_text: str | None) -> Tokenizer:
    from gptlab.console import say

    content = _read_text(path)
    document = _read_json(path)
    origin = {"imported_from": path.name}
    try:
        separator = _find_end_of_text(path, document, end_of_text)
        tokenizer = _hf_tokenizer(name, content, separator, origin)
        as_bpe = _as_bpe(document, tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a tokenizer.json: {type(error).__name__} {error}") from error
    if isinstance(as_bpe, Tokenizer):
        return as_bpe
    say(f"{name}: encoded by Hugging Face tokenizers, slower than tiktoken, because {as_bpe}")
    return tokenizer


def _find_end_of_text(path: Path, document: Any, asked: str | None) -> str:
    known = [token["content"] for token in document["added_tokens"]]
    if asked is not None:
        if asked not in known:
            raise DataError(f"{path} has no added token {asked!r}: {did_you_mean(asked, known)}")
        return asked
    config_path = path.with_name("tokenizer_config.json")
    config = _read_json(config_path) if config_path.is_file() else {}
    named = config.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    for candidate in (named, *_USUAL_END_OF_TEXT):
        if candidate in known:
            return str(candidate)
    raise DataError(
        f"{path} does not say which token separates documents; give it with --end-of-text TOKEN, one of:"
        f" {', '.join(known[:8]) or '(the file has no added tokens)'}"
    )


def _hf_tokenizer(name: str, content: str, end_of_text: str, trained_on: dict[str, Any]) -> Tokenizer:
    import tokenizers

    try:
        engine = tokenizers.Tokenizer.from_str(content)
    except Exception as error:
        raise DataError(
            f"not a tokenizer.json that Hugging Face tokenizers {tokenizers.__version__} reads: {error}"
        ) from error
    document = json.loads(content)
    byte_level = '"ByteLevel"' in json.dumps([document.get("decoder"), document.get("pre_tokenizer")])
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    specials = {token["content"] for token in document["added_tokens"] if token["special"]} | {end_of_text}
    vocabulary: dict[str, int] = engine.get_vocab(with_added_tokens=True)
    tokens = [b""] * (max(vocabulary.values()) + 1)
    for text, index in vocabulary.items():
        if text not in specials:
            tokens[index] = text.encode("utf-8") if text in added else _token_bytes(text, byte_level)
    ids = {text: added[text] for text in specials}
    return Tokenizer(name, "hf", tokens, ids, end_of_text=end_of_text, hf_json=content, trained_on=trained_on)


def _token_bytes(text: str, byte_level: bool) -> bytes:
    """The bytes of a token as a `tokenizer.json` writes it: byte alphabet, `<0x0A>`, or text with ▁ for a
    space."""
    if byte_level and (token := _read(text)) is not None:
        return token
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode("utf-8")


def _as_bpe(document: dict[str, Any], as_hf: Tokenizer) -> Tokenizer | str:
    """The tokenizer of kind "bpe" that gives the same ids as `as_hf`, or why there is none."""
    model = document["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}"
    if document.get("normalizer") is not None:
        return "it normalizes text"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            return f"its BPE uses {option}"
    for token in document["added_tokens"]:
        if not token["special"] or token["single_word"] or token["lstrip"] or token["rstrip"]:
            return f"its added token {token['content']!r} is matched in ordinary text"
    pattern = _split_pattern(document.get("pre_tokenizer"))
    if pattern is None:
        return "its way of cutting text is not one pattern followed by bytes"
    tokens = as_hf.token_bytes()
    merges = recover_merges(tokens)
    written = [_written(token) for token in tokens]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if merges is None or pairs != [(written[left], written[right]) for left, right in merges]:
        return "its ids are not in the order of its merges"
    try:
        bpe = Tokenizer(
            as_hf.name,
            "bpe",
            tokens,
            as_hf.special_tokens,
            end_of_text=as_hf.end_of_text_token,
            pattern=pattern,
            trained_on=as_hf.trained_on,
        )
    except ValueError:
        return "tiktoken does not read its pattern"
    probe = _probe()
    return bpe if bpe.encode(probe) == as_hf.encode(probe) else "tiktoken reads its pattern differently"


def _split_pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    if pre_tokenizer is None:
        return None
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *cuts, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last.get("use_regex", True):
        return None if cuts else GPT2
    if len(cuts) != 1 or cuts[0]["type"] != "Split" or "Regex" not in cuts[0]["pattern"]:
        return None
    if (cuts[0]["behavior"], cuts[0]["invert"]) not in (("Isolated", False), ("Removed", True)):
        return None
    return str(cuts[0]["pattern"]["Regex"])


def _probe() -> str:
    """Text that two engines would cut differently if they read a pattern differently: words, numbers,
    contractions, line ends and blanks in many neighbourhoods, and the alphabets of the world."""
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
