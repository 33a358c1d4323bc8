"""What only an NVIDIA GPU can show. `benchmarks/gpu.py` runs these too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, make_data, rows

from gptlab.config import config_from, load_config
from gptlab.hardware.memory import largest_micro_batch
from gptlab.hardware.precision import has_float8
from gptlab.inference.generate import Sampling, generate
from gptlab.loss import CrossEntropy, TokenBatch
from gptlab.model import build_model
from gptlab.model.float8 import Float8Linear
from gptlab.training.loop import train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY)
    return folder


def run(setting: Path, name: str, *options: str, resume: bool = False) -> Path:
    """Train the tiny config on the GPU into a folder of its own."""
    overrides = [f"data.path={setting}/data", "system.device=cuda", "system.threads=null", *options]
    return train(load_config(setting / "config.yaml", overrides), folder=setting / name, resume=resume).folder


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in rows(folder) if "train/loss" in row]


def make_model(device: str, **changes: object) -> torch.nn.Module:
    values = {"model": {"dim": 64, "layers": 2, "heads": 4, **changes}, "train": {"sequence_length": 64}}
    return build_model(config_from(values), 97, device=device)


def batch(device: str) -> TokenBatch:
    ids = torch.randint(97, (8, 65), generator=torch.Generator().manual_seed(0)).to(device)
    return TokenBatch(ids[:, :-1], ids[:, 1:], torch.zeros_like(ids[:, 1:]))


def test_float32_training_equals_the_cpu(setting: Path) -> None:
    on_gpu = run(setting, "gpu", "system.compile=false")
    on_cpu = run(setting, "cpu", "system.device=cpu")
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), abs=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_learns(setting: Path, dtype: str) -> None:
    folder = run(setting, dtype, f"train.dtype={dtype}", "system.compile=false", "train.tokens=20480")
    found = losses(folder)
    assert found[-1] < found[0] - 0.5


def test_compiled_equals_eager(setting: Path) -> None:
    eager = run(setting, "eager", "system.compile=false")
    compiled = run(setting, "compiled", "system.compile=true")
    assert losses(compiled) == pytest.approx(losses(eager), abs=1e-3)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_equal_no_graphs(setting: Path, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Ten steps of two micro-batches each, validated on the way: what a graph overwrites is nothing that is kept."""
    from torch._inductor.cudagraph_trees import get_manager

    options = ("train.tokens=2560", "system.micro_batch=4", "eval.every=4")
    plain = run(setting, f"no-{mode}", *options, "system.compile=true")
    graphs = run(setting, mode, *options, f"system.compile={mode}")
    assert len(losses(plain)) == 10
    assert "torch.compile failed" not in capfd.readouterr().err
    assert get_manager(0, create_if_none_exists=False) is not None  # of graphs that were recorded
    found = [row["val/loss"] for row in rows(graphs) if "val/loss" in row]
    assert losses(graphs) == pytest.approx(losses(plain), abs=1e-3)
    assert found == pytest.approx([row["val/loss"] for row in rows(plain) if "val/loss" in row], abs=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available() or not has_float8(CUDA), reason="this GPU multiplies no float8")
def test_float8_products_of_the_hardware_are_the_emulated_ones() -> None:
    for rows_, dtype in ((37, torch.bfloat16), (64, torch.float32)):
        found = []
        for device in ("cpu", "cuda"):
            torch.manual_seed(0)
            layer, x = Float8Linear(64, 96, bias=False), torch.randn(rows_, 64)
            layer.to(device)
            given = x.to(device, dtype).requires_grad_()
            y = layer(given)
            y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(device, dtype))
            found.append([tensor.detach().float().cpu() for tensor in (y, given.grad, layer.weight.grad)])
        for ours, theirs in zip(*found, strict=True):
            assert (ours - theirs).norm() <= 0.01 * ours.norm()


def test_a_head_in_float8_trains_compiled(setting: Path) -> None:
    options = ("model.pad_vocab=16", "system.compile=true", "train.dtype=bfloat16", "train.tokens=20480")
    found = [losses(run(setting, f"float8-{on}", *options, f"model.float8_head={on}")) for on in ("true", "false")]
    assert found[0][-1] == pytest.approx(found[1][-1], abs=0.1)


def test_muon_trains_compiled(setting: Path) -> None:
    found = losses(run(setting, "muon", "optimizer=Muon", "system.compile=true", "train.dtype=bfloat16"))
    assert found[-1] < found[0] - 0.5


def test_resume_goes_on(setting: Path) -> None:
    options = ("system.compile=false", "model.dropout=0.1", "system.micro_batch=4")
    whole = run(setting, "whole", *options)
    run(setting, "parts", *options, "checkpoint.every=8", "train.tokens=2560")
    run(setting, "parts", *options, "train.tokens=5120", resume=True)
    # The schedule of the first part was that of a shorter run; only what is after it must have gone on.
    assert [row["step"] for row in rows(setting / "parts") if "train/loss" in row] == list(range(1, 21))
    assert len(losses(whole)) == 20


def test_interrupted_and_resumed_is_the_same_run(setting: Path) -> None:
    """Kill between two checkpoints, by hand: drop the newest and go on from the one before."""
    import shutil

    options = ("system.compile=false", "model.dropout=0.1", "system.micro_batch=4", "checkpoint.every=8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = run(setting, "steady", *options)
        broken = setting / "broken"
        shutil.copytree(whole, broken)
        shutil.rmtree(broken / "checkpoints" / "step-00000020")
        (broken / "model.safetensors").unlink()
        run(setting, "broken", *options, resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses(broken) == pytest.approx(losses(whole), abs=1e-6)
    assert len(json.loads((broken / "env.json").read_text())) == 2


def test_chunked_loss_equals_whole() -> None:
    found = []
    for chunk in (None, 100):
        model = make_model("cuda")
        out = CrossEntropy(chunk=chunk)(model, batch("cuda"))
        out.sum.backward()
        found.append((out.sum.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [False, True])
def test_documents_and_grouped_queries_equal_the_cpu(mask: bool) -> None:
    block = {"attention": {"document_mask": mask, "kv_heads": 2, "qk_norm": "RMSNorm"}}
    documents = torch.tensor([[0] * 20 + [1] * 44] * 8)
    outputs = []
    for device in ("cpu", "cuda"):
        model = make_model(device, block=block).eval()
        with torch.no_grad():
            outputs.append(model(batch(device).inputs, documents.to(device), return_logits=True).cpu())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


def test_generation_equals_the_cpu_and_itself_in_a_batch() -> None:
    sampling = Sampling(max_new_tokens=100, temperature=0, stop_at_end=False)
    prompts = [[1, 2, 3], [4] * 20, [5, 6]]
    std = {"initialization": {"std": 0.3}, "tied": False}
    on_cpu = generate(make_model("cpu", **std), prompts, sampling, stop_ids=(), device=torch.device("cpu"))
    model = make_model("cuda", **std)
    on_gpu = generate(model, prompts, sampling, stop_ids=(), device=CUDA)
    alone = [generate(model, [p], sampling, stop_ids=(), device=CUDA)[0] for p in prompts]
    assert on_gpu == alone
    agree = sum(a == b for x, y in zip(on_cpu, on_gpu, strict=True) for a, b in zip(x, y, strict=True))
    assert agree > 0.9 * 300  # rounding may part ways late, and then everything after differs


def test_micro_batch_is_halved_until_it_fits() -> None:
    free = torch.cuda.mem_get_info()[0]

    def needs(rows: int) -> None:
        torch.empty(int(free * 0.3) * rows, dtype=torch.uint8, device="cuda")

    assert largest_micro_batch(needs, 16, CUDA) == 2


# ---------------------------------------------------------------- backends of attention

MASKS = {
    "causal": {},
    "window": {"window": 20, "pattern": "LF"},
    "documents": {"document_mask": True},
    "both": {"document_mask": True, "window": 20, "kv_heads": 2},
}
SCORES = {"plain": {}, "softcap": {"softcap": 3.0}}


def loss_and_gradients(device: str, dtype: torch.dtype, **model: Any) -> tuple[float, list[torch.Tensor]]:
    """Loss a token of a model with wild weights on packed documents, and its gradients, on the CPU."""
    made = make_model(device, **model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(device))
    documents = torch.tensor([[0] * 20 + [1] * 44] * 8, device=device)
    given = dataclasses.replace(batch(device), documents=documents)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        out = CrossEntropy(chunk=None)(made, given)
    out.sum.backward()
    return out.sum.item() / int(out.count), [p.grad.float().cpu() for p in made.parameters() if p.grad is not None]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("position", ["RoPE", "ALiBi"])
def test_flex_equals_explicit_in_float32(mask: str, scores: str, position: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        found = [
            loss_and_gradients(
                "cuda",
                torch.float32,
                position=position,
                block={"attention": {**MASKS[mask], **SCORES[scores], "backend": backend}},
            )
            for backend in ("explicit", "flex")
        ]
    finally:
        torch.set_float32_matmul_precision(before)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mask", MASKS)
def test_varlen_equals_explicit_in_bfloat16(mask: str) -> None:
    exact = loss_and_gradients("cuda", torch.float32, block={"attention": {**MASKS[mask], "backend": "explicit"}})
    found = loss_and_gradients("cuda", torch.bfloat16, block={"attention": {**MASKS[mask], "backend": "varlen"}})
    assert found[0] == pytest.approx(exact[0], rel=1e-2)
    for ours, theirs in zip(found[1], exact[1], strict=True):
        assert (ours - theirs).norm() <= 0.05 * theirs.norm() + 1e-3


@pytest.mark.parametrize("attention", [*MASKS.values(), {"softcap": 3.0}, {"key_offset": True}], ids=str)
def test_what_auto_takes_trains_compiled(setting: Path, attention: dict[str, Any]) -> None:
    options = ["system.device=cuda", "train.dtype=bfloat16", "system.compile=true"]
    options.append(f"model.block.attention={json.dumps(attention)}")
    assert losses(run(setting, f"auto-{abs(hash(str(attention)))}", *options))[-1] < 4.5


def test_a_mixture_of_experts_equals_the_cpu() -> None:
    block = {"mlp": {"use": "MoE", "experts": 4, "expert": {"use": "SwiGLU", "hidden": 64}}}
    found = [loss_and_gradients(device, torch.bfloat16, block=block)[0] for device in ("cpu", "cuda")]
    assert found[0] == pytest.approx(found[1], rel=1e-2)
