"""`gptlab eval` of what others trained: imported once, said in a line, and then a run like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gptlab_here
from safetensors.torch import load_file, save_file

import gptlab
from gptlab.errors import CheckpointError
from gptlab.interop import export_run, import_run
from gptlab.interop.foreign import is_foreign, name_of, run_of
from gptlab.tokenizer import train_bpe

Call = Callable[..., str]


@pytest.fixture
def folder(wild_model: Any, place: Path) -> Path:
    """A small Llama: a Hugging Face folder `tiny-llama` with its tokenizer, the same as `tiny.gguf`, and questions."""
    wild_model("llama3", vocab_size=282).save_pretrained(place / "bare")
    train_bpe(["The boat sank because it leaked. " * 9], [282], name="small")[0].save(place / "small")
    run = gptlab.load(import_run("bare", name="it", tokenizer="small", runs=place / "made"), device="cpu")
    export_run(run, place / "tiny-llama")
    shutil.move(export_run(run, place / "out", "gguf"), place / "tiny.gguf")
    shutil.rmtree(place / "made")
    lines = [{"query": f"The boat {n} sank because", "choices": ["it leaked", "so"], "gold": 0} for n in range(5)]
    (place / "copa.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return place


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call(SOURCE, …)` asks copa; gives what was said."""

    def run(*arguments: str) -> str:
        words = ("--tasks", "copa", "--task-data", ".", "--device", "cpu")
        return gptlab_here(monkeypatch, capsys, "eval", *arguments, *words)

    return run


def test_a_folder_of_hugging_face_is_imported_once(folder: Path, call: Call) -> None:
    said = call("tiny-llama")
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith("tiny-llama-")
    assert f"tiny-llama: imported into runs/{run.name}" in said
    first = json.loads((run / "evals/copa.json").read_text(encoding="utf-8"))
    assert first["settings"]["run"] == run.name

    assert f"tiny-llama: is imported already, as runs/{run.name}" in call("tiny-llama", "--resume")
    assert "is taken as it is" in call("tiny-llama", "--resume")
    again = call(f"runs/{run.name}")
    assert "import" not in again
    assert list((folder / "runs").iterdir()) == [run]

    tensors = load_file(folder / "tiny-llama/model.safetensors")
    changed = {name: tensor * 1.5 for name, tensor in tensors.items()}
    save_file(changed, folder / "tiny-llama/model.safetensors", metadata={"format": "pt"})
    assert "imported into" in call("tiny-llama")  # other weights under the old name
    assert len(list((folder / "runs").iterdir())) == 2


def test_a_gguf_and_a_run_in_one_table(folder: Path, call: Call) -> None:
    pytest.importorskip("gguf")
    said = call("tiny.gguf", "tiny-llama")
    first, second = (
        json.loads((path / "evals/copa.json").read_text(encoding="utf-8"))
        for path in sorted((folder / "runs").iterdir())
    )
    assert {first["settings"]["run"][:5], second["settings"]["run"][:5]} == {"tiny-"}
    for one, other in zip(first["records"], second["records"], strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-3)
    assert said.count("imported into") == 2
    shutil.copy(folder / "tiny.gguf", folder / "renamed.gguf")
    assert "renamed.gguf: is imported already, as runs/tiny-" in call("renamed.gguf")


def test_nanogpt_is_read_where_it_is(wild_model: Any, folder: Path, call: Call) -> None:
    """Its results are beside the file, and are of the weights that it has now."""
    wild_model("gpt2").save_pretrained(folder / "bare2")
    run = gptlab.load(import_run("bare2", name="it", tokenizer="bytes", runs=folder / "made"), device="cpu")
    file = export_run(run, folder / "nano", "nanogpt")
    run.tokenizer.save(folder / "nano/tokenizer")
    assert "import" not in call("nano/ckpt.pt")
    assert (folder / "nano/evals/copa.json").is_file()
    assert not (folder / "runs").exists()
    assert "is taken as it is" in call("nano/ckpt.pt", "--resume")
    content = torch.load(file)
    content["model"] = {name: tensor * 2 for name, tensor in content["model"].items()}
    torch.save(content, file)
    assert "is taken as it is" not in call("nano/ckpt.pt", "--resume")


def test_a_model_of_the_hub_is_asked_for_once(folder: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """The download is stood in for: it is asked for the files that an import reads, under the name that was given."""
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, list[str]]] = []
    snapshot = folder / "cache" / ("0123abcd" * 5)
    shutil.copytree(folder / "tiny-llama", snapshot)

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    said = call("openai-community/tiny-llama")
    (run,) = (folder / "runs").iterdir()
    assert f"openai-community/tiny-llama: imported into runs/{run.name}" in said
    ((repository, patterns),) = asked
    assert repository == "openai-community/tiny-llama"
    assert {"config.json", "tokenizer.json", "*.safetensors"} <= set(patterns)
    assert f"is imported already, as runs/{run.name}" in call("openai-community/tiny-llama")
    assert len(asked) == 1


def test_what_is_no_model_is_one_line(
    folder: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ask = ("--tasks", "copa", "--task-data", ".")
    assert "the hub does not give it" in mistake("eval", "nobody/nothing", *ask)
    assert "runs/gone is not a run folder" in mistake("eval", "runs/gone", *ask)
    assert "gone is not a run folder" in mistake("eval", "gone", *ask)
    assert "copa.jsonl is not a run folder" in mistake("eval", "copa.jsonl", *ask)
    (folder / "cut.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:5000])
    assert "cut.gguf" in mistake("eval", "cut.gguf", *ask)
    (folder / "other.pt").write_bytes(b"no pickle")
    assert "other.pt" in mistake("eval", "other.pt", *ask)
    (folder / "tiny-llama/config.json").write_text("{}")
    assert "config.json" in mistake("eval", "tiny-llama", *ask)
    assert "no task 'cpoa'" in mistake("eval", "tiny.gguf", "--tasks", "cpoa")  # before anything is imported


def test_names(place: Path) -> None:
    assert name_of(Path("openai-community/gpt2")) == "gpt2"
    assert name_of(Path("a b/SmolLM2-135M.Q4_1.gguf")) == "SmolLM2-135M.Q4_1"
    assert name_of(Path("x/.hidden name")) == "hidden-name"
    assert name_of(Path("x/日本")) == "imported"
    assert is_foreign(Path("openai-community/gpt2"))
    Path("openai-community").mkdir()
    assert not is_foreign(Path("openai-community/gpt2"))  # a folder that is here has no such thing in it
    with pytest.raises(CheckpointError, match="is not a run folder"):
        run_of(Path("openai-community/gpt2"))
