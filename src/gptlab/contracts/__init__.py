"""The contract suite: what every component promises, ours or a user's, and what `gptlab check` holds it to.

subject = find_subject("./idea.py:MyAttention")
broken = [outcome for outcome in run_contracts(subject) if outcome.status == "broken"]
"""

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
from gptlab.contracts.places import places
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
    "places",
    "require_off",
    "run_contracts",
]

order_contracts(influence, learning, equivalence, parts)
