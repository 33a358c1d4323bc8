"""Every component that ships keeps every contract, with every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.variants import BESIDE, EXCUSED, KNOWN, OFF, REQUIRED, VARIANTS

from gptlab.config import SLOTS, component_names
from gptlab.config.signatures import signature
from gptlab.contracts import CONTRACTS, component_subject, require_off, run_contracts

COMPONENTS = [(kind, name) for kind in SLOTS for name in component_names(kind)]
CASES: list[tuple[str, str, dict[str, Any]]] = [
    (kind, name, arguments)
    for kind, name in COMPONENTS
    for arguments in [*([] if (kind, name) in REQUIRED else [{}]), *VARIANTS.get(kind, {}).get(name, [])]
]


def case_id(case: tuple[str, str, dict[str, Any]]) -> str:
    kind, name, arguments = case
    return "-".join([kind, name, *arguments])


def needed_beside(kind: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What else of the config these arguments need: of `BESIDE`, the line of the last option that has one."""
    beside = BESIDE.get((kind, name), {})
    for option in arguments:
        beside = BESIDE.get((kind, name, option), beside)
    return beside


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_it_keeps_every_contract(case: tuple[str, str, dict[str, Any]]) -> None:
    kind, name, arguments = case
    beside = needed_beside(kind, name, arguments)
    # Of a variant tracing is enough; what a compiler makes of the gradient is the component's own affair.
    backend = "eager" if arguments else "aot_eager"
    subject = component_subject(kind, {"use": name, **arguments}, beside=beside, backend=backend)
    # Tracing takes longer than all other contracts together, and finds nothing new in another width or eps.
    traced = not arguments or kind in ("attention", "block", "residual")
    outcomes = run_contracts(subject, () if traced else [name for name in CONTRACTS if name != "compiled"])
    broken = {o.contract.name: f"{o.detail}: {o.where}" for o in outcomes if o.status == "broken"}
    known = {contract for k, n, contract in KNOWN if (k, n) == (kind, name)}
    assert set(broken) == known, broken
    skipped = {o.contract.name for o in outcomes if o.status == "skipped" and "not what the slot" not in o.detail}
    assert skipped <= {"off switch", "documents", "window", "sharded"}
    assert any(o.status == "holds" for o in outcomes)


@pytest.mark.parametrize(("kind", "off", "baseline"), OFF)
def test_switched_off_it_is_the_baseline(kind: str, off: dict[str, Any], baseline: Any) -> None:
    beside = needed_beside(kind, off["use"], off)
    require_off(component_subject(kind, off, beside=beside), component_subject(kind, baseline, beside=beside))


# ---------------------------------------------------------------- the table is whole


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_option_is_in_a_variant(kind: str, name: str) -> None:
    options = set(signature(kind, name).schema.model_fields)
    covered = set().union(*VARIANTS.get(kind, {}).get(name, [{}]))
    excused = {option for k, n, option in EXCUSED if (k, n) == (kind, name)}
    missing = options - covered - excused
    assert not missing, f"{kind} {name}: no variant in tests/contracts/variants.py sets {sorted(missing)}"


def test_the_table_names_what_exists() -> None:
    for kind, components in VARIANTS.items():
        for name, variants in components.items():
            assert (kind, name) in COMPONENTS
            for arguments in variants:
                assert set(arguments) <= set(signature(kind, name).schema.model_fields)
    for kind, name, option in EXCUSED:
        assert option in signature(kind, name).schema.model_fields
        assert all(option not in arguments for arguments in VARIANTS[kind][name]) or kind == "model"
    assert {key[:2] for key in (*BESIDE, *KNOWN, *REQUIRED)} <= set(COMPONENTS)
    assert {contract for _, _, contract in KNOWN} <= set(CONTRACTS)


def test_every_slot_is_checked() -> None:
    assert {kind for kind, _, _ in CASES} == set(SLOTS)


def test_a_table_that_lacks_an_option_is_noticed() -> None:
    """The walk above would fail for an option in no variant: `eps` of a table without it."""
    options = set(signature("norm", "RMSNorm").schema.model_fields)
    assert options - set().union(*VARIANTS["norm"]["RMSNorm"]) == set()
    assert options - {"affine", "bias"} == {"eps"}


@pytest.mark.parametrize("arguments", [{}, {"window": 8}, {"document_mask": True}], ids=str)
def test_the_model_is_one_graph(arguments: dict[str, Any]) -> None:
    """A graph break in every layer would be correct, and slow."""
    subject = component_subject("attention", {"use": "Attention", **arguments})
    batch = subject.batch()
    torch._dynamo.reset()
    explained = torch._dynamo.explain(subject.model())(batch.inputs, batch.documents)
    torch._dynamo.reset()
    assert explained.graph_break_count == 0
