"""OpenAI's encodings and the hub's tokenizers, by name: from files in the real formats, where the real clients look."""

from __future__ import annotations

import base64
import hashlib
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiktoken
from foreign import foreign_tokenizer
from tiktoken_ext import openai_public

from gptlab.cli import main
from gptlab.errors import DataError
from gptlab.tokenizer import END_OF_TEXT, import_tokenizer, load_tokenizer, train_bpe
from gptlab.tokenizer.core import probe_text
from gptlab.tokenizer.published import HASHES, OPENAI, is_hub_name, openai_tokenizer, vocabulary

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
URL = "https://openaipublic.blob.core.windows.net/encodings/"
BLANKS = range(2, 26)  # runs that p50k_base adds to GPT-2's vocabulary


def put(cache: Path, url: str, data: bytes) -> None:
    """A file where tiktoken looks for what it has downloaded from `url`."""
    cache.mkdir(exist_ok=True)
    (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(data)


def written(ranks: dict[bytes, int]) -> bytes:
    """A vocabulary as OpenAI publishes it."""
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda i: i[1])
    )
    return "".join(lines).encode()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiktoken's cache, empty; there is no network behind it."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["gpt2", "r50k_base", "p50k_base"])
def test_an_encoding_by_name_has_the_ids_of_tiktoken(
    name: str, cache: Path, test_data: Path, tmp_path: Path, awkward: list[str]
) -> None:
    """The real vocabularies, which GPT-2's two files determine: tiktoken holds them against OpenAI's checksums."""
    files = test_data / "gpt2_bpe"
    for file in ("encoder.json", "vocab.bpe"):
        put(cache, GPT2_URL + file, (files / file).read_bytes())
    ranks: dict[bytes, int] = openai_public.gpt2()["mergeable_ranks"]
    if name != "gpt2":
        blanks = [b" " * n for n in BLANKS] if name == "p50k_base" else []
        more = {blank: 50257 + index for index, blank in enumerate(blanks)}
        put(cache, f"{URL}{name}.tiktoken", written(ranks | more))
    ours, theirs = load_tokenizer(name, root=tmp_path), tiktoken.get_encoding(name)
    assert (ours.vocab_size, ours.end_of_text, ours.hash) == (theirs.n_vocab, theirs.eot_token, HASHES[name])
    for text in [*awkward, probe_text(), "      \t          x"]:
        assert ours.encode(text) == theirs.encode_ordinary(text)
    ours.save(tmp_path / name)
    assert load_tokenizer(name, root=tmp_path).hash == ours.hash


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "o200k_harmony"])
def test_patterns_and_special_tokens_are_those_of_tiktoken(
    name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, awkward: list[str]
) -> None:
    """Of the large encodings tiktoken's own patterns and special tokens, over a small vocabulary in their format."""
    (trained,) = train_bpe([*awkward, probe_text()], [900], name="t", pattern="o200k" if "200" in name else "gpt4")
    ranks = {token: index for index, token in enumerate(trained.token_bytes()) if token}
    put(cache, f"{URL}{name.replace('harmony', 'base')}.tiktoken", written(ranks))
    load = openai_public.load_tiktoken_bpe
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda url, expected_hash: load(url))  # another content
    content = openai_public.ENCODING_CONSTRUCTORS[name]()
    specials = content["special_tokens"]
    theirs = tiktoken.Encoding("t", **{key: content[key] for key in ("pat_str", "mergeable_ranks", "special_tokens")})
    shift = min(specials.values()) - len(ranks)  # so that there is no gap of a hundred thousand ids
    moved = {text: index - shift for text, index in specials.items()}
    monkeypatch.setattr(openai_public, name, lambda: content | {"special_tokens": moved})
    ours = openai_tokenizer(name)
    for text in [*awkward, probe_text(), "HTMLParser's don'T e\u0301a\u0301 1234/5 \r\n/x"]:
        assert ours.encode(text) == theirs.encode_ordinary(text)
    for text, index in moved.items():
        assert ours.encode(text, allow_special=True) == [index] or text == "<|reserved_200018|>"
        assert ours.decode([index]) in (text, "<|endofprompt|>")
    assert sorted(ours.special_tokens.values()) == list(range(len(ranks), ours.vocab_size))  # no id without a meaning
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").hash == ours.hash


def test_ids_without_a_meaning_get_a_name_and_a_name_belongs_to_what_was_published(tmp_path: Path) -> None:
    small = vocabulary("small", {bytes([i]): i for i in range(256)}, {END_OF_TEXT: 258}, ".+|\\s", "a test")
    assert small.special_tokens == {"<|reserved_256|>": 256, "<|reserved_257|>": 257, END_OF_TEXT: 258}
    small.save(tmp_path / "small")
    with pytest.raises(DataError, match="'cl100k_base' belongs to another vocabulary"):
        import_tokenizer(str(tmp_path / "small"), name="cl100k_base")
    with pytest.raises(DataError, match="id 7 stands for two tokens"):
        vocabulary("small", {b"a": 7, b"b": 7}, {END_OF_TEXT: 258}, ".+|\\s", "a test")


@pytest.mark.parametrize("name", OPENAI)
def test_without_network_a_line_says_what_to_do(name: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="copy tiktoken's cache from where it is and set TIKTOKEN_CACHE_DIR") as error:
        load_tokenizer(name, root=tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    place = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return place


def cached(hub: Path, name: str, files: Path) -> None:
    """What huggingface_hub leaves of a model that it has downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = hub / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(files, model / "snapshots" / commit)


def test_any_tokenizer_of_the_hub_by_name(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files").mkdir()
    foreign_tokenizer("sentencepiece").save(str(tmp_path / "files" / "tokenizer.json"))
    cached(hub, "meta-llama/Small", tmp_path / "files")
    beside = import_tokenizer(str(tmp_path / "files"), name="Small")
    found = load_tokenizer("meta-llama/Small", root=tmp_path)
    assert (found.name, found.hash) == ("Small", beside.hash)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gptlab", "tokenizer", "import", "meta-llama/Small"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code, capsys.readouterr().err
    assert load_tokenizer("Small").trained_on["imported_from"].startswith("meta-llama/Small of the Hugging Face hub")


def test_what_the_hub_does_not_give(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no folder meta-llama/Llama-3, and the hub does not give it.*run: gptlab"):
        load_tokenizer("meta-llama/Llama-3", root=tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.json").write_text("{}")
    cached(hub, "owner/without", tmp_path / "files")
    with pytest.raises(DataError, match=r"holds no tokenizer\.json; transformers makes one"):
        load_tokenizer("owner/without", root=tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizers").mkdir()
    assert not is_hub_name("tokenizers/mine")  # a path whose last part is missing
    with pytest.raises(DataError, match=r"tokenizers/mine.*make one with: gptlab tokenizer train"):
        load_tokenizer("tokenizers/mine")


def test_every_encoding_is_one_of_tiktoken() -> None:
    assert set(OPENAI) <= set(openai_public.ENCODING_CONSTRUCTORS)
    assert set(HASHES) == set(OPENAI)
