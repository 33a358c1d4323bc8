"""The contract suite: what every component promises, ours or a user's, and what `gptlab check` holds it to.

subject = find_subject("./idea.py:MyAttention")
broken = [outcome for outcome in run_contracts(subject) if outcome.status == "broken"]
"""

from gptlab.contracts import parts, promises  # noqa: F401 - they register their contracts, in this order
from gptlab.contracts.core import CONTRACTS, TOLERANCE, Broken, Contract, Outcome, Skipped, run_contracts
from gptlab.contracts.promises import require_off
from gptlab.contracts.subject import Subject, component_subject, config_subject, find_subject, places

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
