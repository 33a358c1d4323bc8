"""A look inside: who attends to whom, every tensor, and what each token and each word costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, make_data

import gptlab
from gptlab.config import config_from
from gptlab.errors import GptlabError
from gptlab.evals.words import compare_words
from gptlab.inference.inspection import mark_tokens, read_attention, read_losses, read_tensors
from gptlab.model import build_model
from gptlab.model.backends import attend, explicit_attention, override
from gptlab.tokenizer import load_tokenizer, train_bpe

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def model(**attention: Any) -> Any:
    values: dict[str, Any] = {"dim": 32, "layers": 2, "heads": 4, "block": {"attention": attention}}
    made = build_model(config_from({"model": values, "train": {"sequence_length": 16, "batch_tokens": 16}}), 97)
    made.initialize(1)
    return made.eval()


@pytest.mark.parametrize(
    "attention",
    [{}, {"kv_heads": 2}, {"window": 3}, {"softcap": 2.0}, {"qk_norm": "RMSNorm", "scale": 0.5}, {"use": "MLA"}],
    ids=str,
)
@torch.no_grad()
def test_attention_weights_times_values_are_what_attention_returns(attention: dict[str, Any]) -> None:
    subject = model(**attention)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def kernel(q: Any, k: Any, v: Any, view: Any, scores: Any, dropout: float) -> torch.Tensor:
        out = explicit_attention(q, k, v, view, scores, dropout)
        seen.append((v, out))
        return out

    with override(kernel):
        subject(torch.tensor([IDS]))
    weights = read_attention(subject, IDS)
    assert weights.shape == (2, 4, len(IDS), len(IDS))
    for layer, (v, out) in zip(weights, seen, strict=True):
        values = v[0].repeat_interleave(4 // v.shape[1], dim=0)
        torch.testing.assert_close(layer @ values, out[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert not weights.triu(1).any()
    if "window" in attention:
        assert not weights.tril(-3).any()


def test_a_model_without_attention_has_no_such_table() -> None:
    class Plain(torch.nn.Linear):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids.float()[..., None])

    with pytest.raises(GptlabError, match="no layer whose attention calls `attend`"):
        read_attention(Plain(1, 1), IDS)
    with pytest.raises(GptlabError, match="no token to look at"):
        read_attention(model(), [])
    assert callable(attend)


def test_every_tensor_of_a_pass() -> None:
    subject = model()
    found = read_tensors(subject, IDS)
    by_path = {row.path: row for row in found.rows}
    assert by_path["blocks.1.attention.qkv"].shape == (1, len(IDS), 96)
    assert by_path[""].shape == (1, len(IDS), 97)  # logits
    assert not any(row.kind == "Dropout" for row in found.rows)  # it hands on what it is given
    with torch.no_grad():
        logits = subject(torch.tensor([IDS]), return_logits=True)
    assert by_path[""].mean == pytest.approx(float(logits.mean()), abs=1e-6)
    assert by_path[""].largest == pytest.approx(float(logits.abs().max()))
    assert "blocks.1.attention.qkv" in repr(found)
    assert not subject._forward_hooks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[gptlab.Run]:
    folder = tmp_path_factory.mktemp("inspection")
    make_data(folder / "made")
    (folder / "tiny.yaml").write_text(f"data: {{path: {folder}/made/data}}\n{TINY}")
    settings = [["name=first"], ["name=second", "train.tokens=10240"]]
    return [
        gptlab.train(gptlab.load_config(folder / "tiny.yaml", more), folder=folder / more[0][5:]) for more in settings
    ]


TEXT = "the cat sat on a mat, until noon. " * 3 + "é"  # longer than the context


def test_losses_by_token_add_up_to_that_of_the_text(runs: list[gptlab.Run]) -> None:
    found = runs[0].token_losses(TEXT)
    assert sum(found.nats) == pytest.approx(runs[0].loss(TEXT).nats, rel=1e-5)
    assert b"".join(found.pieces).decode() == TEXT
    assert "title=" in found._repr_html_()


def test_words_add_up_too_and_the_better_model_saves(runs: list[gptlab.Run]) -> None:
    first, second = runs
    found = compare_words(first, second, [TEXT, "a dog\n\n"])
    by_text = {word.text: word for word in found.words}
    assert by_text["cat"].count == 3
    for side, run in (("first", first), ("second", second)):
        total = sum(word.count * getattr(word, side) for word in found.words)
        assert total == pytest.approx(run.loss(TEXT).nats + run.loss("a dog\n\n").nats, rel=1e-5)
    assert sum(word.count * word.gain for word in found.words) > 0
    gains = [word.count * word.gain for word in found.words]
    assert gains == sorted(gains, reverse=True)
    assert "what second knows better" in repr(found)


def test_words_of_two_tokenizers(runs: list[gptlab.Run], tmp_path: Path) -> None:
    """Spread over bytes: half of what the token of two words costs belongs to each word."""
    (tokenizer,) = train_bpe(["the cat sat " * 50], [262], name="small")
    other = build_model(runs[0].config, tokenizer.vocab_size).eval()
    other.initialize(1)
    theirs = gptlab.run.make_run(tmp_path, runs[0].config, other, tokenizer, device="cpu")
    found = compare_words(runs[0], theirs, ["the cat sat"])
    assert [word.text for word in sorted(found.words, key=lambda word: word.text)] == ["cat", "sat", "the"]
    assert sum(word.second for word in found.words) == pytest.approx(theirs.loss("the cat sat").nats, rel=1e-5)
    assert all(math.isfinite(word.first) for word in found.words)


def test_losses_of_windows_are_those_of_the_windows(runs: list[gptlab.Run]) -> None:
    subject, length = runs[0].model, runs[0].model.context_length
    ids = [0, *range(1, 2 * length)]
    whole = read_losses(subject, runs[0].tokenizer, ids)
    again = read_losses(subject, runs[0].tokenizer, ids[length:])
    assert whole.nats[length:] == pytest.approx(again.nats)


def test_colours_of_tokens_hold_the_text() -> None:
    marked = mark_tokens(load_tokenizer("byte"), "aé")
    assert [text for text, _, _ in marked.pieces] == ["a", "", "é"]
    assert [said for _, _, said in marked.pieces] == [str(token) for token in load_tokenizer("byte").encode("aé")]


def test_a_run_is_a_table(runs: list[gptlab.Run]) -> None:
    shown = repr(runs[0])
    assert shown.startswith(f"run {runs[0].folder}\n")
    assert "20 of 20 steps of 256 tokens" in shown
    assert f"loss {runs[0].metrics[-1]['val/loss']:.4f} nats a token at step 20" in shown
    assert "<table" in runs[0]._repr_html_()
    (runs[1].folder / "metrics.jsonl").write_text("damaged\nlog\n")
    assert "validation" not in repr(gptlab.load(runs[1].folder))  # a look at it must not fail
