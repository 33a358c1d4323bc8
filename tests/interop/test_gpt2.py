"""The gpt2 preset is OpenAI's model: the same logits as transformers computes, from the same weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from helpers import gptlab

from gptlab.config import load_config
from gptlab.errors import CheckpointError
from gptlab.interop.gpt2 import from_gpt2
from gptlab.interop.nanogpt import load_nanogpt
from gptlab.model import build_model
from gptlab.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def hugging_face_model(vocab_size: int = 50257, layers: int = 12) -> torch.nn.Module:
    """GPT2LMHeadModel at full width, with wild weights: a wrong detail shows in the logits."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=layers, vocab_size=vocab_size, initializer_range=0.2)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def test_logits_equal_transformers() -> None:
    theirs = hugging_face_model()
    config = load_config(ROOT / "configs/gpt2.yaml")
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
    model = build_model(load_config(ROOT / "configs/gpt2.yaml"), 50257, device="meta")
    assert model.parameter_count() == 124_439_808


def nanogpt_checkpoint(model: torch.nn.Module, path: Path) -> None:
    """A ckpt.pt in nanoGPT's own layout: Linear weights (out, in), torch.compile's prefix, optimizer beside it."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        turned = name.endswith(".weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        tensors[f"_orig_mod.{name}"] = (tensor.t() if turned else tensor).contiguous()
    arguments = {"n_layer": 2, "n_head": 12, "n_embd": 768, "block_size": 1024, "bias": True, "dropout": 0.0}
    content = {
        "model": tensors,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 6e-4, "params": [0]}]},
        "model_args": {**arguments, "vocab_size": 300},
        "iter_num": 3,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out"},
    }
    torch.save(content, path)


def test_nanogpt_checkpoint_gives_the_same_logits(tmp_path: Path) -> None:
    theirs = hugging_face_model(vocab_size=300, layers=2)
    nanogpt_checkpoint(theirs, tmp_path / "ckpt.pt")
    load_tokenizer("byte").save(tmp_path / "tokenizer")
    _, model, tokenizer = load_nanogpt(tmp_path / "ckpt.pt")
    ids = torch.tensor([tokenizer.encode("Hello there")])
    with torch.no_grad():
        expected = theirs(ids).logits[..., :257]  # the rest is padding, which is never predicted
        assert (model.eval()(ids, return_logits=True) - expected).abs().max() <= 1e-5 * expected.abs().max()
    done = gptlab("sample", "ckpt.pt", "Hello", "--max-new-tokens", "3", "--seed", "1", cwd=tmp_path)
    assert "Hello" in done.stdout


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
