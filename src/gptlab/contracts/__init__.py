"""The contract suite: what every component promises, ours or a user's, and what `gptlab check` holds it to.

subject = find_subject("./idea.py:MyAttention")
broken = [outcome for outcome in run_contracts(subject) if outcome.status == "broken"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptlab.contracts.suite import *  # noqa: F403 - as the function below has it


def __getattr__(name: str) -> Any:
    """Load the suite, which needs torch, only when it is asked for: `gptlab new` writes a component without it."""
    suite = importlib.import_module("gptlab.contracts.suite")
    if name not in suite.__all__:
        raise AttributeError(f"module 'gptlab.contracts' has no attribute {name!r}")
    return getattr(suite, name)
