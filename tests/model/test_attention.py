"""The ways to compute attention agree."""

from __future__ import annotations

import pytest
import torch

from gptlab.model.attention import attend, document_mask, explicit_attention


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_explicit_equals_fused(kv_heads: int, masked: bool) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 24, 16, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 24, 16, requires_grad=True) for _ in range(2))
    mask = document_mask(torch.tensor([[0] * 10 + [1] * 14, [0] * 24])) if masked else None
    outputs = [f(q, k, v, mask, causal=mask is None) for f in (explicit_attention, attend)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(output, (q, k, v), upstream) for output in outputs]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_bfloat16_takes_the_explicit_way_and_stays_near_float32() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 64, 16).unbind()
    exact = attend(q, k, v, None, causal=True)
    rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), None, causal=True)
    assert torch.equal(rounded, explicit_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), None, causal=True))
    assert (rounded.float() - exact).norm() / exact.norm() < 1e-2


def test_explicit_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(1, 1, 200, 8)
    v = torch.ones(1, 1, 200, 8)
    out = explicit_attention(q, k, v, None, causal=False, dropout=0.3)
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert out.std() > 0.01
