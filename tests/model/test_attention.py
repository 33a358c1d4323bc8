"""The backends of attention agree: outputs, gradients, and the loss of a whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptlab.config import config_from
from gptlab.errors import ConfigError
from gptlab.inference.cache import KVCache
from gptlab.loss import CrossEntropy, TokenBatch
from gptlab.model import build_model
from gptlab.model.attention import Window
from gptlab.model.backends import PLAIN, Scores, View, attend, choose, explicit_attention, sdpa_attention

T = 24
DOCUMENTS = torch.tensor([[0] * 10 + [1] * 14, [0] * T])
CPU = torch.device("cpu")
VIEWS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 5},
    "documents": {"documents_BS": DOCUMENTS},
    "both": {"window": 5, "documents_BS": DOCUMENTS},
}


def qkv(kv_heads: int = 2, width: int = 16, *, grad: bool = True, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    shapes = ((2, 4, T, 16), (2, kv_heads, T, 16), (2, kv_heads, T, width))
    return [torch.randn(shape, requires_grad=grad) for shape in shapes]


def by_definition(q: Tensor, k: Tensor, v: Tensor, view: View, scores: Scores) -> Tensor:
    """One query and one key at a time, in float64."""
    y = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    documents = view.documents if view.documents is not None else torch.zeros(2, T)
    for b in range(2):
        for h in range(q.shape[1]):
            group = h * k.shape[1] // q.shape[1]
            for t in range(T):
                seen = [
                    s
                    for s in range(t + 1)
                    if documents[b, s] == documents[b, t] and (view.window is None or s > t - view.window)
                ]
                found = []
                for s in seen:
                    score = (q[b, h, t].double() @ k[b, group, s].double()) * (scores.scale or 16**-0.5)
                    if scores.softcap is not None:
                        score = scores.softcap * torch.tanh(score / scores.softcap)
                    if scores.slopes_H is not None:
                        score = score - scores.slopes_H[h].double() * (t - s)
                    found.append(score)
                weights = torch.stack(found).softmax(0)
                y[b, h, t] = sum(w * v[b, group, s].double() for w, s in zip(weights, seen, strict=True))
    return y


@pytest.mark.parametrize("backend", ["sdpa", "explicit", "flex"])
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    "scores",
    [PLAIN, Scores(scale=0.1, softcap=0.7), Scores(slopes_H=torch.tensor([0.5, 0.25, 0.1, 0.05]))],
    ids=["plain", "softcap", "alibi"],
)
def test_every_backend_is_attention_by_definition(backend: str, name: str, scores: Scores) -> None:
    if backend == "sdpa" and scores.softcap is not None:
        pytest.skip("sdpa has no softcap, and refuses it (tested below)")
    q, k, v = qkv(width=8, grad=False)
    view = View(T, CPU, **VIEWS[name])
    with torch.no_grad():
        expected = by_definition(q, k, v, view, scores)
        torch.testing.assert_close(
            attend(q, k, v, view, scores, backend=backend).double(), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", VIEWS)
def test_gradients_agree(kv_heads: int, name: str) -> None:
    q, k, v = qkv(kv_heads)
    view = View(T, CPU, **VIEWS[name])
    outputs = [f(q, k, v, view, PLAIN, 0.0) for f in (explicit_attention, sdpa_attention)]
    upstream = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(output, (q, k, v), upstream) for output in outputs]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def model_with(attention: dict[str, Any], **model: Any) -> nn.Module:
    values = {"dim": 64, "layers": 3, "heads": 4, "block": {"attention": attention}, **model}
    return build_model(config_from({"model": values, "train": {"sequence_length": T, "batch_tokens": 4 * T}}), 97)


@pytest.mark.parametrize("backend", ["explicit", "flex"])
@pytest.mark.parametrize(
    "attention",
    [{}, {"window": 5, "pattern": "LSF"}, {"document_mask": True}, {"document_mask": True, "window": 5, "kv_heads": 2}],
    ids=["causal", "window", "documents", "both"],
)
@pytest.mark.parametrize("position", ["RoPE", "ALiBi"])
def test_the_loss_of_a_model_is_the_same_by_every_backend(
    backend: str, attention: dict[str, Any], position: str
) -> None:
    ids = torch.randint(97, (2, T + 1), generator=torch.Generator().manual_seed(3))
    batch = TokenBatch(ids[:, :-1], ids[:, 1:], DOCUMENTS)
    losses = []
    for name in ("sdpa", backend):
        model = model_with({**attention, "backend": name}, position=position)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            losses.append(CrossEntropy()(model, batch).sum.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_flex_compiled_into_a_model_computes_the_same() -> None:
    """Whatever lay in memory before: torch's own kernel for CPUs reads past the last key where T is odd to it."""
    torch.manual_seed(0)
    model = model_with({"backend": "flex", "window": 5}).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model)
    with torch.no_grad():
        for _ in range(20):
            ids = torch.randint(97, (2, T))
            expected = model(ids)
            litter = [torch.full((size,), 1e3) for size in (1_000, 3_072, 20_000, 100_000)]
            del litter
            torch.testing.assert_close(compiled(ids), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_bfloat16_takes_the_explicit_way_and_stays_near_float32() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 64, 16).unbind()
    view = View(64, CPU)
    exact = attend(q, k, v, view)
    half = [x.bfloat16() for x in (q, k, v)]
    rounded = attend(*half, view)
    assert torch.equal(rounded, explicit_attention(*half, view, PLAIN, 0.0))
    assert (rounded.float() - exact).norm() / exact.norm() < 1e-2


def test_explicit_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(1, 1, 200, 8)
    out = explicit_attention(q, k, torch.ones(1, 1, 200, 8), View(200, CPU), PLAIN, 0.3)
    assert out[0, 0, 50:].mean().item() == pytest.approx(1.0, abs=0.05)
    assert out.std() > 0.01


@pytest.mark.parametrize(
    ("backend", "scores", "grad", "message"),
    [
        ("sdpa", Scores(softcap=1.0), True, "sdpa cannot bend scores"),
        ("flex", PLAIN, True, "flex cannot train on a CPU"),
        ("varlen", PLAIN, False, "varlen cannot run without an NVIDIA GPU"),
    ],
)
def test_a_backend_that_cannot_says_so(backend: Any, scores: Scores, grad: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attend(*qkv(grad=grad), View(T, CPU), scores, backend=backend)


def test_the_choice_of_backend() -> None:
    q, _, v = qkv()
    half = q.bfloat16()
    view, windowed = View(T, CPU), View(T, CPU, window=4)
    assert choose(q, v, view, PLAIN, 0.0) == "sdpa"
    assert choose(q, v, windowed, PLAIN, 0.0) == "sdpa"
    assert choose(half, v, windowed, PLAIN, 0.0) == "explicit"
    assert choose(q, v, view, Scores(softcap=3.0), 0.0) == "explicit"
    with torch.device("meta"):
        far = torch.empty(2, 4, T, 16)
    assert choose(far, far, windowed, PLAIN, 0.0) == "sdpa"


def test_a_window_that_covers_everything_is_no_window() -> None:
    assert View(T, CPU, window=T).mask is None
    assert View(T, CPU, window=T - 1).mask is not None


def test_documents_laid_end_to_end() -> None:
    starts = View(T, CPU, documents_BS=DOCUMENTS).sequences(2)
    assert starts[:4].tolist() == [0, 10, 24, 48]
    assert starts[3:].eq(48).all()
    assert len(starts) == 2 * T + 1
    assert View(T, CPU, window=5).sequences(3).tolist() == [0, 24, 48, 72]


@pytest.mark.parametrize(
    ("layers", "pattern", "widths"),
    [
        (4, "LLLF", [8, 8, 8, None]),
        (6, "LLLF", [8, None, 8, 8, 8, None]),
        (3, "SL", [8, 4, 8]),
        (2, "F", [None, None]),
        (1, "LLLF", [None]),
    ],
)
def test_a_pattern_fits_any_depth_and_ends_on_its_last_letter(
    layers: int, pattern: str, widths: list[int | None]
) -> None:
    assert [Window(i, layers, 8, pattern, None, 128).now for i in range(layers)] == widths


def test_a_window_grows_over_training() -> None:
    window = Window(0, 2, 1024, "L", 128, 128)
    found = [window.at(progress) for progress in (0.0, 0.25, 0.5, 0.99, 1.0)]
    assert found == [128, 384, 640, 1024, 1024]
    assert Window(0, 2, 1024, "S", 128, 128).at(0.5) == 320
    assert Window(1, 2, 1024, "LF", 128, 128).at(0.0) is None
    model = model_with({"window": 16, "window_start": 4, "window_step": 4})
    model.blocks[0].attention.before_step(0.0)
    assert [block.attention.window.now for block in model.blocks] == [4, 16, 16]


def test_a_window_changes_what_is_seen() -> None:
    near, far = model_with({"window": 4}).eval(), model_with({}).eval()
    ids = torch.randint(97, (1, T))
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 97
    reach = 3 * (4 - 1)  # three layers, each three keys back
    with torch.no_grad():
        assert torch.equal(near(ids)[0, reach + 1 :], near(changed)[0, reach + 1 :])
        assert not torch.equal(near(ids)[0, reach], near(changed)[0, reach])
        assert not torch.equal(far(ids)[0, reach + 1 :], far(changed)[0, reach + 1 :])


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"pattern": "LXF"}, "other letters than F"),
        ({"window": 0}, "at least 1"),
        ({"pattern": "LLF"}, "set window as well"),
        ({"window_start": 4}, "set window as well"),
        ({"window": 8, "window_start": 9}, "9 is wider than the window, 8"),
        ({"window": 8, "window_step": 4}, "window_step: 4 is how a window grows, and this one does not"),
        ({"window_step": 4}, "window_step: 4 is how a window grows, and this one does not"),
        ({"window": 8, "window_start": 4, "window_step": 0}, "window_step: 0 is out of range; make it at least 1"),
        ({"key_offset": True}, "moves the dimensions that do not turn, and all of them do"),
        ({"gate_width": 8}, "8 of 64 dimensions for gate none"),
        ({"gate_width": 65, "gate": "head"}, "make it from 1 to 64"),
        ({"softcap": 0}, "attention.softcap: 0 is out of range; make it above 0"),
        ({"kv_heads": -1}, "attention.kv_heads: -1 is out of range; make it at least 1"),
        ({"scale": 0}, "attention.scale: 0 is out of range; make it above 0"),
        ({"weight_dropout": 1.5}, "attention.weight_dropout: 1.5 is out of range; make it at least 0 and below 1"),
        ({"use": "MLA", "kv_rank": 0}, "attention.kv_rank: 0 is out of range; make it at least 1"),
        ({"qk_norm_over": "width"}, "set qk_norm as well"),
        ({"value_embeddings": 9}, "9 tables for 3 layers"),
        ({"use": "MLA", "rope_dim": 8}, "set rope_dim to 16, or model.position to {use: RoPE, fraction: 0.5}"),
    ],
)
def test_bad_arguments_are_refused(attention: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_with(attention)(torch.zeros(1, 4, dtype=torch.long))


def test_the_latent_cache_of_mla_is_small() -> None:
    model = model_with({"use": "MLA", "rope_dim": 8, "kv_rank": 12}, position={"use": "RoPE", "fraction": 0.5})
    cache = KVCache(3, T)
    model(torch.zeros(1, 5, dtype=torch.long), cache=cache)
    held = [tensor for tensor in (*cache._keys, *cache._values) if tensor is not None]
    assert sum(tensor.shape[1] * tensor.shape[-1] for tensor in held) == 3 * (12 + 8)


def test_key_offset_shows_the_key_before_and_never_another_documents() -> None:
    model = model_with({"key_offset": True, "document_mask": True}, position={"use": "RoPE", "fraction": 0.5}).eval()
    a, b = torch.randint(97, (1, 10)), torch.randint(97, (1, 14))
    with torch.no_grad():
        packed = model(torch.cat((a, b), 1), DOCUMENTS[:1])[:, 10:]
        alone = model(b, torch.zeros_like(b))
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    plain = model_with({"document_mask": True}, position={"use": "RoPE", "fraction": 0.5}).eval()
    assert not torch.equal(plain(b, torch.zeros_like(b)), alone)


def test_value_embeddings_are_shared_by_first_and_last_layers() -> None:
    model = model_with({"value_embeddings": 1})
    assert [block.attention.table for block in model.blocks] == [0, None, 0]
    assert sum(name.endswith("value_embedding.weight") for name, _ in model.named_parameters()) == 1
    assert model.parameter_count(embeddings=False) < model.parameter_count() - 2 * 97 * 64 + 1


def test_flops_count_the_window() -> None:
    full, near = model_with({}), model_with({"window": 6})
    assert full.flops_per_token(T) - near.flops_per_token(T) == 3 * 12 * 64 * (T - 6)


def test_each_layer_turns_as_it_is_told() -> None:
    """By the angle of windows, by that of all, or not at all: the layer of a model in which all layers turn so."""
    x, ids = torch.randn(1, T, 64), torch.zeros(1, T, dtype=torch.long)

    def layers(position: Any, **attention: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = model_with({"window": 6, "pattern": "LF", **attention}, position=position, layers=4).eval()
        found: list[Tensor] = []
        hooks = [
            b.register_forward_pre_hook(lambda b, given: found.append(b.attention(x, given[1]))) for b in model.blocks
        ]
        model(ids)
        return found if hooks else []

    mixed = layers({"use": "RoPE", "window_theta": 50.0}, without_rotation=[0, 3])
    still, far, near = (layers(p) for p in ("NoPosition", "RoPE", {"use": "RoPE", "theta": 50.0}))
    for got, expected in zip(mixed, (still[0], far[1], near[2], still[3]), strict=True):
        assert torch.equal(got, expected)
    assert not torch.equal(far[2], near[2])


def test_a_rotation_that_no_layer_has_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="leaves out a rotation that no layer has"):
        model_with({"without_rotation": [1]}, position="Learned")(torch.zeros(1, T, dtype=torch.long))
