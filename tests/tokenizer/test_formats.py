from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from foreign import foreign_tokenizer
from helpers import plain_json
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gptlab.errors import DataError
from gptlab.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    byte_tokenizer,
    grow_bpe,
    import_tokenizer,
    load_tokenizer,
    train_bpe,
    train_char,
)
from gptlab.tokenizer.byte_level import recover_merges


def every_kind(texts: list[str]) -> list[Tokenizer]:
    (bpe,) = train_bpe(texts, [500], name="bpe", special_tokens=["<|user|>", "<sp ace>"])
    (gpt2_like,) = train_bpe(texts, [500], name="gpt2-like", pattern="gpt2")
    (grown,) = grow_bpe(bpe, texts, [700], name="grown", special_tokens=["<late>"])
    return [bpe, gpt2_like, grown, byte_tokenizer(special_tokens=["<|x|>"]), train_char(texts, name="char")]


def test_saved_and_loaded_is_the_same(awkward: list[str], tmp_path: Path) -> None:
    for tokenizer in every_kind(awkward):
        tokenizer.save(tmp_path / "t")
        loaded = load_tokenizer(tmp_path / "t")
        assert (loaded.hash, loaded.name, loaded.kind) == (tokenizer.hash, tokenizer.name, tokenizer.kind)
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.token_bytes() == tokenizer.token_bytes()
        assert loaded.trained_on == tokenizer.trained_on
        for text in awkward:
            assert loaded.encode(text) == tokenizer.encode(text)
        before = {file.name: file.read_bytes() for file in (tmp_path / "t").iterdir()}
        loaded.save(tmp_path / "t")
        assert {file.name: file.read_bytes() for file in (tmp_path / "t").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_hugging_face_reads_the_same_ids(awkward: list[str], tmp_path: Path) -> None:
    for tokenizer in every_kind(awkward):
        tokenizer.save(tmp_path / "t")
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
        assert theirs.get_vocab_size(with_added_tokens=True) == tokenizer.vocab_size
        for text in awkward:
            assert theirs.encode(text).ids == tokenizer.encode(text)
            assert theirs.decode(tokenizer.encode(text)) == text
        marked = "".join(f"a {token} b" for token in tokenizer.special_tokens if tokenizer.kind != "char")
        assert theirs.encode(marked).ids == tokenizer.encode(marked, allow_special=True)


def test_transformers_reads_the_same_ids(awkward: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is in the dev extra")
    (tokenizer,) = train_bpe(awkward, [500], name="t", special_tokens=["<|user|>"])
    (grown,) = grow_bpe(tokenizer, awkward, [600], name="g")
    for each in (tokenizer, grown):
        each.save(tmp_path / each.name)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / each.name)
        assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
        assert (len(theirs), theirs.eos_token_id) == (each.vocab_size, each.end_of_text)
        for text in awkward:
            assert theirs(text)["input_ids"] == each.encode(text)
            assert theirs.decode(each.encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gpt4", "gpt2"])
def test_hugging_face_agrees_on_every_assigned_character(pattern: str, tmp_path: Path) -> None:
    known = [chr(c) for c in range(0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    text = "".join(f"a{c}b 1{c}2 '{c}t!{c}\n" for c in known)
    (tokenizer,) = train_bpe([text], [1500], name="t", pattern=pattern)
    tokenizer.save(tmp_path / "t")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    assert theirs.encode(text).ids == tokenizer.encode(text)


def test_merges_are_recovered_from_tokens_alone(awkward: list[str]) -> None:
    (tokenizer,) = train_bpe(awkward, [600], name="t")
    tokens = tokenizer.token_bytes()
    merges = recover_merges(tokens)
    assert merges is not None
    assert [tokens[left] + tokens[right] for left, right in merges] == tokens[256:-1]
    assert recover_merges([*tokens[:256], b"abc"]) is None  # no merge of two gives it
    assert recover_merges([*tokens[:256], b"ab", b"ab"]) is None
    assert recover_merges(tokens[1:]) is None


def test_merges_txt_reads_as_gpt2_s(awkward: list[str], tmp_path: Path) -> None:
    (tokenizer,) = train_bpe(awkward, [400], name="t", pattern="gpt2")
    tokenizer.save(tmp_path / "t")
    lines = (tmp_path / "t" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#version: 0.2"
    assert len(lines) == 1 + 400 - 257
    vocabulary = json.loads((tmp_path / "t" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    paths = str(tmp_path / "vocab.json"), str(tmp_path / "t" / "merges.txt")
    theirs = tokenizers.Tokenizer(models.BPE.from_file(*paths))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in awkward:
        assert theirs.encode(text).ids == tokenizer.encode(text)


# Damage


@pytest.fixture
def folder(awkward: list[str], tmp_path: Path) -> Path:
    train_bpe(awkward, [400], name="t")[0].save(tmp_path / "t")
    return tmp_path / "t"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_damaged_folders_are_refused(folder: Path) -> None:
    whole = folder.with_name("whole")
    folder.rename(whole)

    def broken() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        return folder

    edit(broken() / "meta.json", '"pattern"', '"patern"')
    with pytest.raises(DataError, match="it was edited since gptlab wrote it"):
        load_tokenizer(folder)
    meta = plain_json(whole / "meta.json")  # and where there is no seal, as before 0.4
    (whole / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    edit(broken() / "tokenizer.json", '"a"', '"b"')
    with pytest.raises(DataError, match="checksum"):
        load_tokenizer(folder)
    edit(broken() / "meta.json", meta["hash"], "0" * 16)
    with pytest.raises(DataError, match=rf"hash to {meta['hash']}, meta.json says 0000"):
        load_tokenizer(folder)
    edit(broken() / "meta.json", r"\\p{N}{1,3}", r"\\p{N}{1,2}")
    with pytest.raises(DataError, match=r"hash to"):
        load_tokenizer(folder)
    edit(broken() / "meta.json", '"pattern"', '"patern"')
    with pytest.raises(DataError, match="damaged: KeyError"):
        load_tokenizer(folder)
    (broken() / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer.json is missing"):
        load_tokenizer(folder)
    (broken() / "meta.json").unlink()
    with pytest.raises(DataError, match="gptlab tokenizer import"):
        load_tokenizer(folder)
    (broken() / "meta.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="is not JSON"):
        load_tokenizer(folder)
    (broken() / "meta.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="format 1"):
        load_tokenizer(folder)
    (broken() / "meta.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        load_tokenizer(folder)
    assert load_tokenizer(broken()).hash == meta["hash"]


def test_a_failed_save_leaves_the_old_folder(folder: Path) -> None:
    old = load_tokenizer(folder)
    tokens = [*old.token_bytes()[:256], b"no merge gives this", b""]
    bad = Tokenizer("bad", "bpe", tokens, {END_OF_TEXT: 257}, pattern=old.pattern)
    with pytest.raises(DataError, match="cannot be written as merges"):
        bad.save(folder)
    assert load_tokenizer(folder).hash == old.hash
    assert [path.name for path in folder.parent.iterdir()] == ["t"]


def test_names_and_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder.parent
    assert load_tokenizer("t", root=root).name == "t"
    assert load_tokenizer(str(folder)).name == "t"
    assert load_tokenizer("byte", root=root).kind == "byte"
    with pytest.raises(DataError, match=r"no tokenizer 'tt' under .*: did you mean 't'|valid: "):
        load_tokenizer("tt", root=root)
    with pytest.raises(DataError, match="is not a tokenizer"):
        load_tokenizer("some/where/else", root=root)
    for name in ("../t", "a/b", "", " ", ".hidden", "a\\b", "byte"):
        with pytest.raises(DataError, match="name"):
            import_tokenizer(str(folder), name=name)


# GPT-2


def test_gpt2_files_give_the_ids_of_tiktoken(test_data: Path, awkward: list[str], tmp_path: Path) -> None:
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    files = test_data / "gpt2_bpe"
    gpt2 = import_tokenizer(str(files), name="gpt2")
    ranks = data_gym_to_mergeable_bpe_ranks(str(files / "vocab.bpe"), str(files / "encoder.json"))
    theirs = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    shakespeare = (test_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    for text in [*awkward, shakespeare]:
        assert gpt2.encode(text) == theirs.encode_ordinary(text)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.token_bytes()[:-1] == [theirs.decode_single_token_bytes(index) for index in range(50256)]
    gpt2.save(tmp_path / "gpt2")
    assert load_tokenizer("gpt2", root=tmp_path).hash == gpt2.hash
    merges = (tmp_path / "gpt2" / "merges.txt").read_text(encoding="utf-8")
    assert merges.split("\n")[1:] == (files / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    as_file = import_tokenizer(str(tmp_path / "gpt2" / "tokenizer.json"), name="copy")
    assert (as_file.kind, as_file.hash) == ("bpe", gpt2.hash)
    (grown,) = grow_bpe(gpt2, [shakespeare], [50300], name="g")
    assert grown.token_bytes()[:50257] == gpt2.token_bytes()
    assert grown.end_of_text == 50256
    assert len(grown.encode(shakespeare)) < len(gpt2.encode(shakespeare))


def test_gpt2_files_that_do_not_belong_together(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "gpt2_bpe"
    encoder = json.loads((source / "encoder.json").read_text(encoding="utf-8"))
    lines = (source / "vocab.bpe").read_text(encoding="utf-8").split("\n")

    def write(table: Any, merges: list[str]) -> str:
        (tmp_path / "encoder.json").write_text(json.dumps(table), encoding="utf-8")
        (tmp_path / "vocab.bpe").write_text("\n".join(merges), encoding="utf-8")
        return str(tmp_path)

    with pytest.raises(DataError, match="do not belong together"):
        import_tokenizer(write(encoder, [*lines[:5], lines[6], lines[5], *lines[7:]]), name="x")
    with pytest.raises(DataError, match="ids are not 0"):
        import_tokenizer(write(encoder | {"zq": 99_999}, lines), name="x")
    with pytest.raises(DataError, match="byte alphabet"):
        import_tokenizer(write(encoder | {"a b": 50257}, lines), name="x")
    with pytest.raises(DataError, match="not a table"):
        import_tokenizer(write([1, 2], lines), name="x")


def test_the_name_gpt2_is_gpt2_s(folder: Path) -> None:
    with pytest.raises(DataError, match="belongs to another"):
        import_tokenizer(str(folder), name="gpt2")


def test_gpt2_without_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import requests

    def offline(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"could not be downloaded.*gptlab tokenizer import FOLDER --name gpt2"):
        load_tokenizer("gpt2", root=tmp_path)


# Any tokenizer.json


def hugging_face(texts: list[str], **parts: Any) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(parts.pop("model", None) or models.BPE())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.pre_tokenizer = parts.pop("pre_tokenizer", cut)
    engine.decoder = parts.pop("decoder", decoders.ByteLevel())
    if (normalizer := parts.pop("normalizer", None)) is not None:
        engine.normalizer = normalizer
    trainer = parts.pop("trainer", None) or trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return engine


def check_same(mine: Tokenizer, theirs: tokenizers.Tokenizer, texts: list[str]) -> None:
    theirs.encode_special_tokens = True
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert mine.encode(text) == ids
        assert mine.encode_documents([text])[0].tolist() == ids


def test_a_byte_level_tokenizer_json_becomes_bpe(awkward: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    theirs = hugging_face(awkward)
    theirs.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    theirs.save(str(path))
    mine = import_tokenizer(str(path), name="x")
    assert (mine.kind, mine.end_of_text, mine.vocab_size) == ("bpe", 0, 400)
    assert mine.stop_ids == {0, 1}
    check_same(mine, theirs, awkward)
    for text in awkward:
        assert mine.decode(mine.encode(text)) == text
    mine.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").hash == mine.hash
    (grown,) = grow_bpe(mine, awkward, [450], name="g")
    assert grown.encode("<s>", allow_special=True) == [0]
    assert grown.token_bytes()[:400] == mine.token_bytes()


@pytest.mark.parametrize("which", ["normalizer", "digits", "plain added token", "metaspace", "unigram", "words"])
def test_other_tokenizer_json_keep_their_engine(
    which: str, awkward: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if which == "normalizer":
        theirs = hugging_face(awkward, normalizer=normalizers.NFC())
    elif which == "digits":
        cuts = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        theirs = hugging_face(awkward, pre_tokenizer=pre_tokenizers.Sequence(cuts))
    elif which == "plain added token":
        theirs = hugging_face(awkward)
        theirs.add_tokens(["the other"])
    elif which == "metaspace":
        bytes_ = [f"<0x{value:02X}>" for value in range(256)]
        theirs = hugging_face(
            awkward,
            model=models.BPE(byte_fallback=True, unk_token="<unk>"),
            pre_tokenizer=pre_tokenizers.Metaspace(),
            decoder=decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
            trainer=trainers.BpeTrainer(
                vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
            ),
        )
    elif which == "unigram":
        theirs = hugging_face(
            awkward,
            model=models.Unigram(),
            pre_tokenizer=pre_tokenizers.Metaspace(),
            decoder=decoders.Metaspace(),
            trainer=trainers.UnigramTrainer(
                vocab_size=2000, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
            ),
        )
    else:
        theirs = hugging_face(
            awkward,
            model=models.WordLevel(unk_token="<unk>"),
            pre_tokenizer=pre_tokenizers.Whitespace(),
            decoder=decoders.Fuse(),
            trainer=trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False),
        )
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    mine = import_tokenizer(str(tmp_path), name="x")
    theirs = tokenizers.Tokenizer.from_file(str(path))  # unigram scores change a little when written
    assert mine.kind == "hf"
    assert "because" in capsys.readouterr().err
    check_same(mine, theirs, awkward)
    plain = "the cat sat on the other mat"
    assert mine.decode(mine.encode(plain)).replace(" ", "") == plain.replace(" ", "")
    assert mine.encode("</s>", allow_special=True) == [mine.end_of_text]
    assert mine.end_of_text not in mine.encode("the cat </s>")
    mine.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert (loaded.hash, loaded.kind, loaded.end_of_text) == (mine.hash, "hf", mine.end_of_text)
    check_same(loaded, theirs, awkward)


def test_the_document_separator_of_a_tokenizer_json(awkward: list[str], tmp_path: Path) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<a>", "<b>"],
        show_progress=False,
    )
    hugging_face(awkward, trainer=trainer).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="end_of_text=TOKEN, one of: <a>, <b>"):
        import_tokenizer(str(tmp_path), name="x")
    with pytest.raises(DataError, match="no added token '<c>'"):
        import_tokenizer(str(tmp_path), name="x", end_of_text="<c>")
    assert import_tokenizer(str(tmp_path), name="x", end_of_text="<b>").end_of_text == 1
    config = {"eos_token": {"content": "<a>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert import_tokenizer(str(tmp_path), name="x").end_of_text == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "not a tokenizer.json"),
        (b"[1]", "not a tokenizer.json"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (
            b'{"added_tokens": [{"content": "</s>", "id": 0}], "model": {"type": "BPE"}}',
            "not a tokenizer.json",
        ),
    ],
)
def test_files_that_are_no_tokenizer(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        import_tokenizer(str(tmp_path), name="x")
    with pytest.raises(DataError, match="nothing to import"):
        import_tokenizer(str(tmp_path / "nowhere"), name="x")


# What an import and a folder say of themselves


def test_an_import_that_does_not_give_the_sources_ids_is_refused(tmp_path: Path) -> None:
    """Merges left out at random: no two encodings are the same."""
    document = json.loads(foreign_tokenizer("bpe").to_str())
    document["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=r"gives other ids than gptlab's reading of it.*\(dropout\)"):
        import_tokenizer(str(tmp_path), name="x")


def test_a_vocabulary_of_another_kind_is_not_believed_to_be_bpe(tmp_path: Path) -> None:
    """WordPiece's tokens under the name of BPE: it loads, and cuts all text into letters and unknowns."""
    document = json.loads(foreign_tokenizer("wordpiece").to_str())
    document["model"] = {"type": "BPE", "unk_token": "<unk>", "merges": [], "vocab": document["model"]["vocab"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=r"says that its model is BPE, and \d+ of its \d+ longer tokens .* by no merge"):
        import_tokenizer(str(tmp_path), name="x", end_of_text="</s>")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "words", "sentencepiece"])
def test_imports_give_the_ids_of_the_source(kind: str, awkward: list[str], tmp_path: Path) -> None:
    theirs = foreign_tokenizer(kind)
    theirs.save(str(tmp_path / "tokenizer.json"))
    mine = import_tokenizer(str(tmp_path), name="x", end_of_text="</s>")
    check_same(mine, theirs, awkward)
    mine.save(tmp_path / "x")
    assert load_tokenizer(tmp_path / "x").hash == mine.hash


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("special_tokens", {"<unk>": 0, "<s>": 1, "</s>": 2, "<nobody>": 3}),
        ("vocab_size", 3),
        ("kind", "char"),
        ("pattern", "x"),
        ("name", 7),
        ("name", "gpt2"),
        ("name", "byte"),
    ],
)
def test_what_meta_json_says_is_held_against_the_tokenizer(key: str, value: Any, tmp_path: Path) -> None:
    foreign_tokenizer("wordpiece").save(str(tmp_path / "tokenizer.json"))
    import_tokenizer(str(tmp_path), name="x", end_of_text="</s>").save(tmp_path / "x")
    path = tmp_path / "x" / "meta.json"
    path.write_text(json.dumps(plain_json(path) | {key: value}), encoding="utf-8")
    with pytest.raises(DataError, match="belongs to another" if value in ("gpt2", "byte") else "damaged: "):
        load_tokenizer(tmp_path / "x")


def test_a_name_leads_to_the_tokenizer_of_that_name(folder: Path) -> None:
    folder.rename(folder.with_name("other"))
    with pytest.raises(DataError, match=r"other/meta.json calls its tokenizer 't'"):
        load_tokenizer("other", root=folder.parent)
    assert load_tokenizer(folder.with_name("other")).name == "t"  # by its path it is what it says it is
