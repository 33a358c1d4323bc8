"""Runs that transformers has no class for: its own loader and `generate` give what gptlab gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gptlab, make_data

import gptlab as package
from gptlab.config import config_from, dump_yaml
from gptlab.contracts.subject import perturb_weights
from gptlab.errors import CheckpointError
from gptlab.inference.generate import Sampling, generate
from gptlab.interop import export_run
from gptlab.model import build_model
from gptlab.run import Run, save_weights
from gptlab.tokenizer import load_tokenizer

pytest.importorskip("transformers")

SIZES = {"dim": 32, "layers": 3, "heads": 4, "context_length": 64}
MODELS: dict[str, dict[str, Any]] = {
    "demo's parts": {"block": {"attention": {"qk_norm": "RMSNorm", "window": 16, "pattern": "LF"}, "mlp": "ReLU2"}},
    "latent attention": {"block": "LatentAttentionBlock", "position": "NoPosition", "tied": False},
    "buffers of positions": {"position": "ALiBi", "pad_vocab": 64, "block": {"mlp": "ReLU2"}},
    "buffers of experts": {"block": {"mlp": {"use": "MoE", "experts": 4}}, "logit_softcap": 15.0},
    "values of tokens": {"block": {"attention": {"value_embeddings": 1, "gate": "head"}, "mlp": "ReLU2"}},
    "learned positions": {"position": "Learned", "residual": {"skip_scale": 0.5}, "head_bias": True, "tied": False},
    "mup": {"mup": {"dim": 16, "heads": 2}, "position": "Sinusoidal"},
}
OWN = """
import torch.nn.functional as F
from torch import Tensor, nn


class Odd(nn.Module):
    slot = "mlp"

    def __init__(self, dim: int, *, width: int = 40) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.softplus(self.up(x)))
"""
ASK = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
model, found = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not any(found.values()), found
ids = torch.tensor(json.loads(sys.argv[2]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
said = {"text": tokenizer("the cat").input_ids}
with torch.no_grad():
    said["logits"] = model(ids).logits.tolist()
    said["loss"] = float(model(ids, labels=ids).loss)
    prompt = ids[:1, :9]
    said["greedy"] = model.generate(prompt, max_new_tokens=20, **options)[0].tolist()
    said["uncached"] = model.generate(prompt, max_new_tokens=20, use_cache=False, **options)[0].tolist()
    padded = torch.cat([torch.zeros_like(ids[:1, :4]), prompt], 1)
    both = torch.cat([padded, ids[1:, :13]])
    mask = torch.ones_like(both)
    mask[0, :4] = 0
    said["padded"] = model.generate(both, attention_mask=mask, max_new_tokens=20, **options)[0, 4:].tolist()
    said["beams"] = model.generate(prompt, max_new_tokens=8, num_beams=3, **options)[0].tolist()
    said["slow beams"] = model.generate(prompt, max_new_tokens=8, num_beams=3, use_cache=False, **options)[0].tolist()
    said["class"] = type(model).__name__
if len(sys.argv) > 3:
    model.save_pretrained(sys.argv[3])
    tokenizer.save_pretrained(sys.argv[3])
print(json.dumps(said))
"""


def make_run(folder: Path, model: dict[str, Any]) -> Run:
    """A run that was never trained, with weights that hide nothing."""
    config = config_from({"model": {**SIZES, **model}, "train": {"sequence_length": 64, "batch_tokens": 64}})
    tokenizer = load_tokenizer("byte")
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(config.plain()))
    tokenizer.save(folder / "tokenizer")
    save_weights(perturb_weights(build_model(config, tokenizer.vocab_size)), folder / "model.safetensors")
    return package.load(folder, device="cpu", dtype="float32")


def ask(folder: Path, ids: torch.Tensor, cache: Path, *more: str, check: bool = True) -> Any:
    """What transformers says of `folder`, in a process of its own with nothing kept from others."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ASK, str(folder), json.dumps(ids.tolist()), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=cache.parent)
    if not check:
        return done
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def compare(run: Run, said: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        logits = run.model(ids, return_logits=True)
    difference = (torch.tensor(said["logits"]) - logits).abs().max()
    assert difference <= 1e-5 * logits.abs().max()
    flat = logits[:, :-1].flatten(0, 1)
    assert said["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten())), rel=1e-4)
    prompt = ids[0, :9].tolist()
    sampling = Sampling(max_new_tokens=20, temperature=0, stop_at_end=False)
    (continued,) = generate(run.generator, [prompt], sampling, stop_ids=(), device=run.device)
    assert said["greedy"] == said["uncached"] == said["padded"] == [*prompt, *continued]
    assert said["beams"] == said["slow beams"]
    assert said["text"] == run.encode_prompt("the cat")
    assert said["class"] == "GptlabForCausalLM"


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(257, (2, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_and_generates_the_same(name: str, tmp_path: Path, ids: torch.Tensor) -> None:
    run = make_run(tmp_path / "run", MODELS[name])
    folder = export_run(run, tmp_path / "theirs", "hf-code")
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".py") == [
        "configuration_gptlab.py",
        "modeling_gptlab.py",
    ]
    compare(run, ask(folder, ids, tmp_path / "cache"), ids)


def test_a_component_in_a_file_comes_along(tmp_path: Path, ids: torch.Tensor) -> None:
    """And what transformers saves of it again is whole, without the run and the file it came from."""
    (tmp_path / "mine.py").write_text(OWN)
    run = make_run(tmp_path / "run", {"block": {"mlp": f"{tmp_path}/mine.py:Odd"}})
    folder = export_run(run, tmp_path / "theirs", "hf-code")
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.[pj]*"))
    (tmp_path / "mine.py").unlink()
    compare(run, ask(folder, ids, tmp_path / "cache", str(tmp_path / "again")), ids)
    compare(run, ask(tmp_path / "again", ids, tmp_path / "another"), ids)


def test_what_cannot_come_along_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper.py").write_text("WIDTH = 40\n")
    (tmp_path / "two.py").write_text("from helper import WIDTH\n" + OWN)
    (tmp_path / "no-name.py").write_text(OWN)
    (tmp_path / "ours.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for number, (use, message) in enumerate(
        {
            f"{tmp_path}/two.py:Odd": "made of two.py, which imports helper.py; make one file of them",
            f"{tmp_path}/no-name.py:Odd": "made of no-name.py, which is no name of a module there; rename the file",
            "ours:Odd": "made of ours, a module of your own; name it as a file in the config",
        }.items()
    ):
        run = make_run(tmp_path / f"run{number}", {"block": {"mlp": use}})
        with pytest.raises(CheckpointError, match=message):
            export_run(run, tmp_path / "theirs", "hf-code")
    assert not (tmp_path / "theirs").exists()


def test_what_the_model_has_no_place_for_is_said(tmp_path: Path) -> None:
    folder = export_run(make_run(tmp_path / "run", {}), tmp_path / "theirs", "hf-code")
    long = ask(folder, torch.zeros(2, 65, dtype=torch.long), tmp_path / "cache", check=False)
    assert "65 tokens are more than the model's context of 64; shorten the text" in long.stderr
    from gptlab.interop.adapter import left_padding

    assert left_padding(torch.tensor([[1, 1, 1], [1, 1, 0]])) is None
    assert left_padding(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist() == [2, 0]
    with pytest.raises(ValueError, match="a gap in a row"):
        left_padding(torch.tensor([[1, 0, 1]]))


def test_without_gptlab_it_is_said_what_to_install(tmp_path: Path) -> None:
    folder = export_run(make_run(tmp_path / "run", {}), tmp_path / "theirs", "hf-code")
    code = (
        "import sys\n\nclass Absent:\n    def find_spec(self, name, *_):\n        if name == 'gptlab':\n"
        "            raise ModuleNotFoundError(\"No module named 'gptlab'\")\n\nsys.meta_path.insert(0, Absent())\n"
        f"from transformers import AutoConfig\nAutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "pip install gptlab" in done.stderr


def test_the_command_takes_it_where_there_is_no_class_and_says_so(tmp_path: Path, ids: torch.Tensor) -> None:
    make_data(tmp_path)
    small = ["model.dim=32", "model.layers=2", "train.tokens=1024", "train.batch_tokens=256", "eval.tokens=256"]
    small += ["train.sequence_length=32", "model.context_length=64", "data.path=data", "system.device=cpu"]
    gptlab("train", "demo", *(part for each in small for part in ("--set", each)), "--out", "run", cwd=tmp_path)
    done = gptlab("export", "run", "--out", "theirs", cwd=tmp_path)
    assert "wrote theirs, with code of its own: no known architecture has its parts; qwen3 comes closest" in done.stderr
    assert "trust_remote_code=True" in done.stderr
    refused = gptlab("export", "run", "--out", "strict", "--format", "hf", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert not (tmp_path / "strict").exists()
    run = package.load(tmp_path / "run", device="cpu", dtype="float32")
    compare(run, ask(tmp_path / "theirs", ids, tmp_path / "cache"), ids)
