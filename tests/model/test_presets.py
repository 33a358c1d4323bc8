"""The shipped configs: as many parameters as was published, and all of them train.

Counts are of whole models without weights; training is real, with every width and depth cut down.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import cut_down, make_data, rows

from gptlab.config import RunConfig, load_config
from gptlab.config.numbers import format_count
from gptlab.interop import export_run
from gptlab.model import build_model
from gptlab.model.trace import trace_model
from gptlab.run import load
from gptlab.training.loop import train

CONFIGS = Path(__file__).resolve().parents[2] / "src/gptlab/config/presets"
PRESETS = sorted(CONFIGS.glob("*.yaml"))
every_preset = pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)

GPT2_VOCABULARY = 50257
COUNTS: dict[str, tuple[int, int]] = {
    # Published, or what the original's own code counts; a vocabulary is that of the tokenizer, without padding.
    "gpt2": (GPT2_VOCABULARY, 124_439_808),
    "gpt2-medium": (GPT2_VOCABULARY, 354_823_168),
    "gpt2-large": (GPT2_VOCABULARY, 774_030_080),
    "gpt2-xl": (GPT2_VOCABULARY, 1_557_611_200),
    "nanogpt": (GPT2_VOCABULARY, 124_373_760),
    "llama3-15m": (32000, 15_191_712),
    "llama3-110m": (32000, 109_529_856),
    "llama3-1b": (128256, 1_235_814_400),
    "tinyllama-1.1b": (32000, 1_100_048_384),
    "qwen3-0.6b": (151669, 596_049_920),
    "olmo2-1b": (100278, 1_484_916_736),
    "hlb": (GPT2_VOCABULARY, 46_009_736),
    "hlb-3b": (GPT2_VOCABULARY, 3_022_430_842),
    "templategpt-gpt2-1m": (2048, 1_054_976),
    "templategpt-llama3-1m": (2048, 984_832),
    # Sizes of our own.
    "llama3-1m": (2048, 1_049_728),
    "gptlab-xs": (GPT2_VOCABULARY, 57_212_928),
    "gptlab-s": (GPT2_VOCABULARY, 123_568_128),
    "gptlab-m": (GPT2_VOCABULARY, 353_501_184),
    "modded": (GPT2_VOCABULARY, 275_634_474),
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    # What the hub's config.json says, under transformers' names.
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "llama3-1m": {"hidden": (128, 4, 4, 2, 384), "tied": True},
    "llama3-15m": {"hidden": (288, 6, 6, 6, 768), "tied": True},
    "llama3-110m": {"hidden": (768, 12, 12, 12, 2048), "tied": True},
    "llama3-1b": {"hidden": (2048, 16, 32, 8, 8192), "head_dim": 64, "tied": True},
    "tinyllama-1.1b": {"hidden": (2048, 22, 32, 4, 5632), "tied": False},
    "qwen3-0.6b": {"hidden": (1024, 28, 16, 8, 3072), "head_dim": 128, "tied": True, "vocab_size": 151936},
    "olmo2-1b": {"hidden": (2048, 16, 16, 16, 8192), "tied": False, "vocab_size": 100352},
}
FAMILIES = {"gpt2": "GPT2", "qwen3": "Qwen3", "olmo2": "Olmo2"}


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_stated(name: str) -> None:
    vocab_size, count = COUNTS[name]
    path = CONFIGS / f"{name}.yaml"
    model = build_model(load_config(path), vocab_size, device="meta")
    assert parameters(model) == count
    stated = path.read_text(encoding="utf-8").partition("\ndata:")[0].partition("\nbase:")[0]
    assert f"{count:,}" in stated or f"{count / 1e6:.1f}M" in stated or name == "gpt2"


@pytest.mark.parametrize("name", COUNTS)
def test_the_manual_says_the_same(name: str) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    tokens = format_count(load_config(CONFIGS / f"{name}.yaml").train.tokens)
    assert [cell.strip() for cell in row.split("|")][2:4] == [f"{COUNTS[name][1]:,}", tokens]


def test_nanogpt_reports_its_parameters_without_positions() -> None:
    model = build_model(load_config(CONFIGS / "nanogpt.yaml"), GPT2_VOCABULARY, device="meta")
    assert model.embedding.weight.shape[0] == 50304
    assert f"{(parameters(model) - model.position.embedding.weight.numel()) / 1e6:.2f}M" == "123.59M"


def test_qwen3_with_a_head_of_its_own_has_the_count_of_the_untied_model() -> None:
    config = load_config(CONFIGS / "qwen3-0.6b.yaml", ["model.tied=false"])
    assert parameters(build_model(config, 151669, device="meta")) == 751_632_384


def test_modded_differs_from_the_record_by_what_its_comment_says() -> None:
    """The record's model, counted from its code: 12 layers of 768, of which one has no attention; five tables of
    50,304 rows; two numbers a layer for the stream and for the values of each attention, and six skips."""
    D, rows_ = 768, 50304
    record = 5 * rows_ * D + 12 * 8 * D * D + 11 * 4 * D * D + 12 * 2 + 11 * 2 + 6
    assert record == 275_742_772
    ours = parameters(build_model(load_config(CONFIGS / "modded.yaml"), rows_, device="meta"))
    assert ours == record - 5 * 2  # no scale of the values in the five layers of attention without a table


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_counts_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {**TRANSFORMERS[name]}
    family = FAMILIES.get(name.partition("-")[0], "Llama")
    if "hidden" in sizes:
        fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        sizes |= dict(zip(fields, sizes.pop("hidden"), strict=True))
        sizes["tie_word_embeddings"] = sizes.pop("tied")
    sizes.setdefault("vocab_size", COUNTS[name][0])
    kind = f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    with torch.device("meta"):
        theirs = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**sizes))
    assert parameters(theirs) == COUNTS[name][1]


# ---------------------------------------------------------------- whole, without weights


@every_preset
def test_it_builds_and_is_traced_at_full_size(path: Path) -> None:
    config = load_config(path)
    vocab_size = COUNTS.get(path.stem, (GPT2_VOCABULARY, 0))[0]
    model = build_model(config, vocab_size, device="meta")
    flops = model.flops_per_token(config.train.sequence_length)
    assert math.isfinite(flops)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name)
    assert flops > 6 * matrices
    # A length of 65,536 would make masks of gigabytes where there is no memory to save.
    shorter = min(config.train.sequence_length, 2048)
    cut = {"sequence_length": shorter, "batch_tokens": config.train.batch_tokens // shorter * shorter}
    config = config.model_copy(update={"train": config.train.model_copy(update=cut)})
    traced = trace_model(config, vocab_size)
    assert traced.parameters == parameters(model)
    assert traced.flops_per_token > 2 * matrices
    assert traced.letters["L"] == len(model.blocks)


# ---------------------------------------------------------------- small, and trained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("presets"))


def small(path: Path, data: Path) -> RunConfig:
    """The preset cut down, on the test's own data."""
    sources = ["data.sources=null", "data.mix=null"] if load_config(path).data.sources else []
    return load_config(path, [*cut_down(path), *sources, f"data.path={data}"])


SCRATCH = [path for path in PRESETS if path.stem != "finetune-shakespeare"]  # tests/interop/test_init_from.py has it


@pytest.mark.parametrize("path", SCRATCH, ids=lambda path: path.stem)
def test_three_steps_lower_the_loss(path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loop, at the preset's own rates; and a run of an architecture that others know goes to transformers."""
    monkeypatch.chdir(tmp_path)
    run = train(small(path, data))
    losses = [row["val/loss"] for row in rows(run.folder) if "val/loss" in row]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert math.log(257) > losses[0] > losses[1] > losses[2]
    if path.stem in TRANSFORMERS:
        _check_export(run.folder, tmp_path / "theirs")


def _check_export(folder: Path, place: Path) -> None:
    """What was trained travels: transformers gives the same logits."""
    transformers = pytest.importorskip("transformers")
    run = load(folder)
    export_run(replace(run, model=run.model.eval()), place)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    ids = torch.randint(257, (1, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits[..., :257]
        ours = run.model(ids, return_logits=True)
    torch.testing.assert_close(ours.float(), expected, rtol=1e-4, atol=1e-4)
