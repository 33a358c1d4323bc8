"""llama2.c's files, written here from a Llama of transformers: logits are equal, ids are those of its own encoder."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlab
from gptlab.errors import GptlabError
from gptlab.interop import import_run
from gptlab.interop.llama2c import read_tokenizer_bin

PIECES = [" ", "t", "h", "e", " t", " th", " the", "he", "ca", " cat", "at", "c", "a", "s", " s", "é", " é", "  ", "in"]
ROWS = 259 + len(PIECES)
IN_FILE = [*("attn.q", "attn.k", "attn.v", "attn.o"), *("mlp.gate", "mlp.down", "mlp.up")]


def tokens() -> list[tuple[float, bytes]]:
    """Score and text of each piece, as llama2.c's tokenizer.py writes them: earlier merges are better."""
    first = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
    single = [(0.0, f"<0x{index:02X}>".encode()) for index in range(256)]
    return [*first, *single, *((-float(index), piece.encode()) for index, piece in enumerate(PIECES))]


def write_tokenizer(path: Path) -> Path:
    rows = b"".join(struct.pack("<fI", score, len(text)) + text for score, text in tokens())
    path.write_bytes(struct.pack("<I", 8) + rows)
    return path


def encode_as_llama2c(text: str) -> list[int]:
    """What its run.c does: characters, or their bytes, and again and again the best pair of neighbours."""
    known = {piece: index for index, (_, piece) in enumerate(tokens())}
    ids: list[int] = []
    for character in (" " + text) if text else "":
        piece = character.encode()
        ids += [known[piece]] if piece in known else [3 + byte for byte in piece]
    while True:
        pairs = [(tokens()[a][1] + tokens()[b][1], at) for at, (a, b) in enumerate(itertools.pairwise(ids))]
        there = [(tokens()[known[pair]][0], -at, known[pair]) for pair, at in pairs if pair in known]
        if not there:
            return [1, *ids]
        _, at, made = max(there)
        ids[-at : -at + 2] = [made]


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys from halves to neighbours."""
    width = rows.shape[0] // heads
    order = [h * width + (i % 2) * (width // 2) + i // 2 for h in range(heads) for i in range(width)]
    return rows[order]


def part(model: Any, name: str, layer: int) -> torch.Tensor:
    block = model.model.layers[layer]
    if name == "attn.norm":
        return block.input_layernorm.weight
    if name == "mlp.norm":
        return block.post_attention_layernorm.weight
    module, matrix = name.split(".")
    weight = getattr(block.self_attn if module == "attn" else block.mlp, f"{matrix}_proj").weight
    if matrix in "qk":
        config = model.config
        return neighbours(weight, config.num_attention_heads if matrix == "q" else config.num_key_value_heads)
    return weight


def write_model(path: Path, model: Any, version: int) -> Path:
    c, table, head = model.config, model.model.embed_tokens.weight, model.lm_head.weight
    tied = bool(c.tie_word_embeddings)
    sizes = (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads)
    rows, length, norm = c.vocab_size, c.max_position_embeddings, model.model.norm.weight
    layers = range(c.num_hidden_layers)

    def every(*names: str) -> list[torch.Tensor]:
        return [part(model, name, layer) for name in names for layer in layers]

    if version == 0:
        content = struct.pack("<7i", *sizes, rows if tied else -rows, length)
        angles = torch.zeros(length, c.hidden_size // c.num_attention_heads // 2)
        order = [table, *every("attn.norm", *IN_FILE[:4], "mlp.norm", *IN_FILE[4:]), norm, angles, angles]
    else:
        content = (struct.pack("<Ii7iB", 0x616B3432, 1, *sizes, rows, length, tied)).ljust(256, b"\0")
        order = [*every("attn.norm", "mlp.norm"), norm, table, *every(*IN_FILE)]
    with torch.no_grad():
        data = b"".join(tensor.float().numpy().tobytes() for tensor in ([*order] if tied else [*order, head]))
    path.write_bytes(content + data)
    return path


def write_checkpoint(path: Path, model: Any) -> Path:
    """`ckpt.pt` of llama2.c's train.py, of a compiled model."""
    c, own = model.config, {"attn.q": "attention.wq", "attn.k": "attention.wk", "attn.v": "attention.wv"}
    own |= {"attn.o": "attention.wo", "attn.norm": "attention_norm", "mlp.norm": "ffn_norm"}
    own |= {"mlp.gate": "feed_forward.w1", "mlp.down": "feed_forward.w2", "mlp.up": "feed_forward.w3"}
    tensors = {
        f"_orig_mod.layers.{layer}.{theirs}.weight": part(model, name, layer).detach().clone()
        for name, theirs in own.items()
        for layer in range(c.num_hidden_layers)
    }
    tensors["_orig_mod.tok_embeddings.weight"] = model.model.embed_tokens.weight.detach()
    tensors["_orig_mod.norm.weight"], tensors["_orig_mod.output.weight"] = (
        model.model.norm.weight.detach(),
        model.lm_head.weight.detach(),
    )
    tensors["_orig_mod.freqs_cos"] = torch.zeros(3)
    sizes = {
        "dim": c.hidden_size,
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "n_kv_heads": c.num_key_value_heads,
        "vocab_size": c.vocab_size,
        "multiple_of": 32,
        "max_seq_len": c.max_position_embeddings,
        "dropout": 0.0,
    }
    torch.save({"model": tensors, "model_args": sizes, "iter_num": 3}, path)
    return path


@pytest.fixture
def wild(wild_model: Callable[..., Any]) -> Callable[[bool], Any]:
    def make(tied: bool) -> Any:
        changes = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64}
        return wild_model("llama3", vocab_size=ROWS, tie_word_embeddings=tied, **changes)

    return make


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["0.bin", "1.bin", "ckpt.pt"])
def test_logits_are_equal(kind: str, tied: bool, wild: Callable[[bool], Any], place: Path) -> None:
    model = wild(tied)
    path = place / kind
    write_checkpoint(path, model) if kind == "ckpt.pt" else write_model(path, model, int(kind[0]))
    write_tokenizer(place / "tokenizer.bin")
    run = gptlab.load(import_run(path, name="tiny"), device="cpu", dtype="float32")
    ids = torch.randint(ROWS, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs, ours = model(ids).logits, run.model(ids, return_logits=True)
    assert torch.allclose(ours, theirs, atol=2e-4 * float(theirs.abs().max()))
    assert run.config.model.tied is tied
    assert run.encode_prompt("the cat") == encode_as_llama2c("the cat")
    assert isinstance(run.generate("the cat", max_new_tokens=4, temperature=0), str)


TEXTS = ["the cat", "the  cat sat in\nthe hat", "thé é  é", "日本 🙂 the", " the", "a", "theheheca at s"]


def test_ids_are_those_of_its_own_encoder_and_text_comes_back(tmp_path: Path) -> None:
    tokenizer = read_tokenizer_bin(write_tokenizer(tmp_path / "tokenizer.bin"), ROWS, "tiny")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert [1, *ids] == encode_as_llama2c(text), text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.end_of_text, tokenizer.vocab_size) == (1, ROWS)
    assert 2 in tokenizer.stop_ids


def test_a_file_that_is_cut_or_another_s_is_refused(
    wild: Callable[[bool], Any], place: Path, mistake: Callable[..., str]
) -> None:
    path = write_model(place / "model.bin", wild(True), 1)
    write_tokenizer(place / "tokenizer.bin")
    whole = path.read_bytes()
    for size in (0, 8, 100, 255, 300, 10_000, len(whole) - 4):
        path.write_bytes(whole[:size])
        assert "model.bin" in mistake("import", str(path), "--name", "x")
    path.write_bytes(whole + b"1234")
    assert "4 bytes stand after its last tensor" in mistake("import", str(path), "--name", "x")
    path.write_bytes(struct.pack("<Ii", 0x616B3432, 2) + whole[8:])
    assert "of version 2 of llama2.c's format, whose weights are quantized" in mistake(
        "import", str(path), "--name", "x"
    )
    path.write_bytes(struct.pack("<7i", *[2**30] * 7) + whole[28:])
    assert "its first numbers are no sizes of a model" in mistake("import", str(path), "--name", "x")
    path.write_bytes(whole)
    content = (place / "tokenizer.bin").read_bytes()
    (place / "tokenizer.bin").write_bytes(content[:-1])
    assert "is no tokenizer.bin of llama2.c, or cut short" in mistake("import", str(path), "--name", "x")
    (place / "tokenizer.bin").write_bytes(content + struct.pack("<fI", 0.0, 1) + b"x")
    assert f"has {ROWS + 1} tokens and the model {ROWS}" in mistake("import", str(path), "--name", "x")
    (place / "tokenizer.bin").unlink()
    assert "has no tokenizer.bin beside it" in mistake("import", str(path), "--name", "x")
    assert "no file nowhere.bin; check the path" in mistake("import", "nowhere.bin", "--name", "x")


def test_a_checkpoint_without_its_tensors_is_refused(wild: Callable[[bool], Any], place: Path) -> None:
    path = write_checkpoint(place / "ckpt.pt", wild(True))
    content = torch.load(path, weights_only=True)
    del content["model"]["_orig_mod.layers.0.feed_forward.w1.weight"]
    torch.save(content, path)
    with pytest.raises(GptlabError, match=r"ckpt\.pt is no checkpoint of llama2\.c"):
        import_run(path, name="x")
