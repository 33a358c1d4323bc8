"""nanoGPT's character models: 65 ids and no special token, in; and out with what its sample.py looks for."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlab
from gptlab.errors import CheckpointError
from gptlab.interop import export_run, import_run
from gptlab.interop.gpt2 import gpt2_config, nanogpt_layout
from gptlab.interop.nanogpt import read_meta
from gptlab.model import build_model
from gptlab.run import Run
from gptlab.tokenizer import char_tokenizer, load_tokenizer, train_bpe

CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak."


def character_model(place: Path) -> dict[str, Any]:
    """As `train.py config/train_shakespeare_char.py` and `prepare.py` leave it, only smaller; what is in ckpt.pt."""
    config = gpt2_config(dim=16, layers=2, heads=2, context_length=32, bias=False)
    own = dict(build_model(config, 65).named_parameters())
    torch.manual_seed(0)
    names = nanogpt_layout().names({"layers": 2, "tied": True})
    tensors = {
        theirs[0]: own[ours].detach() + torch.randn_like(own[ours]) for ours, theirs, _, _ in names if ours in own
    }
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "bias": False, "dropout": 0.0, "vocab_size": 65}
    content = {"model": tensors, "model_args": sizes, "config": {"dataset": "shakespeare_char"}, "iter_num": 5}
    (place / "out-shakespeare-char").mkdir()
    torch.save(content, place / "out-shakespeare-char" / "ckpt.pt")
    (place / "data" / "shakespeare_char").mkdir(parents=True)
    itos = dict(enumerate(CHARACTERS))
    meta = {"vocab_size": 65, "itos": itos, "stoi": {text: index for index, text in itos.items()}}
    (place / "data" / "shakespeare_char" / "meta.pkl").write_bytes(pickle.dumps(meta))
    return content


def test_a_character_model_comes_in_and_goes_out(place: Path) -> None:
    content = character_model(place)
    assert len(CHARACTERS) == 65
    folder = import_run("out-shakespeare-char/ckpt.pt", name="shakespeare")  # meta.pkl is where nanoGPT puts it
    run = gptlab.load(folder, device="cpu", dtype="float32")
    stoi = {text: index for index, text in enumerate(CHARACTERS)}
    ids = [stoi[character] for character in TEXT]
    assert run.tokenizer.encode(TEXT) == run.tokenizer.encode(TEXT, allow_special=True) == ids
    assert run.encode_prompt(TEXT) == [stoi["\n"], *ids]  # as sample.py's --start
    assert run.tokenizer.decode(ids) == TEXT
    assert run.tokenizer.stop_ids == frozenset()
    assert len(run.generate("First", max_new_tokens=50, seed=1)) == 50  # a line end ends nothing
    assert run.loss(TEXT).bytes == len(TEXT)
    assert run.loss(TEXT).text_nats == pytest.approx(run.loss(TEXT).nats)

    written = export_run(run, place / "out", "nanogpt")
    again = torch.load(written, weights_only=True)
    assert again["model_args"] == content["model_args"]
    assert all(torch.equal(tensor, again["model"][name]) for name, tensor in content["model"].items())
    assert sample_py_codec(written)[0](TEXT) == ids
    assert sample_py_codec(written)[1](ids) == TEXT


def sample_py_codec(checkpoint: Path) -> tuple[Any, Any]:
    """What nanoGPT's sample.py encodes and decodes with, run in the folder of the checkpoint."""
    config = torch.load(checkpoint, weights_only=True)["config"]
    meta = pickle.loads((checkpoint.parent / "data" / config["dataset"] / "meta.pkl").read_bytes())
    return lambda text: [meta["stoi"][c] for c in text], lambda ids: "".join(meta["itos"][i] for i in ids)


def test_where_the_characters_are_looked_for(place: Path, mistake: Any) -> None:
    character_model(place)
    meta = place / "data" / "shakespeare_char" / "meta.pkl"
    named = import_run("out-shakespeare-char/ckpt.pt", name="a", tokenizer=str(meta))
    meta.rename(place / "out-shakespeare-char" / "meta.pkl")
    beside = import_run("out-shakespeare-char/ckpt.pt", name="b")
    assert len({json.loads((run / "tokenizer" / "meta.json").read_text())["hash"] for run in (named, beside)}) == 1
    (place / "out-shakespeare-char" / "meta.pkl").unlink()
    printed = mistake("import", "out-shakespeare-char/ckpt.pt", "--name", "c")
    assert "has 65 token ids, too few for GPT-2's" in printed
    assert "--tokenizer data/shakespeare_char/meta.pkl" in printed


class Malicious:
    """Unpickling this would leave a file behind."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("witness"),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"itos": {0: Malicious()}}), "it asks for pathlib.Path.touch, and was not run|was not run"),
        (pickle.dumps({"itos": {0: "ab", 1: "c"}}), "'ab' \\(id 0\\) is no character"),
        (pickle.dumps({"itos": {0: "a", 1: "a"}}), "is there twice"),
        (pickle.dumps({"itos": {1: "a"}}), "no meta.pkl of nanoGPT"),
        (pickle.dumps({"itos": {0: 7}}), "no meta.pkl of nanoGPT"),
        (pickle.dumps([1]), "no meta.pkl of nanoGPT"),
        (b"junk", "no meta.pkl of nanoGPT"),
        (b"", "no meta.pkl of nanoGPT"),
    ],
)
def test_a_meta_pkl_that_is_none_is_not_run(place: Path, content: bytes, reason: str) -> None:
    (place / "meta.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_meta(place / "meta.pkl", "it")
    assert not (place / "witness").exists()


def gpt2_shaped(place: Path, kind: str) -> Run:
    """A run of GPT-2's shape, as training leaves it."""
    tokenizers = {
        "char": lambda: char_tokenizer(TEXT, name="char"),
        "byte": lambda: load_tokenizer("byte"),
        "bpe": lambda: train_bpe([TEXT * 3], [262], name="bpe")[0],
    }
    tokenizer = tokenizers[kind]()
    config = gpt2_config(dim=16, layers=1, heads=2, context_length=32, bias=False)
    model = build_model(config, tokenizer.vocab_size)
    return Run(place, config, model, tokenizer, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_what_sample_py_needs_is_exported_for_every_tokenizer(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = gpt2_shaped(place, kind)
    encode, decode = sample_py_codec(export_run(run, place / "out", "nanogpt"))
    assert decode(encode(TEXT)) == TEXT
    assert decode([run.tokenizer.end_of_text]) == "<|endoftext|>"
    assert decode(run.tokenizer.encode(TEXT)) == TEXT
    if kind != "bpe":
        assert encode(TEXT) == run.tokenizer.encode(TEXT)
    said = capsys.readouterr().err
    assert "copy out/data/gpt2 into its data/" in said.replace(f"{place}/", "")
    assert ("character by character" in said) == (kind == "bpe")
