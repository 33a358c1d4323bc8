"""The gpt2 preset is OpenAI's model: the same logits as transformers computes, from the same weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from helpers import gptlab

import gptlab as package
from gptlab.config import load_config
from gptlab.errors import CheckpointError
from gptlab.interop import export_run, import_run
from gptlab.interop.gpt2 import from_gpt2
from gptlab.interop.nanogpt import load_nanogpt
from gptlab.model import build_model
from gptlab.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def hugging_face_model(vocab_size: int = 50257, layers: int = 12, activation: str = "gelu_new") -> torch.nn.Module:
    """GPT2LMHeadModel at full width, with wild weights: a wrong detail shows in the logits."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=layers, vocab_size=vocab_size, initializer_range=0.2, activation_function=activation
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def test_logits_equal_transformers() -> None:
    theirs = hugging_face_model()
    config = load_config("gpt2")
    ours = build_model(config, 50257).eval()
    converted = from_gpt2(theirs.state_dict(), conv1d=True)
    own = dict(ours.named_parameters())
    assert set(own) == set(converted)
    with torch.no_grad():
        for name, parameter in own.items():
            assert parameter.shape == converted[name].shape
            parameter.copy_(converted[name])
        ids = torch.randint(50257, (1, 1024))
        expected = theirs(ids).logits
        logits = ours(ids, return_logits=True)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_parameter_count_is_gpt2s() -> None:
    model = build_model(load_config("gpt2"), 50257, device="meta")
    assert model.parameter_count() == 124_439_808


def nanogpt_checkpoint(model: torch.nn.Module, path: Path, *, bias: bool = True) -> None:
    """A ckpt.pt in nanoGPT's own layout: Linear weights (out, in), torch.compile's prefix, optimizer beside it."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".bias") and not bias:
            continue
        turned = name.endswith(".weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        tensors[f"_orig_mod.{name}"] = (tensor.t() if turned else tensor).contiguous()
    arguments = {"n_layer": 2, "n_head": 12, "n_embd": 768, "block_size": 1024, "bias": bias, "dropout": 0.0}
    content = {
        "model": tensors,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 6e-4, "params": [0]}]},
        "model_args": {**arguments, "vocab_size": 300},
        "iter_num": 3,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out"},
    }
    torch.save(content, path)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_checkpoint_gives_the_same_logits(tmp_path: Path, bias: bool) -> None:
    """nanoGPT's model computes the exact GELU (nn.GELU()), and may have no biases at all."""
    theirs = hugging_face_model(vocab_size=300, layers=2, activation="gelu")
    if not bias:
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if name.endswith(".bias"):
                    parameter.zero_()
    nanogpt_checkpoint(theirs, tmp_path / "ckpt.pt", bias=bias)
    load_tokenizer("byte").save(tmp_path / "tokenizer")
    _, model, tokenizer = load_nanogpt(tmp_path / "ckpt.pt")
    ids = torch.tensor([tokenizer.encode("Hello there")])
    with torch.no_grad():
        expected = theirs(ids).logits[..., :257]  # the rest is padding, which is never predicted
        assert (model.eval()(ids, return_logits=True) - expected).abs().max() <= 1e-5 * expected.abs().max()
    done = gptlab("sample", "ckpt.pt", "Hello", "--max-new-tokens", "3", "--seed", "1", cwd=tmp_path)
    assert "Hello" in done.stdout


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_in_and_out_is_the_same_checkpoint(tmp_path: Path, bias: bool) -> None:
    """Import, export: every tensor under nanoGPT's names with its values, and the same model_args."""
    nanogpt_checkpoint(hugging_face_model(300, 2, "gelu"), tmp_path / "ckpt.pt", bias=bias)
    load_tokenizer("byte").save(tmp_path / "tokenizer")
    folder = import_run(tmp_path / "ckpt.pt", name="nano", runs=tmp_path / "runs")
    written = export_run(package.load(folder, device="cpu"), tmp_path / "out", "nanogpt")
    before, after = (torch.load(path, weights_only=True) for path in (tmp_path / "ckpt.pt", written))
    assert after["model_args"] == before["model_args"]
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in before["model"].items()}
    assert set(after["model"]) == set(tensors)
    assert all(torch.equal(tensor, after["model"][name]) for name, tensor in tensors.items())
    ids = torch.tensor([[1, 2, 3]])
    models = [load_nanogpt(path)[1].eval() for path in (tmp_path / "ckpt.pt", written)]
    with torch.no_grad():
        assert torch.equal(*(model(ids, return_logits=True) for model in models))


def test_gpt2s_gelu_is_said_to_be_another_in_nanogpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hugging_face_model(300, 2).save_pretrained(tmp_path / "hf")
    load_tokenizer("byte").save(tmp_path / "tokenizer")
    folder = import_run(tmp_path / "hf", name="g", tokenizer=str(tmp_path / "tokenizer"), runs=tmp_path / "runs")
    export_run(package.load(folder, device="cpu"), tmp_path / "out", "nanogpt")
    assert "differ in the third digit" in capsys.readouterr().err


class Malicious:
    """Unpickling this would leave a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.witness,)  # type: ignore[return-value]


def test_a_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"model": Malicious(witness)}, tmp_path / "evil.pt", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="was not run"):
        load_nanogpt(tmp_path / "evil.pt")
    done = gptlab("sample", "evil.pt", "Hello", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert not witness.exists()


def test_a_foreign_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"transformer\.wtee\.weight"):
        from_gpt2({"transformer.wtee.weight": torch.zeros(1)}, conv1d=True)
