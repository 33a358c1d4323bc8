"""Tokenizers of other programs: GPT-2's `encoder.json` and `vocab.bpe`, Hugging Face's `tokenizer.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.errors import DataError, did_you_mean, option
from gptlab.tokenizer.byte_level import from_text, recover_merges, to_text
from gptlab.tokenizer.core import END_OF_TEXT, Tokenizer, probe_text, token_text
from gptlab.tokenizer.engines import BYTE_TOKEN
from gptlab.tokenizer.patterns import GPT2
from gptlab.tokenizer.published import (
    OPENAI,
    check_published,
    gpt2_vocabulary,
    hub_folder,
    is_hub_name,
    openai_tokenizer,
)

_USUAL_END_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


def check_name(name: str, *, trained: bool = False) -> str:
    """`name` where it can be a tokenizer's name. Raises DataError for a path, a blank, or a built-in's name; one that
    is `trained` is not GPT-2's, by whose name published weights find theirs."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DataError(
            f"{name!r} cannot be a tokenizer's name: letters, digits, '.', '_' and '-' only, and no path; the"
            " tokenizer goes to tokenizers/NAME"
        )
    if name == "byte" or (trained and name == "gpt2"):
        whose = "the built-in byte tokenizer" if name == "byte" else "GPT-2's published vocabulary"
        raise DataError(f"the name {name!r} belongs to {whose}; choose another {option('name')}")
    return name


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start:,} is 0x{error.object[error.start]:02x}") from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg} at line {error.lineno}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path} is no JSON that can be read: {str(error)[:100]}") from None


@dataclass(frozen=True)
class Roles:
    """Which token begins a document, which ends it (if any), and which others end what is generated."""

    start: str
    end: str | None = None
    stop: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """As `Tokenizer` takes them."""
        return {"end_of_text": self.start, "document_end": self.end, "stop_tokens": self.stop}


def import_tokenizer(
    source: str,
    *,
    name: str,
    end_of_text: str | None = None,
    document_end: str | None = None,
    stop: Sequence[str] = (),
) -> Tokenizer:
    """The tokenizer in `source`, under a new name.

    Args:
        source: an OpenAI encoding ("gpt2", "cl100k_base", … of `published.OPENAI`; tiktoken's download), a name of the
            Hugging Face hub ("owner/name"), a folder with `encoder.json` and `vocab.bpe`, a
            `tokenizer.json`, or a folder that holds one.
        name: its name here.
        end_of_text: which special token of a `tokenizer.json` begins every document; None: as the files say (`_start`).
        document_end: which one stands after every document, too; None: as the files say, most often nothing.
        stop: more that end what is generated, besides these two and what the files say.

    Raises DataError where `source` is none of these or is damaged. A `tokenizer.json` that tiktoken can express becomes
    kind "bpe", any other kind "hf".
    """
    check_name(name)
    path = Path(source)
    if source in OPENAI and not path.exists():
        return check_published(openai_tokenizer(source, name))
    if is_hub_name(source):
        path = hub_folder(source)
    if (path / "encoder.json").is_file() and (path / "vocab.bpe").is_file():
        tokenizer = _gpt2_files(path, name)
    elif path.is_file() or (path / "tokenizer.json").is_file():
        file = path if path.is_file() else path / "tokenizer.json"
        tokenizer = _import_hf(file, name, end_of_text, document_end, stop)
    else:
        wanted = "encoder.json with vocab.bpe, or tokenizer.json"
        known = f"one of {', '.join(OPENAI)}, a name of the hub (owner/name), or a folder with {wanted}"
        what = f"holds no {wanted}" if path.is_dir() else f"does not exist; give {known}"
        raise DataError(f"nothing to import: {source} {what}")
    if path != Path(source):
        tokenizer.trained_on["imported_from"] = f"{source} of the Hugging Face hub, commit {path.name}"
    return check_published(tokenizer)


def _gpt2_files(folder: Path, name: str) -> Tokenizer:
    encoder = read_json(folder / "encoder.json")
    if not isinstance(encoder, dict):
        raise DataError(f"{folder / 'encoder.json'} is not a table of tokens to ids")
    ranks: dict[bytes, int] = {}
    for text, index in encoder.items():
        if text != END_OF_TEXT:
            token = from_text(text)
            if token is None or not isinstance(index, int):
                raise DataError(f"{folder / 'encoder.json'}: token {text!r} is not written in GPT-2's byte alphabet")
            ranks[token] = index
    tokenizer = gpt2_vocabulary(name, ranks, "encoder.json and vocab.bpe")
    merges = recover_merges(tokenizer.token_bytes())
    lines = [line for line in read_text(folder / "vocab.bpe").split("\n")[1:] if line]
    written = [to_text(token) for token in tokenizer.token_bytes()]
    if merges is None or lines != [f"{written[left]} {written[right]}" for left, right in merges]:
        raise DataError(f"{folder}: encoder.json and vocab.bpe do not belong together; download both again")
    return tokenizer


def _import_hf(
    path: Path, name: str, end_of_text: str | None, document_end: str | None, stop: Sequence[str]
) -> Tokenizer:
    from gptlab.console import say

    content = read_text(path)
    document = read_json(path)
    origin = {"imported_from": path.name}
    try:
        config = _config_beside(path)
        roles, why = _find_roles(path, document, config, end_of_text, document_end, stop)
        tokenizer = huggingface_tokenizer(name, content, roles, origin, config)
        as_bpe = _as_bpe(document, tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a tokenizer.json: {type(error).__name__} {error}") from error
    stops = ", ".join(dict.fromkeys([roles.start, *filter(None, [roles.end]), *roles.stop]))
    say(
        f"{name}: documents begin with {roles.start} ({why}) and end with {roles.end or 'nothing of their own'}; "
        f"generation stops at {stops}"
    )
    if isinstance(as_bpe, Tokenizer):
        return as_bpe
    _check_reproduces(path, document, content, tokenizer)
    say(f"{name}: encoded by Hugging Face tokenizers, slower than tiktoken, because {as_bpe}")
    return tokenizer


def _check_reproduces(path: Path, document: Any, content: str, tokenizer: Tokenizer) -> None:
    """Raise DataError where `tokenizer` does not give the ids that the file itself gives, or that is mislabelled."""
    import tokenizers

    source = tokenizers.Tokenizer.from_str(content)
    source.encode_special_tokens = True
    source.no_padding()
    source.no_truncation()
    probe = probe_text()
    try:
        expected = source.encode(probe, add_special_tokens=False).ids
    except Exception as error:  # the library's own are plain ones: no unknown token, a pattern that does not match
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot encode a probe text itself ({reason}); it cannot be imported") from None
    found = tokenizer.encode(probe)
    if expected != found:
        at = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), len(found))
        why = "; its BPE leaves out merges at random (dropout)" if document["model"].get("dropout") else ""
        raise DataError(
            f"{path}: on a probe text of {len(probe):,} characters the file gives other ids than gptlab's reading of "
            f"it, from token {at:,} on{why}; it cannot be imported"
        )
    model = document["model"]
    if model.get("type") == "BPE" and not model.get("ignore_merges"):
        pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
        prefix = model.get("continuing_subword_prefix") or ""
        made = {left + right.removeprefix(prefix) for left, right in pairs}
        added = {token["content"] for token in document["added_tokens"]}
        longer = [t for t in model["vocab"] if len(t) > 1 and t not in added and not BYTE_TOKEN.fullmatch(t)]
        never = [text for text in longer if text not in made]
        if 2 * len(never) > len(longer):
            raise DataError(
                f"{path} says that its model is BPE, and {len(never):,} of its {len(longer):,} longer tokens "
                f"({never[0]!r}, …) are made by no merge: it is of another kind; get the vocabulary's own file"
            )


def _config_beside(path: Path) -> dict[str, Any]:
    """`tokenizer_config.json` beside a `tokenizer.json`, with the chat template where that has a file of its own."""
    file = path.with_name("tokenizer_config.json")
    config = read_json(file) if file.is_file() else {}
    if not isinstance(config, dict):
        raise DataError(f"{file} is not a table of names and values")
    template = path.with_name("chat_template.jinja")
    config |= {"chat_template": read_text(template)} if template.is_file() else {}
    return {key: value for key, value in config.items() if key not in _NOT_THE_TOKENIZERS}


_NOT_THE_TOKENIZERS = frozenset(
    ["auto_map", "backend", "is_local", "local_files_only", "name_or_path", "processor_class", "tokenizer_file"]
)
"""What a `tokenizer_config.json` says of where it lay and of code to run."""


def _find_roles(
    path: Path, document: Any, config: dict[str, Any], start: str | None, end: str | None, stop: Sequence[str]
) -> tuple[Roles, str]:
    """Which tokens begin, end and stop, as asked for or as the files say; and what says so of the first."""
    known = {token["content"]: token["id"] for token in document["added_tokens"]}
    for asked in filter(None, (start, end, *stop)):
        if asked not in known:
            raise DataError(f"{path} has no added token {asked!r}: {did_you_mean(asked, known)}")
    eos = token_text(config.get("eos_token"))
    before, after = _template_tokens(document.get("post_processor"))
    found, why = (start, "asked for") if start is not None else _start(known, config, before, eos)
    if found is None:
        raise DataError(
            f"{path} does not say which token separates documents; give it with "
            f"{option('end_of_text', 'TOKEN')}, one of:"
            f" {', '.join(list(known)[:8]) or '(the file has no added tokens)'}"
        )
    if start is not None and "add_bos_token" not in config and token_text(config.get("bos_token")) in (None, start):
        config |= {"bos_token": start, "add_bos_token": True}  # the files are silent: an export begins as was asked for
    if before in known:  # a tokenizer of kind "bpe" has no template of its own: said in the config, it goes out again
        config.setdefault("bos_token", before)
        config["add_bos_token"] = True
        if after in known:
            config["add_eos_token"] = True
            config.setdefault("eos_token", after)
    last = end or (after if after in known else None) or (eos if config.get("add_eos_token") is True else None)
    usual = next((text for text in _USUAL_END_OF_TEXT if text in known), None)
    stops = dict.fromkeys([eos or usual, *_end_ids(path, known), *stop])
    others = [text for text in stops if text is not None and text in known and text not in (found, last)]
    return Roles(found, last if last in known and last != found else None, tuple(others)), why


def _start(
    known: dict[str, int], config: dict[str, Any], before: str | None, eos: str | None
) -> tuple[str | None, str]:
    """The token that the model has seen before its documents, and what says so.

    What is put before every text is most telling. An end of text is put between documents, but not the end of a turn of
    a conversation, as which instruct models name their `eos_token`.
    """
    bos = token_text(config.get("bos_token"))
    if before in known:
        return before, "tokenizer.json puts it before every text"
    if config.get("add_bos_token") is True and bos in known:
        return bos, "tokenizer_config.json: add_bos_token"
    if END_OF_TEXT in known and eos in known:
        return END_OF_TEXT, "the usual separator" + (
            "" if eos == END_OF_TEXT else f"; {eos}, its eos_token, ends a turn"
        )
    if bos in known and bos != eos and config.get("add_bos_token") is not False:
        return bos, "tokenizer_config.json: bos_token"
    if eos in known:
        return eos, "tokenizer_config.json: eos_token"
    usual = next((text for text in _USUAL_END_OF_TEXT if text in known), None)
    return usual, "a usual name"


def _template_tokens(processor: Any) -> tuple[str | None, str | None]:
    """The special tokens that a post-processor puts before and after a text."""
    if not isinstance(processor, dict):
        return None, None
    parts = processor.get("processors", [processor])
    for part in parts:
        if part.get("type") == "TemplateProcessing":
            names = [piece.get("SpecialToken", {}).get("id") for piece in part["single"]]
            return (names[0], names[-1]) if len(names) > 1 else (None, None)
        if part.get("type") in ("BertProcessing", "RobertaProcessing"):
            return part["cls"][0], part["sep"][0]
    return None, None


def _end_ids(path: Path, known: dict[str, int]) -> list[str]:
    """The tokens of `eos_token_id` in the model's own files beside the tokenizer."""
    texts = {index: text for text, index in known.items()}
    found = []
    for name in ("generation_config.json", "config.json"):
        file = path.with_name(name)
        content = read_json(file) if file.is_file() else {}
        ids = content.get("eos_token_id") if isinstance(content, dict) else None
        found += [texts[i] for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int) and i in texts]
    return found


def huggingface_tokenizer(
    name: str, content: str, roles: Roles, trained_on: dict[str, Any], config: dict[str, Any]
) -> Tokenizer:
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
    specials = {token["content"] for token in document["added_tokens"] if token["special"]}
    specials |= {roles.start, *filter(None, [roles.end]), *roles.stop}
    vocabulary: dict[str, int] = engine.get_vocab(with_added_tokens=True)
    tokens = [b""] * (max(vocabulary.values()) + 1)
    for text, index in vocabulary.items():
        if text not in specials:
            tokens[index] = text.encode("utf-8") if text in added else _token_bytes(text, byte_level)
    ids = {text: added[text] for text in specials}
    return Tokenizer(
        name, "hf", tokens, ids, **roles.arguments(), hf_json=content, trained_on=trained_on, config=config
    )


def _token_bytes(text: str, byte_level: bool) -> bytes:
    """The bytes of a token as a `tokenizer.json` writes it: byte alphabet, `<0x0A>`, or text with ▁ for a space."""
    if byte_level and (token := from_text(text)) is not None:
        return token
    if BYTE_TOKEN.fullmatch(text):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode("utf-8")


def _as_bpe(document: dict[str, Any], as_hf: Tokenizer) -> Tokenizer | str:
    """The tokenizer of kind "bpe" that gives the same ids as `as_hf`, or why there is none."""
    model = document["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}"
    if document.get("normalizer") is not None:
        return "it normalizes text"
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(field):
            return f"its BPE uses {field}"
    for token in document["added_tokens"]:
        if not token["special"] or token["single_word"] or token["lstrip"] or token["rstrip"]:
            return f"its added token {token['content']!r} is matched in ordinary text"
    pattern = _split_pattern(document.get("pre_tokenizer"))
    if pattern is None:
        return "its way of cutting text is not one pattern followed by bytes"
    tokens = as_hf.token_bytes()
    merges = recover_merges(tokens)
    written = [to_text(token) for token in tokens]
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
            document_end=as_hf.document_end_token,
            stop_tokens=as_hf.stop_tokens,
            pattern=pattern,
            trained_on=as_hf.trained_on,
            config=as_hf.config,
        )
    except ValueError:
        return "tiktoken does not read its pattern"
    probe = probe_text()
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
