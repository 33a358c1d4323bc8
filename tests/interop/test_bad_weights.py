"""What can be wrong with weights of others: one line that names cause and fix, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import ROPE_31
from helpers import gptlab
from safetensors.torch import load_file, save_file

from gptlab.config import load_config
from gptlab.interop import import_run
from gptlab.systems import tensorfile

Mistake = Callable[..., str]
IMPORT = ("import", "theirs", "--name", "it", "--tokenizer", "bytes")


@pytest.fixture
def theirs(wild_model: Any, place: Path) -> Path:
    """A Llama's folder to break."""
    wild_model("llama3", num_hidden_layers=1).save_pretrained(place / "theirs")
    return place / "theirs"


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(content))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_folder_as_it_was_is_fine(theirs: Path) -> None:
    gptlab(*IMPORT, cwd=theirs.parent)


@pytest.mark.parametrize(
    ("change", "row", "line"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight 64 —", "tensor model.norm.weight is missing"),
        (lambda t: t.update(extra=torch.ones(3)), "model.extra — 3", "tensor model.extra is too much"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(65)}),
            "model.norm.weight 64 65",
            "tensor model.norm.weight is 65, not 64",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(64, 16)}),
            "model.layers.0.self_attn.k_proj.weight 16×64 64×16",
            "k_proj.weight is 64×16, not 16×64",
        ),
    ],
    ids=["missing", "extra", "shape", "turned"],
)
def test_a_tensor_that_does_not_fit(theirs: Path, mistake: Mistake, change: Any, row: str, line: str) -> None:
    change_tensors(theirs, change)
    printed = mistake(*IMPORT)
    assert row in " ".join(printed.split())
    assert line in printed
    assert "get the config and the weights of one model" in printed


def test_several_tensors_that_do_not_fit_are_a_table(theirs: Path, mistake: Mistake) -> None:
    change_config(theirs, num_hidden_layers=2)
    printed = mistake(*IMPORT)
    assert printed.count("model.layers.1.") == 10  # nine in the table, one in the line
    assert "(and 8 more do not fit, listed above)" in printed


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model_type": "mamba"},
            "'mamba' is not known; known are gpt2, llama, mistral, qwen2, qwen3, olmo, olmo2, phi3",
        ),
        ({"model_type": ["llama"]}, "is not known; known are"),
        ({"model_type": "qwen3_moe"}, "olmo2, phi3, gemma2, gemma3_text, smollm3\n"),  # and no advice
        ({"rope_interleaved": True}, "rope_interleaved is True, and gptlab has that only as False"),
        (
            {"embedding_multiplier": 12.0, "attn_logit_softcapping": 50.0, "unk_token_id": 0},
            "'attn_logit_softcapping' (50.0), 'embedding_multiplier' (12.0) are no fields of llama",
        ),
        ({"num_hidden_layers": 10**9}, "says 1000000000 layers, and its 12 tensors leave room for 1 to 12"),
        ({"num_hidden_layers": 10**400}, "layers, and its 12 tensors"),
        ({"num_hidden_layers": 0}, "says 0 layers"),
        ({"num_hidden_layers": 1.5}, "says 1.5 layers"),
        ({"hidden_size": 10**12}, "says a width of 1000000000000, and model.embed_tokens.weight is 257×64"),
        ({"num_attention_heads": 0}, "says 0 heads"),
        ({"num_attention_heads": 10**9}, "says 1000000000 heads"),
        ({"intermediate_size": 10**12}, "units in a hidden layer"),
        ({"max_position_embeddings": 10**12}, "says 1000000000000 positions"),
        ({"vocab_size": 10**15}, "token ids"),
        ({"rope_parameters": [1]}, "its values do not fit together"),
        ({"rope_parameters": {"rope_theta": "wide"}}, "its values do not fit together"),
        ({"model_type": None}, "architecture None is not known"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and gptlab has that only as 'silu'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "rope type 'longrope' is not one"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1.0}},
            "rope type 'llama3' needs low_freq_factor",
        ),
        ({"rope_parameters": {"rope_type": "default", "mood": 2, "rope_theta": 1.0}}, "'mood' of rope type 'default'"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1.0}},
            "partial_rotary_factor is not 1",
        ),
        ({"sliding_window": 128}, "'sliding_window' (128) is no field of llama that gptlab knows"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ({"embedding_multiplier": 12.0}, "'embedding_multiplier' (12.0) is no field"),
        ({"hidden_size": None}, "does not say hidden_size"),
        ({"vocab_size": None}, "does not say vocab_size"),
        ({"num_key_value_heads": 3}, "3 does not divide the 8 heads"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide' and should be a number"),
        ({"attention_bias": True}, "self_attn.k_proj.bias is missing"),
        ({"mlp_bias": True}, "mlp.down_proj.bias is missing"),
        ({"tie_word_embeddings": True}, "ties the head to the embedding"),
        ({"vocab_size": 200}, "has 200 token ids and tokenizer byte 257"),
        ({"vocab_size": 300}, "lm_head.weight is 257×64, not 300×64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_is_not_ours_to_read(theirs: Path, mistake: Mistake, changes: dict[str, Any], line: str) -> None:
    change_config(theirs, **changes)
    assert line in mistake(*IMPORT)


@pytest.mark.parametrize(
    ("model", "changes", "line"),
    [
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is on"),
        ("qwen3", {"layer_types": ["sliding_attention"]}, "with full attention only"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu', which gptlab does not have"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("olmo2", {"clip_qkv": 8.0}, "'clip_qkv' (8.0) is no field of olmo2"),
    ],
)
def test_what_other_architectures_may_not_ask_for(
    wild_model: Any, place: Path, mistake: Mistake, model: str, changes: dict[str, Any], line: str
) -> None:
    wild_model(model).save_pretrained(place / "theirs")
    change_config(place / "theirs", **changes)
    assert line in mistake(*IMPORT)


def test_no_weights(theirs: Path, mistake: Mistake) -> None:
    (theirs / "model.safetensors").unlink()
    assert "theirs holds no weights: no model.safetensors or pytorch_model.bin" in mistake(*IMPORT)


def test_no_config(theirs: Path, mistake: Mistake) -> None:
    (theirs / "config.json").unlink()
    assert "is no Hugging Face folder: it holds no config.json" in mistake(*IMPORT)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_config(theirs: Path, mistake: Mistake, content: str) -> None:
    (theirs / "config.json").write_text(content)
    assert "theirs/config.json" in mistake(*IMPORT)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_damaged_safetensors(theirs: Path, mistake: Mistake, keep: int) -> None:
    content = (theirs / "model.safetensors").read_bytes()
    (theirs / "model.safetensors").write_bytes(content[:keep])
    printed = mistake(*IMPORT)
    assert "model.safetensors is damaged" in printed
    assert "download it again" in printed


def test_a_missing_shard(wild_model: Any, place: Path, mistake: Mistake) -> None:
    wild_model("llama3").save_pretrained(place / "theirs", max_shard_size="200KB")
    min((place / "theirs").glob("model-*.safetensors")).unlink()
    assert "is missing, and an index beside it names it" in mistake(*IMPORT)


def test_an_index_that_leads_out_of_the_folder_does_not(theirs: Path, mistake: Mistake) -> None:
    (theirs / "model.safetensors").rename(theirs.parent / "elsewhere.safetensors")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (theirs / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "theirs/elsewhere.safetensors is missing" in mistake(*IMPORT)


class Malicious:
    """Unpickling this would leave a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.witness,)  # type: ignore[return-value]


def test_a_pickle_that_holds_code_is_not_run(theirs: Path, mistake: Mistake) -> None:
    (theirs / "model.safetensors").unlink()
    witness = theirs / "witness"
    torch.save({"model.norm.weight": Malicious(witness)}, theirs / "pytorch_model.bin", pickle_module=pickle)
    assert "was not run" in mistake(*IMPORT)
    assert not witness.exists()


def test_a_pickle_that_is_no_table_of_tensors(theirs: Path, mistake: Mistake) -> None:
    (theirs / "model.safetensors").unlink()
    torch.save({"model": {"a": torch.ones(1)}, "step": 3}, theirs / "pytorch_model.bin")
    assert "is no table of names and tensors" in mistake(*IMPORT)


def test_quantized_weights(theirs: Path, mistake: Mistake) -> None:
    change_tensors(theirs, lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    assert "model.norm.weight holds torch.int8; quantized weights cannot be imported" in mistake(*IMPORT)


def test_no_tokenizer(theirs: Path, mistake: Mistake) -> None:
    printed = mistake("import", "theirs", "--name", "it")
    assert "theirs holds no tokenizer.json; name the model's tokenizer: --tokenizer NAME_OR_FOLDER" in printed
    (theirs / "tokenizer.model").write_bytes(b"sentencepiece")
    assert "transformers turns it into tokenizer.json" in mistake("import", "theirs", "--name", "it")


def test_a_source_that_is_none(theirs: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nowhere is not a Hugging Face folder (nothing is there); give one" in mistake(
        "import", "nowhere", "--name", "it"
    )
    assert "theirs/config.json is not a Hugging Face folder (it is a file; theirs, in which it is, is one)" in mistake(
        "import", "theirs/config.json", "--name", "it"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "the hub does not give it" in mistake("import", "nobody/nothing", "--name", "it")


def test_the_same_weights_again(theirs: Path, mistake: Mistake) -> None:
    gptlab(*IMPORT, cwd=theirs.parent)
    assert "exists already, with these very weights" in mistake(*IMPORT)


def test_a_name_that_is_a_path(theirs: Path, mistake: Mistake) -> None:
    assert "name" in mistake("import", "theirs", "--name", "../../it", "--tokenizer", "bytes")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c["model_args"].update(n_head=5), "heads do not divide the width"),
        (lambda c: c["model_args"].update(n_layer=3), "is missing"),
        (lambda c: c["model_args"].update(use_rmsnorm=True), "model_args.use_rmsnorm is not nanoGPT's"),
        (lambda c: c.pop("model_args"), "is no nanoGPT checkpoint"),
        (lambda c: c["model"].pop("transformer.ln_f.weight"), "transformer.ln_f.weight is missing"),
    ],
)
def test_nanogpt_checkpoints_that_do_not_fit(place: Path, mistake: Mistake, change: Any, line: str) -> None:
    content = nanogpt_content()
    change(content)
    torch.save(content, place / "ckpt.pt")
    assert line in mistake("import", "ckpt.pt", "--name", "it", "--tokenizer", "bytes")


def nanogpt_content() -> dict[str, Any]:
    from gptlab.config import RunConfig
    from gptlab.interop.gpt2 import gpt2_config, nanogpt_layout
    from gptlab.model import build_model

    config: RunConfig = gpt2_config(dim=16, layers=2, heads=2, context_length=8)
    own = dict(build_model(config, 257).named_parameters())
    names = nanogpt_layout().names({"layers": 2, "tied": True})
    tensors = {theirs[0]: own[ours].detach() for ours, theirs, _, _ in names}
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": True, "dropout": 0.0, "vocab_size": 257}
    return {"model": tensors, "model_args": sizes}


def test_a_full_disk_leaves_nothing(theirs: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "_write", refuse)
    printed = mistake(*IMPORT)
    assert "cannot write runs/it-" in printed
    assert "No space left on device" in printed


def test_fields_that_change_no_number_are_no_obstacle(theirs: Path) -> None:
    """What the published configs of SmolLM2 and others say beside the model."""
    inert = {"_model_name_or_path": "x", "unk_token_id": 0, "is_llama_config": True, "rope_interleaved": False}
    change_config(theirs, **inert, **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}})
    gptlab(*IMPORT, cwd=theirs.parent)


@pytest.mark.parametrize(
    ("model", "changes", "line"),
    [
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not one that gptlab imports"),
        ("phi3", {"rope_parameters": {**ROPE_31, "rope_theta": 1e4}}, "a Phi-3 has the rope type 'default'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is on"),
        (
            "gemma2",
            {"layer_types": ["full_attention"] * 3},
            "layer_types should say one of full_attention, sliding_att",
        ),
        ("gemma2", {"num_hidden_layers": 10**9, "layer_types": None}, "says 1000000000 layers"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "its values do not fit together"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is 5.0, and gptlab has that only as None"),
        (
            "gemma3",
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
            "rope type 'linear' is not one that gptlab imports",
        ),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"mood": 2}}}, "'mood' of sliding_attention"),
        ("smollm3", {"num_hidden_layers": 10**9, "no_rope_layers": None}, "says 1000000000 layers"),
        ("smollm3", {"use_sliding_window": True}, "gptlab imports smollm3 with full attention only"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is on"),
        ("olmo", {"clip_qkv": 8.0}, "clip_qkv is 8.0, and gptlab has that only as None"),
    ],
)
def test_parts_of_newer_architectures_that_gptlab_lacks(
    wild_model: Any, place: Path, mistake: Mistake, model: str, changes: dict[str, Any], line: str
) -> None:
    wild_model(model, num_hidden_layers=1).save_pretrained(place / "theirs")
    change_config(place / "theirs", **changes)
    assert line in mistake(*IMPORT)


def test_a_mistral_that_does_not_say_its_window_has_one(wild_model: Any, place: Path) -> None:
    wild_model("mistral", num_hidden_layers=1, max_position_embeddings=8192).save_pretrained(place / "theirs")
    path = place / "theirs" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sliding_window"}))
    folder = import_run(place / "theirs", name="it", tokenizer="bytes")
    assert load_config(folder / "config.yaml").model.block.attention.window == 4096


JUNK = {
    "empty": b"",
    "text": b"This is no checkpoint.",
    "pickle of a number": pickle.dumps(7),
    "opcodes": b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u",
    "zeros": bytes(1000),
    "zip and no more": b"PK\x03\x04" + bytes(200),
    "get of nothing": b"\x80\x02h\x05.",
    "stack of nothing": b"\x80\x02\x86.",
}


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK)
def test_a_pickle_of_junk(theirs: Path, mistake: Mistake, content: bytes) -> None:
    (theirs / "model.safetensors").unlink()
    (theirs / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in mistake(*IMPORT)
    (theirs.parent / "ckpt.pt").write_bytes(content)
    assert "ckpt.pt" in mistake("import", "ckpt.pt", "--name", "it", "--tokenizer", "bytes")


@pytest.mark.parametrize(
    "content",
    [
        '{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"weight_map": {"a": {"b": "c"}}}',
        '{"weight_map": {"a": 3}}',
    ],
    ids=["deep", "nested", "number"],
)
def test_an_index_that_is_none(theirs: Path, mistake: Mistake, content: str) -> None:
    (theirs / "model.safetensors").rename(theirs / "model-1.safetensors")
    (theirs / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json is no index of tensors" in mistake(*IMPORT)


def test_a_config_nested_without_end(theirs: Path, mistake: Mistake) -> None:
    (theirs / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "theirs/config.json cannot be read" in mistake(*IMPORT)


def test_a_flipped_byte_in_a_pt_file(place: Path, mistake: Mistake) -> None:
    torch.save(nanogpt_content(), place / "ckpt.pt")
    whole = (place / "ckpt.pt").read_bytes()
    with zipfile.ZipFile(place / "ckpt.pt") as archive:
        places = [info.header_offset + 200 for info in archive.infolist() if info.file_size > 1000]
    assert len(places) > 5
    for at in places[:6]:
        (place / "ckpt.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "ckpt.pt is damaged" in mistake("import", "ckpt.pt", "--name", "it", "--tokenizer", "bytes")


@pytest.mark.parametrize("size", ["n_layer", "n_head", "n_embd", "block_size", "vocab_size"])
@pytest.mark.parametrize("value", [10**12, 0, -1, "x", None, 1.5])
def test_sizes_of_a_nanogpt_checkpoint_that_cannot_be(place: Path, mistake: Mistake, size: str, value: Any) -> None:
    content = nanogpt_content()
    content["model_args"][size] = value
    torch.save(content, place / "ckpt.pt")
    mistake("import", "ckpt.pt", "--name", "it", "--tokenizer", "bytes")
