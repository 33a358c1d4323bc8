"""Every contract can fail: broken components, and exactly which contracts name each of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.contracts import CONTRACTS, Broken, Outcome, find_subject, run_contracts
from gptlab.contracts.core import require_close

BROKEN = Path(__file__).parent / "broken.py"
BREAKS: dict[str, set[str]] = {
    # the three of the issue
    "PeeksAhead": {"causal", "documents", "cached"},  # also: it sees the next document; a cache holds no next token
    "LeaksAcrossDocuments": {"documents"},
    "WrongCacheOffset": {"cached"},
    # and others
    "MixesRows": {"batch", "documents", "cached", "accumulation", "2 ranks"},
    "BatchNormed": {"causal", "batch", "documents", "cached", "accumulation", "2 ranks"},
    "UnusedParameter": {"gradient", "2 ranks"},
    "StartsFromNumpy": {"deterministic", "compiled", "accumulation", "2 ranks"},
    "DropsByPython": {"deterministic"},
    "ForgetsState": {"save and load", "train and eval"},
    "DropsABlockInUse": {"train and eval"},
    "DropsABlock": {"gradient", "2 ranks"},
    "RemembersInUse": {"documents", "cached"},
    "OverPositions": {"causal", "documents", "cached"},
    "LongestOfTheBatch": {"documents"},
    "WiderFromTheCache": {"cached"},
    "OneKeyMore": {"window"},
    "OneKeyFewer": {"window"},
    "IgnoresPositions": {"documents", "cached"},
    "ValuesOfOtherRows": {"causal", "documents", "batch", "cached", "accumulation", "2 ranks"},
    "NotFiniteInBfloat16": {"gradient"},
    "OtherwiseCompiled": {"compiled"},
    "StartsTooLoud": {"loss at init"},
    "NotOff": {"off switch"},
    "WrongShape": {"builds"},
    "MeanLoss": {"loss at init", "accumulation", "2 ranks"},
    "PredictsIgnored": {"ignored"},
    "CountsIgnored": {"loss at init", "ignored"},
    "ForgetsMomentum": {"resumes"},
    "SkipsGains": {"moves"},
    "Climbs": {"learns"},
    "Jitters": {"repeatable", "resumes"},
    "Negative": {"multiplier"},
    "Counts": {"multiplier"},
    "HalfABatch": {"counts"},
    "ForgetsItsSize": {"counts"},
    "NoShares": {"shares"},
    "CutWrongly": {"sharded"},
    "Hurries": {"addressed"},
}


def grouped(*values: str) -> Any:
    """A parameter set called by its first two values."""
    return pytest.param(*values, id="-".join(values[:2]))


@pytest.fixture(scope="module")
def held() -> dict[str, list[Outcome]]:
    """What became of each component; found when it is first asked for."""
    return {}


def outcomes(held: dict[str, list[Outcome]], name: str) -> list[Outcome]:
    if name not in held:
        # Tracing alone tells eager from compiled; only what a compiler makes of a gradient needs the whole of one.
        backend = "aot_eager" if name == "OtherwiseCompiled" else "eager"
        held[name] = run_contracts(find_subject(f"{BROKEN}:{name}", backend=backend))
    return held[name]


@pytest.mark.parametrize("name", [grouped(name) for name in BREAKS])
def test_a_broken_component_is_caught_by_name(held: dict[str, list[Outcome]], name: str) -> None:
    broken = {outcome.contract.name for outcome in outcomes(held, name) if outcome.status == "broken"}
    assert broken == BREAKS[name]


REASONS = [
    ("PeeksAhead", "causal", "depends on a later token", r"change of token 1: position 0"),
    ("LeaksAcrossDocuments", "documents", "depend on the documents packed before it", r"positions 12 to 31 of row 0"),
    ("WrongCacheOffset", "cached", "logits with a cache are not those without", r"row 0 after 10 tokens"),
    ("MixesRows", "batch", "depend on another row", r"hidden states"),
    ("UnusedParameter", "gradient", "no gradient reaches a parameter", r"^blocks.0.attention_norm.weight"),
    ("UnusedParameter", "2 ranks", "does not train on two processes", r"gloo"),
    ("NotFiniteInBfloat16", "gradient", "not finite in bfloat16", r"\.grad: axis"),
    ("StartsFromNumpy", "deterministic", "an initial weight depends on more", r"^blocks.0.mlp.weight"),
    ("DropsByPython", "deterministic", "a step depends on more", r"^loss"),
    ("NotOff", "off switch", "not the baseline bit for bit", r"^gradient of"),
    ("WrongShape", "builds", "raised RuntimeError", r"block\.py:\d+, in \w+$"),
    ("DropsABlockInUse", "train and eval", "something else than training", r"^hidden states in evaluation mode"),
    ("PredictsIgnored", "ignored", "not to be predicted changes the loss", r"^count"),
    ("OneKeyMore", "window", "sees more keys", r"^output of blocks.0.attention.*at 0: position 0,"),
    (
        "OneKeyFewer",
        "window",
        "sees fewer keys",
        r"^output of blocks.0.attention: .*never shows at t \+ 7",
    ),
    ("Counts", "multiplier", "no function of the step", r"a run of 1 steps"),
    ("HalfABatch", "counts", "takes 0.5 batches", r"begins at batch 8$"),
    ("ForgetsItsSize", "counts", "takes 2 batches, and after saving and loading 1", r"begins at batch 30$"),
    ("CutWrongly", "sharded", "does not run when cut", r"^gate, up, down"),
    ("Hurries", "addressed", "no function of its step", r"^step 5, asked alone"),
]


@pytest.mark.parametrize(("name", "contract", "what", "where"), [grouped(*row) for row in REASONS])
def test_it_is_caught_for_its_own_reason(
    held: dict[str, list[Outcome]], name: str, contract: str, what: str, where: str
) -> None:
    (found,) = [outcome for outcome in outcomes(held, name) if outcome.contract.name == contract]
    assert what in found.detail
    assert re.search(where, found.where), found.where
    assert found.fix


def test_every_contract_has_a_component_that_breaks_it() -> None:
    assert set().union(*BREAKS.values()) == set(CONTRACTS)


def test_every_broken_component_is_in_the_table() -> None:
    classes = [node.name for node in ast.parse(BROKEN.read_text()).body if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if not name.startswith("_")] == list(BREAKS)


def test_nan_is_never_equal() -> None:
    a = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(Broken) as caught:
        require_close(a, a, "differ", name="x", fix="")
    assert "row 0, column 1" in caught.value.where
