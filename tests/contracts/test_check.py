"""`gptlab check`: what it takes, what it says, how it exits."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import gptlab

from gptlab.contracts import CONTRACTS, component_subject, config_subject, find_subject, run_contracts
from gptlab.contracts.places import places
from gptlab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BROKEN = Path(__file__).parent / "broken.py"
CONFIGS = sorted((ROOT / "src/gptlab/config/presets").glob("*.yaml"))


# ---------------------------------------------------------------- the command


def test_all_is_well(tmp_path: Path) -> None:
    done = gptlab("check", "{use: WSD, decay: 0.5}", cwd=tmp_path)
    assert "schedule WSD {'decay': 0.5}" in done.stdout
    assert "✓ multiplier" in done.stdout
    assert "1 hold, none broken" in done.stdout


@pytest.mark.slow
def test_what_is_broken_is_named_with_its_place_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(BROKEN.read_text())
    done = gptlab("check", "./idea.py:PeeksAhead", "--only", "causal", "--only", "batch", cwd=tmp_path, check=False)
    assert done.returncode == 1
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == "attention PeeksAhead"
    at = next(i for i, line in enumerate(lines) if line.startswith("✗ causal"))
    assert lines[at + 1].startswith("what  an output depends on a later token")
    assert lines[at + 2].startswith("where hidden states after a change of token 1: position 0")
    assert lines[at + 3].startswith("fix   let position t use positions ≤ t only")
    assert lines[-1].startswith("2 hold, 1 broken: causal")
    assert done.stderr == ""


@pytest.mark.slow
def test_with_the_real_compiler(tmp_path: Path) -> None:
    """Inductor, as by default: one that compiles to the same, and one that does not."""
    (tmp_path / "idea.py").write_text(BROKEN.read_text())
    assert gptlab("check", "ReLU2", "--only", "compiled", cwd=tmp_path).returncode == 0
    done = gptlab("check", "./idea.py:OtherwiseCompiled", "--only", "compiled", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "compiled and eager disagree" in done.stdout


MISTAKES = [
    (("Atention",), "no component is called 'Atention'; did you mean 'Attention'?"),
    (("./idea.py",), "which class of it? Write ./idea.py:Name"),
    (("./missing.py:Idea",), "no file"),
    (("./idea.py:Missing",), "nothing called 'Missing'"),
    (("./idea.py:NoSlot",), "does not say which slot it is for; use slot=KIND"),
    (("./idea.py:OddSlot",), "says slot = 'heart', which does not exist"),
    (("./idea.py:NoSlot", "--slot", "heart"), "'heart'"),
    (("{use: Attention, kv_heads: 3}",), "3 does not divide the 4 heads"),
    (("{use: Attention, kv_hands: 3}",), "no argument 'kv_hands'; did you mean 'kv_heads'?"),
    (("{kv_heads: 3}",), "a slot value needs `use: NAME`"),
    (("{use: [",), "not valid YAML"),
    (("WSD", "--only", "casual"), "no contract is called 'casual'; did you mean 'causal'?"),
    (("missing.yaml",), "no config file at missing.yaml"),
    (("missing.yaml", "--slot", "mlp"), "is a whole config"),
    (("WSD", "--slot", "mlp"), "nothing called 'WSD'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "idea.py").write_text("class NoSlot:\n    pass\n\n\nclass OddSlot:\n    slot = 'heart'\n")
    monkeypatch.chdir(tmp_path)
    options = {"slot": arguments[2]} if "--slot" in arguments else {}
    only = [arguments[2]] if "--only" in arguments else []
    with pytest.raises(ConfigError) as caught:
        run_contracts(find_subject(arguments[0], **options), only)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_exits_with_two(tmp_path: Path) -> None:
    done = gptlab("check", "Atention", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: no component is called 'Atention'; did you mean 'Attention'?\n"


# ---------------------------------------------------------------- subjects


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_keeps_every_contract(path: Path) -> None:
    """All but the compiler's, which takes longest and is held against each component by itself."""
    outcomes = run_contracts(config_subject(path), set(CONTRACTS) - {"compiled"})
    assert not {o.contract.name: f"{o.detail}: {o.where}" for o in outcomes if o.status == "broken"}
    held = {o.contract.name for o in outcomes if o.status == "holds"}
    assert set(CONTRACTS) - held <= {
        *("off switch", "documents", "window", "shares", "addressed", "counts", "sharded", "compiled")
    }


def test_a_config_is_made_small_and_nothing_else() -> None:
    subject = config_subject(ROOT / "src/gptlab/config/presets" / "gptlab-s.yaml")
    model = subject.config.model
    assert (model.layers, model.heads, model.head_dim, model.dim) == (6, 4, 128, 32)
    assert model.block.attention.qk_norm.use == "RMSNorm"
    assert subject.config.optimizer.use == "Muon"
    llama = config_subject(ROOT / "src/gptlab/config/presets" / "llama3-1b.yaml").config.model
    assert (llama.dim, llama.heads, llama.head_dim, llama.block.mlp.hidden) == (32, 4, 64, 128)
    assert llama.block.attention.kv_heads == 1  # as many queries a key as there


def test_sequences_outgrow_windows() -> None:
    assert component_subject("attention", {"use": "Attention", "window": 8}).length == 32
    assert component_subject("attention", {"use": "Attention", "window": 50}).length == 100


@pytest.mark.parametrize(
    ("arguments", "beside", "status"),
    [
        ({"window": 8}, {}, "holds"),
        ({"window": 7, "pattern": "FS"}, {}, "holds"),
        ({"window": 12, "window_start": 5, "window_step": 5}, {}, "holds"),
        ({"window": 8, "backend": "explicit", "value_embeddings": 1, "value_residual": True}, {}, "holds"),
        ({"window": 8}, {"model": {"position": "ALiBi"}}, "holds"),
        (
            {"window": 8, "key_offset": True},
            {"model": {"head_dim": 16, "position": {"use": "RoPE", "fraction": 0.5}}},
            "holds",
        ),
        ({"window": 600}, {}, "holds"),
        ({"window": 2000}, {}, "skipped"),
        ({"window": 8, "pattern": "F"}, {}, "skipped"),
        ({}, {}, "skipped"),
    ],
    ids=str,
)
def test_a_window_is_as_wide_as_it_says(arguments: dict[str, object], beside: dict[str, object], status: str) -> None:
    subject = component_subject("attention", {"use": "Attention", **arguments}, beside=beside)
    (found,) = [o for o in run_contracts(subject, ["window"]) if o.contract.name == "window"]
    assert found.status == status, found


def test_a_window_that_grows_is_held_to_its_start_too(tmp_path: Path) -> None:
    """Right when it is full, and too wide before."""
    (tmp_path / "idea.py").write_text(
        "from gptlab.model.attention import Attention\n\n\n"
        "class Early(Attention):\n    slot = 'attention'\n"
        "    beside = {'model': {'block': {'attention': {'window': 8, 'window_start': 4, 'window_step': 4}}}}\n\n"
        "    def forward(self, x, context):\n        width, self.window.now = self.window.now, 8\n"
        "        y = super().forward(x, context)\n        self.window.now = width\n        return y\n"
    )
    (found,) = [o for o in run_contracts(find_subject(f"{tmp_path}/idea.py:Early"), ["window"]) if o.detail]
    assert (found.status, found.detail) == ("broken", "attention with a window of 4 sees more keys than that")


def test_places_are_found_where_slots_are_used() -> None:
    from gptlab.config import SLOTS

    assert set(places()) == set(SLOTS)
    assert places()["mlp"] == ("model", "block", "mlp")
    assert places()["norm"] == ("model", "norm")
    assert places()["mix"] == ("data", "mix")


def test_an_off_switch_that_is_declared_is_checked(tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(
        "import torch\nfrom torch import nn\nfrom gptlab.model.norm import RMSNorm\n\n\n"
        "class Scaled(RMSNorm):\n    slot = 'norm'\n    off = {'scale': 1.0}\n    baseline = 'RMSNorm'\n\n"
        "    def __init__(self, dim: int, *, scale: float = 2.0) -> None:\n"
        "        super().__init__(dim)\n        self.scale = scale\n\n"
        "    def forward(self, x):\n        return super().forward(x) * self.scale\n\n\n"
        "class Wrong(Scaled):\n    slot = 'norm'\n    off = {'scale': 1.5}\n"
    )
    for name, status in (("Scaled", "holds"), ("Wrong", "broken")):
        outcomes = run_contracts(find_subject(f"{tmp_path}/idea.py:{name}"), ["off switch"])
        assert outcomes[-1].status == status
    assert "loss" in outcomes[-1].where
