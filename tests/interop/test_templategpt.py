"""templateGPT's folders: its arithmetic written down once more, in a function, and its encoder too."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign import MERGES, ROWS, TEMPLATE, templategpt_clone, templategpt_tensors
from torch import Tensor

import gptlab
from gptlab.interop import import_run
from gptlab.interop.templategpt import read_merges

GPT2 = {
    **TEMPLATE,
    "linear_bias": True,
    "pos_enc_type": "learnable",
    "mlp_gated": False,
    "mlp_nonlinearity": "GeLU",
    "norm_type": "LayerNorm",
    "scale_first_resid": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": TEMPLATE,
    "gpt2": GPT2,
    "gpt2-scaled": {**GPT2, "scale_first_resid": True, "out_weight_share": False},
    "waves": {**TEMPLATE, "pos_enc_type": "Sinusoidal", "mlp_nonlinearity": "GeLU", "second_resid_norm": True},
    "cosine": {
        **TEMPLATE,
        "norm_type": "CosineNorm",
        "norm_bias": False,
        "mlp_nonlinearity": "ReLU",
        "num_kv_heads": 4,
    },
    "plain norms": {**TEMPLATE, "norm_affine": False, "norm_bias": False, "head_dim": 16},
}


def logits_of(c: dict[str, Any], t: dict[str, Tensor], ids: Tensor) -> Tensor:
    """(T,) ids → (T, V), as templateGPT computes them."""
    length, width = len(ids), c["head_dim"]

    def norm(name: str, x: Tensor) -> Tensor:
        kinds = {
            "RMSNorm": lambda: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + c["eps"]),
            "LayerNorm": lambda: F.layer_norm(x, (c["dim"],), eps=c["eps"]),
            "CosineNorm": lambda: x / x.norm(dim=-1, keepdim=True).clamp(min=c["eps"]),
        }
        y = kinds[c["norm_type"]]()
        return y * t.get(f"{name}.w", torch.ones(1)) + t.get(f"{name}.b", torch.zeros(1))

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))

    def turn(x: Tensor) -> Tensor:
        if c["pos_enc_type"] != "RoPE":
            return x
        slow = c["theta"] ** -(torch.arange(0, width, 2).float() / width)
        angle = torch.arange(length)[:, None] * torch.cat([slow, slow])
        left, right = x.chunk(2, -1)
        return x * angle.cos()[:, None] + torch.cat([-right, left], -1) * angle.sin()[:, None]

    x = t["token_embedder.weight"][ids]
    if c["pos_enc_type"] == "learnable":
        x = x + t["pos_embedder.weight"][:length]
    if c["pos_enc_type"] == "Sinusoidal":
        wave = torch.arange(length)[:, None] * c["theta"] ** (-torch.arange(0, c["dim"], 2) / c["dim"])
        x = x + torch.stack([wave.sin(), wave.cos()], -1).flatten(1)
    x = x * c["dim"] ** 0.5 if c["scale_first_resid"] else x
    act = {"SiLU": F.silu, "GeLU": F.gelu, "ReLU": F.relu}[c["mlp_nonlinearity"]]
    for layer in range(c["num_layers"]):
        at = f"layers.{layer}."
        h = norm(f"{at}pre_attn_norm", x)
        q, k, v = (linear(f"{at}attn.W{each}", h).view(length, -1, width) for each in "qkv")
        q, k = turn(q), turn(k)
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
        scores = torch.einsum("qhc,khc->hqk", q, k) / width**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
        y = linear(f"{at}attn.Wo", torch.einsum("hqk,khc->qhc", scores, v).flatten(1))
        x = x + (norm(f"{at}post_attn_norm", y) if c["second_resid_norm"] else y)
        h = norm(f"{at}pre_mlp_norm", x)
        up = linear(f"{at}mlp.Wup", h)  # no nonlinearity where there is no gate: so its code says
        y = linear(f"{at}mlp.Wdown", up * act(linear(f"{at}mlp.Wgate", h)) if c["mlp_gated"] else up)
        x = x + (norm(f"{at}post_mlp_norm", y) if c["second_resid_norm"] else y)
    return F.linear(norm("final_norm", x), t["output.weight"])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_equal(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = CONFIGS[name]
    tensors = templategpt_tensors(c)
    run = gptlab.load(import_run(templategpt_clone(place, c, tensors), name="tiny"), device="cpu", dtype="float32")
    ids = torch.randint(ROWS, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = run.model(ids[None], return_logits=True)[0], logits_of(c, tensors, ids)
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-5)
    assert run.generate("the cat", max_new_tokens=4, temperature=0) is not None
    assert ("applies no nonlinearity" in capsys.readouterr().err) is not c["mlp_gated"]


def test_norms_that_its_file_lacks_are_ones_and_zeros(place: Path) -> None:
    """On a GPU or a Mac its norms are no parameters, and are not saved."""
    tensors = {key: value for key, value in templategpt_tensors(TEMPLATE).items() if not key.endswith((".w", ".b"))}
    run = gptlab.load(
        import_run(templategpt_clone(place, TEMPLATE, tensors), name="tiny"), device="cpu", dtype="float32"
    )
    ids = torch.arange(40)
    with torch.no_grad():
        assert torch.allclose(
            run.model(ids[None], return_logits=True)[0], logits_of(TEMPLATE, tensors, ids), rtol=1e-4, atol=1e-4
        )


def encode_as_templategpt(text: str) -> list[int]:
    ids = list(text.encode())
    ranks = {pair: 256 + index for index, pair in enumerate(MERGES)}
    while pairs := [ranks[pair] for pair in itertools.pairwise(ids) if pair in ranks]:
        made, merged, at = min(pairs), [], 0
        while at < len(ids):
            pair = tuple(ids[at : at + 2])
            merged.append(made if ranks.get(pair) == made else ids[at])  # type: ignore[arg-type]
            at += 2 if ranks.get(pair) == made else 1  # type: ignore[arg-type]
        ids = merged
    return ids


def test_ids_are_those_of_its_own_encoder(place: Path) -> None:
    folder = templategpt_clone(place, TEMPLATE, templategpt_tensors(TEMPLATE))
    tokenizer = read_merges(folder.parents[1] / f"tokenizers/bpe_tiny/models/{ROWS - 3}.model", "tiny")
    for text in ["the cat the cats", " the the  the\n", "é 日本 the", "thethe", "cacatat"]:
        assert tokenizer.encode(text) == encode_as_templategpt(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.end_of_text, tokenizer.document_end, tokenizer.vocab_size) == (
        ROWS - 3,
        ROWS - 2,
        ROWS,
    )


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def test_what_does_not_fit_is_one_line(
    place: Path, mistake: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = templategpt_clone(place, TEMPLATE, templategpt_tensors(TEMPLATE))
    config, weights = folder / "model_config.json", folder / "model.pth"
    merges = folder.parents[1] / f"tokenizers/bpe_tiny/models/{ROWS - 3}.model"

    def said() -> str:
        return mistake("import", str(folder), "--name", "x")

    for change, words in [
        ({"mlp_nonlinearity": "Mish"}, "mlp_nonlinearity is 'Mish', which gptlab does not have gated"),
        ({"pos_enc_type": "ALiBi"}, "pos_enc_type is 'ALiBi', which is not templateGPT's"),
        ({"dim": 64}, "get the config and the weights of one model"),
        ({"dim": None}, "is no config of templateGPT"),
        ({"num_layers": 3}, "tensor layers.2.attn.Wq.weight is missing"),
        ({"num_layers": 1}, "gptlab has no place for tensor layers.1."),
        ({"tokenizer": "bpe_none"}, "no merges of the tokenizer 'bpe_none'"),
    ]:
        config.write_text(json.dumps({**TEMPLATE, **change}))
        assert words in said()
    config.write_text(json.dumps(TEMPLATE))
    merges.write_bytes(pickle.dumps({"merges": {(1, 2): 300}}))
    assert "is no tokenizer of templateGPT" in said()
    merges.write_bytes(pickle.dumps({"merges": Evil()}))
    assert "it asks for builtins.print, and was not run" in said()
    torch.save([1], weights)
    assert "is no table of names and tensors" in said()
