"""All contracts in their order, and what runs them: the face of this room, which `gptlab.contracts` is."""

from gptlab.contracts import equivalence, influence, learning, parts
from gptlab.contracts.core import (
    CONTRACTS,
    TOLERANCE,
    Broken,
    Contract,
    Outcome,
    Skipped,
    order_contracts,
    run_contracts,
)
from gptlab.contracts.equivalence import require_off
from gptlab.contracts.subject import Subject, component_subject, config_subject, find_subject

__all__ = [
    "CONTRACTS",
    "TOLERANCE",
    "Broken",
    "Contract",
    "Outcome",
    "Skipped",
    "Subject",
    "component_subject",
    "config_subject",
    "find_subject",
    "require_off",
    "run_contracts",
]

order_contracts(influence, learning, equivalence, parts)
