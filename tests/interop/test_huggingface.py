"""In from transformers and out again: the same logits, the same tensors, the same continuation, the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import MODELS
from helpers import gptlab, make_data

import gptlab as package
from gptlab.config import config_from, dump_yaml
from gptlab.errors import CheckpointError
from gptlab.inference.generate import Sampling, generate
from gptlab.interop import export_run, import_run
from gptlab.interop.huggingface import ARCHITECTURES, fitting_architecture
from gptlab.interop.llama import LLAMA, QWEN3
from gptlab.interop.runs import padding
from gptlab.model import build_model
from gptlab.run import Run, save_weights
from gptlab.tokenizer import import_tokenizer, load_tokenizer, train_bpe

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path) -> Run:
    return package.load(folder, device="cpu", dtype="float32")


def transformers_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
        return logits


def our_logits(run: Run, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = run.model(ids, return_logits=True)
        return logits


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, wild_model: Any, place: Path) -> None:
    """Logits over the whole context are within 1e-5 of transformers', and the export is the model that came in."""
    transformers = pytest.importorskip("transformers")
    theirs = wild_model(name)
    theirs.save_pretrained(place / "theirs")
    run = load(import_run(place / "theirs", name=name, tokenizer="bytes"))
    ids = torch.randint(257, (1, 1024), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(theirs, ids)
    assert (our_logits(run, ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.abs().max() > 1

    export_run(run, place / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(place / "ours")
    assert type(again) is type(theirs)
    assert torch.equal(transformers_logits(again, ids), expected)
    state = again.state_dict()
    assert set(state) == set(theirs.state_dict())
    lost = 1e-7 if "gemma" in name else 0.0  # 1 + w is what a norm of theirs multiplies by, and what ours holds
    assert all((tensor - state[key]).abs().max() <= lost for key, tensor in theirs.state_dict().items())

    options = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    continued = theirs.generate(ids[:, :9], attention_mask=torch.ones(1, 9), **options)[0, 9:].tolist()
    sampling = Sampling(max_new_tokens=64, temperature=0, stop_at_end=False)
    assert generate(run.generator, [ids[0, :9].tolist()], sampling, stop_ids=(), device=run.device) == [continued]
    assert len(continued) == 64


def test_every_architecture_is_tested() -> None:
    assert {family.lower() for family, _ in MODELS.values()} == {name.partition("_")[0] for name in ARCHITECTURES}


@pytest.mark.parametrize(
    ("preset", "architecture"), [("gpt2", "gpt2"), ("llama-s", "llama"), ("llama-xs", "llama"), ("demo", None)]
)
def test_which_shipped_configs_can_be_exported(preset: str, architecture: str | None) -> None:
    run = fake_run(package.load_config(f"{preset}"))
    if architecture is None:
        with pytest.raises(CheckpointError, match=r"model\.block\.mlp is ReLU2 \(there: SwiGLU\)"):
            fitting_architecture(run)
    else:
        assert fitting_architecture(run)[0].name == architecture


def fake_run(config: Any, vocab_size: int = 257) -> Run:
    model = build_model(config, vocab_size, device="meta")
    return Run(Path("runs/it"), config, model, load_tokenizer("byte"), torch.device("cpu"), torch.float32)


# ---------------------------------------------------------------- files


def test_sharded_files_and_pickles_without_code(wild_model: Any, place: Path) -> None:
    theirs = wild_model("llama3")
    theirs.save_pretrained(place / "whole")
    theirs.save_pretrained(place / "sharded", max_shard_size="100KB")
    assert (place / "sharded" / "model.safetensors.index.json").is_file()
    (place / "pickled").mkdir()
    torch.save(theirs.state_dict(), place / "pickled" / "pytorch_model.bin")
    (place / "pickled" / "config.json").write_bytes((place / "whole" / "config.json").read_bytes())
    folders = [import_run(place / kind, name=kind, tokenizer="bytes") for kind in ("whole", "sharded", "pickled")]
    weights = {(folder / "model.safetensors").read_bytes() for folder in folders}
    assert len(weights) == 1
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1  # one hash: the same content


def test_half_precision_becomes_float32_exactly(wild_model: Any, place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    wild_model("qwen3").bfloat16().save_pretrained(place / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "theirs", dtype=torch.float32)
    run = load(import_run(place / "theirs", name="half", tokenizer="bytes"))
    ids = torch.randint(257, (1, 64), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(theirs, ids)
    assert (our_logits(run, ids) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_old_files_without_prefix_and_with_masks(wild_model: Any, place: Path) -> None:
    """OpenAI's GPT-2 on the hub: no `transformer.` before the names, and causal masks among the tensors."""
    from safetensors.torch import save_file

    theirs = wild_model("gpt2")
    theirs.save_pretrained(place / "new")
    tensors = {k.removeprefix("transformer."): v for k, v in theirs.transformer.state_dict().items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8).tril() for i in range(4)}
    tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    (place / "old").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "old" / "model.safetensors")
    (place / "old" / "config.json").write_bytes((place / "new" / "config.json").read_bytes())
    new, old = (import_run(place / age, name=age, tokenizer="bytes") for age in ("new", "old"))
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()


@pytest.mark.parametrize("safetensors", [True, False])
def test_a_model_of_the_hub(wild_model: Any, place: Path, monkeypatch: pytest.MonkeyPatch, safetensors: bool) -> None:
    """owner/name is downloaded (here: copied); pickles only where there is nothing else. env.json has the revision."""
    hub = pytest.importorskip("huggingface_hub")
    theirs = wild_model("llama3")
    theirs.save_pretrained(place / "remote")
    if not safetensors:
        (place / "remote" / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), place / "remote" / "pytorch_model.bin")
    snapshot = place / "cache" / "0a1b2c3d"
    snapshot.mkdir(parents=True)

    def download(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "owner/name"
        for file in (place / "remote").iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                (snapshot / file.name).write_bytes(file.read_bytes())
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    folder = import_run("owner/name", name="hubbed", tokenizer="bytes")
    imported = json.loads((folder / "env.json").read_text())[0]["imported"]
    assert (imported["from"], imported["revision"]) == ("owner/name", "0a1b2c3d")
    assert (snapshot / "pytorch_model.bin").exists() is not safetensors


# ---------------------------------------------------------------- vocabularies and tokenizers


def test_a_padded_vocabulary_survives(wild_model: Any, place: Path) -> None:
    """Rows beyond the tokenizer's ids are kept through import, load and export, and never predicted."""
    transformers = pytest.importorskip("transformers")
    for rows in (320, 331):  # a multiple of a power of two, and a prime
        theirs = wild_model("llama3", vocab_size=rows)
        theirs.save_pretrained(place / f"theirs{rows}")
        run = load(import_run(place / f"theirs{rows}", name="padded", tokenizer="bytes"))
        ids = torch.randint(257, (1, 64), generator=torch.Generator().manual_seed(1))
        expected = transformers_logits(theirs, ids)
        logits = our_logits(run, ids)
        assert logits.shape[-1] == 257
        assert torch.allclose(logits, expected[..., :257], rtol=0, atol=1e-5 * float(expected.abs().max()))
        export_run(run, place / f"ours{rows}")
        again = transformers.AutoModelForCausalLM.from_pretrained(place / f"ours{rows}")
        assert torch.equal(transformers_logits(again, ids), expected)


def test_padding_is_the_smallest_power_of_two_that_does() -> None:
    assert [padding(257, rows) for rows in (257, 258, 320, 331)] == [1, 2, 64, 331]
    assert padding(50257, 50304) == 64


def test_token_ids_are_equal_after_export(wild_model: Any, place: Path, test_data: Path) -> None:
    """A BPE trained here, as AutoTokenizer reads it from the exported folder; the tokenizer beside weights is found."""
    transformers = pytest.importorskip("transformers")
    text = (test_data / "tinyshakespeare" / "input.txt").read_text()
    train_bpe([text[:200_000]], [600], name="small")[0].save(place / "small")
    theirs = wild_model("gpt2", vocab_size=640)
    theirs.save_pretrained(place / "theirs")
    run = load(import_run(place / "theirs", name="one", tokenizer="small"))
    export_run(run, place / "ours")
    reader = transformers.AutoTokenizer.from_pretrained(place / "ours")
    piece = text[300_000:340_000] + " naïve 中文 <|endoftext|> 🙂  \n\n\tend"
    assert reader.encode(piece[:-40], add_special_tokens=False) == run.tokenizer.encode(piece[:-40])
    assert reader.eos_token_id == run.tokenizer.end_of_text
    again = load(import_run(place / "ours", name="two"))  # no --tokenizer: it is in the folder
    assert again.tokenizer.hash == run.tokenizer.hash
    (place / "ours" / "meta.json").unlink()  # as any other program would have written it
    third = load(import_run(place / "ours", name="three"))
    assert third.tokenizer.encode(piece) == run.tokenizer.encode(piece)


def test_gpt2s_vocabulary_needs_no_tokenizer_beside_it(wild_model: Any, place: Path, test_data: Path) -> None:
    import_tokenizer(str(test_data / "gpt2_bpe"), name="gpt2").save(place / "tokenizers" / "gpt2")
    wild_model("gpt2", vocab_size=50257).save_pretrained(place / "theirs")
    run = load(import_run(place / "theirs", name="gpt2"))
    assert run.tokenizer.encode("Hello world") == [15496, 995]


# ---------------------------------------------------------------- the run that is made


@pytest.mark.slow
def test_an_imported_run_is_a_run(wild_model: Any, place: Path) -> None:
    """sample, eval with data, and what is recorded of where the weights came from."""
    wild_model("llama3").save_pretrained(place / "theirs")
    gptlab("import", "theirs", "--name", "tiny", "--tokenizer", "bytes", cwd=place)
    (folder,) = (place / "runs").iterdir()
    run = load(folder)
    assert (run.step, run.finished, run.metrics) == (None, True, [])
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    session = json.loads((folder / "env.json").read_text())[0]
    assert session["imported"]["architecture"] == "llama"
    assert len(session["imported"]["sha256"]["model.safetensors"]) == 64
    done = gptlab("sample", str(folder), "Hello", "--max-new-tokens", "4", "--seed", "1", cwd=place)
    assert "Hello" in done.stdout
    make_data(place / "text")
    gptlab("eval", str(folder), "--tasks", "loss", "--data", "text/data", "--limit", "2", cwd=place)
    (result,) = (folder / "evals").glob("loss*.json")
    assert json.loads(result.read_text())["results"]["loss"] > 0


# ---------------------------------------------------------------- runs of our own, out


def trained_here(place: Path, model: dict[str, Any]) -> Run:
    """A run of gptlab's own, as it is left by training."""
    config = config_from({"name": "own", "model": model, "train": {"sequence_length": 64, "batch_tokens": 64}})
    built = build_model(config, 257)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = place / "own"
    save_weights(built, folder / "model.safetensors")
    (folder / "config.yaml").write_text(dump_yaml(config.plain()))
    load_tokenizer("byte").save(folder / "tokenizer")
    return load(folder)


SIZES = {"dim": 64, "layers": 2, "heads": 4}
OURS = {
    "llama": {"block": {"mlp": "SwiGLU"}},
    "llama-gains-left-out": {"block": {"mlp": "SwiGLU"}, "norm": {"use": "RMSNorm", "affine": False}, "tied": False},
    "qwen3": {"block": {"attention": {"qk_norm": "RMSNorm", "kv_heads": 2}, "mlp": "SwiGLU"}},
    "qwen2": {"block": {"attention": {"bias": True, "out_bias": False, "kv_heads": 2}, "mlp": "SwiGLU"}},
    "olmo": {"block": {"mlp": "SwiGLU"}, "norm": {"use": "LayerNorm", "affine": False, "bias": False, "eps": 1e-5}},
    "gpt2-without-biases": {
        "block": {"attention": {"bias": False}, "mlp": {"use": "GELU", "approximate": "none"}},
        "norm": {"use": "LayerNorm", "bias": False},
        "position": "Learned",
    },
}


@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_gives_the_same_logits_in_transformers(name: str, place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run = trained_here(place, {**SIZES, **OURS[name]})
    export_run(run, place / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "out")
    assert theirs.config.model_type == name.partition("-")[0]
    ids = torch.randint(257, (2, 64), generator=torch.Generator().manual_seed(1))
    expected = our_logits(run, ids)
    assert (transformers_logits(theirs, ids) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ({"block": {"mlp": "ReLU2"}}, "model.block.mlp is ReLU2"),
        ({"block": {"mlp": "SwiGLU"}, "logit_softcap": 30.0}, "model.logit_softcap is 30.0"),
        ({"block": {"mlp": "SwiGLU"}, "position": "ALiBi"}, "model.position is ALiBi"),
        ({"block": {"mlp": "SwiGLU", "placement": "sandwich"}}, "model.block.placement is sandwich"),
        (
            {"block": {"mlp": "SwiGLU", "attention": {"window": 32, "pattern": "S"}}},
            "attention.pattern is S (there: L)",
        ),
        (
            {"block": {"mlp": "SwiGLU", "attention": {"bias": True}}, "position": {"use": "RoPE", "fraction": 0.5}},
            "model.position.fraction is 0.5",
        ),
        ({"block": {"mlp": "SwiGLU"}, "head_bias": True}, "model.head_bias is True"),
        ({"block": {"mlp": "SwiGLU"}, "mup": {"dim": 32}}, "model.mup is {'dim': 32}"),
    ],
)
def test_what_stands_in_the_way_of_an_export_is_named(
    place: Path, mistake: Any, model: dict[str, Any], part: str
) -> None:
    trained_here(place, {**SIZES, **model})
    for form in ("hf", "nanogpt", "gguf"):
        printed = mistake("export", "own", "--format", form, "--out", "out")
        assert "cannot be exported" in printed
    printed = mistake("export", "own", "--format", "hf", "--out", "out")
    assert part in printed
    assert "--format hf-code writes it for transformers, with code" in printed


def test_a_folder_that_holds_something_is_left_alone(place: Path, mistake: Any) -> None:
    trained_here(place, {**SIZES, **OURS["llama"]})
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("unique")
    assert "full holds something already" in mistake("export", "own", "--out", "full")


def test_tables_read_in_both_directions() -> None:
    """A config of theirs, read and written and read, is the same for every field of the table."""
    theirs = {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 100,
        "max_position_embeddings": 77,
        "rms_norm_eps": 1e-3,
        "rope_theta": 123.0,
        "head_dim": 8,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    for architecture in (LLAMA, QWEN3):
        section = architecture.model_section(theirs, "config.json")
        written = architecture.to_config_json(section, 5)
        assert {key: written[key] for key in theirs} == theirs
        assert architecture.model_section(written, "config.json") == section


def test_an_unknown_format_is_refused(place: Path) -> None:
    with pytest.raises(CheckpointError, match="known: hf, hf-code, nanogpt, gguf"):
        export_run(trained_here(place, SIZES), place / "out", "onnx")
