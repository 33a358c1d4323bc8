"""Every file of weights, cut at twenty places or with one bit turned: refused by name in one line, or complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlab
from gptlab.errors import GptlabError
from gptlab.interop import import_run
from gptlab.systems.checkpoint import verify
from gptlab.training.soup import soup

PLACES = 20
OLD = Path(__file__).parents[1] / "fixtures" / "v0.3" / "runs" / "old-6e5e42c5-seed1"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as safetensors, in shards and as a pickle, and a tiny checkpoint of nanoGPT."""
    transformers = pytest.importorskip("transformers")
    from gptlab.interop import export_run
    from gptlab.interop.gpt2 import gpt2_config
    from gptlab.model import build_model
    from gptlab.run import Run
    from gptlab.tokenizer import load_tokenizer

    root = tmp_path_factory.mktemp("sources")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=257, max_position_embeddings=32, **sizes)
    theirs = transformers.LlamaForCausalLM(config)
    theirs.save_pretrained(root / "whole")
    theirs.save_pretrained(root / "sharded", max_shard_size="20KB")
    (root / "pickled").mkdir()
    shutil.copy(root / "whole" / "config.json", root / "pickled")
    torch.save(theirs.state_dict(), root / "pickled" / "pytorch_model.bin")
    own = gpt2_config(dim=16, layers=1, heads=2, context_length=8, approximate="none")
    byte = load_tokenizer("byte")
    model = build_model(own, byte.vocab_size)
    export_run(Run(root, own, model, byte, torch.device("cpu"), torch.float32), root / "nanogpt", "nanogpt")
    return root


FILES = {
    "whole": "whole/model.safetensors",
    "index": "sharded/model.safetensors.index.json",
    "shard": "sharded/model-00001-of-*.safetensors",
    "pickle": "pickled/pytorch_model.bin",
    "nanogpt": "nanogpt/ckpt.pt",
}


def damaged(content: bytes, kind: str) -> Iterator[bytes]:
    """`content`, cut, or with one bit turned, at as many places; ends and beginnings among them."""
    for number in range(PLACES):
        at = (len(content) - 1) * number // (PLACES - 1)
        if kind == "cut":
            yield content[:at]
        else:
            yield content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def refused(attempt: Callable[[], Any], *names: str) -> bool:
    """Whether it is refused in one line that holds one of `names`; anything but a GptlabError is raised."""
    try:
        attempt()
    except GptlabError as error:
        said = str(error)
    else:
        return False
    assert any(name in said for name in names), said
    assert "\n" not in said
    return True


@pytest.mark.parametrize("kind", ["cut", "turned"])
@pytest.mark.parametrize("name", FILES)
def test_an_import_of_a_damaged_file(name: str, kind: str, sources: Path, place: Path) -> None:
    folder = place / "theirs"
    shutil.copytree(sources / FILES[name].partition("/")[0], folder)
    (file,) = folder.glob(FILES[name].partition("/")[2])
    source = file if name == "nanogpt" else folder
    content = file.read_bytes()
    whole = import_run(source, name="it", tokenizer="bytes")
    weights = (whole / "model.safetensors").read_bytes()
    shutil.rmtree(whole)
    for broken in damaged(content, kind):
        file.write_bytes(broken)
        if not refused(lambda: import_run(source, name="it", tokenizer="bytes"), "theirs", "tensor"):
            (made,) = (place / "runs").iterdir()
            # safetensors has no checksums: a bit of a number is another number; env.json has the file's SHA-256
            silent = kind == "turned" and file.suffix == ".safetensors"
            assert silent or (made / "model.safetensors").read_bytes() == weights
            assert kind == "turned" or broken[-1:] != content[-1:] or name == "nanogpt"
            shutil.rmtree(made)
        assert not list((place / "runs").iterdir())


@pytest.mark.parametrize("kind", ["cut", "turned"])
def test_a_run_whose_weights_are_damaged(kind: str, place: Path) -> None:
    """Load (sample, eval, export), and soup."""
    run = shutil.copytree(OLD, place / "runs" / OLD.name)
    file = run / "model.safetensors"
    content = file.read_bytes()
    other = shutil.copytree(OLD, place / "runs" / "other-6e5e42c5-seed2")
    data = OLD.parents[1] / "data"
    for broken in damaged(content, kind):
        file.write_bytes(broken)
        assert refused(lambda: gptlab.load(run, device="cpu"), str(run)) or kind == "turned"
        if kind == "cut":
            assert refused(lambda: soup([run, other], "mixed", folder=place / "made", data=data), str(run))
            assert not (place / "made").exists() or not list((place / "made").glob("[!.]*"))


@pytest.mark.parametrize("kind", ["cut", "turned"])
@pytest.mark.parametrize("file", ["manifest.json", "state.json", "*.safetensors"])
def test_a_checkpoint_that_is_damaged(file: str, kind: str, place: Path) -> None:
    run = shutil.copytree(OLD, place / OLD.name)
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    (path,) = checkpoint.glob(file)
    content = path.read_bytes()
    for broken in damaged(content, kind):
        path.write_bytes(broken)
        step = checkpoint.name.removeprefix("step-")
        assert verify(checkpoint) is not None
        assert refused(lambda: gptlab.load(run, device="cpu", checkpoint=step), checkpoint.name, "checkpoint")  # noqa: B023
