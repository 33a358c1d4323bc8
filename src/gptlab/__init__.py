"""gptlab: a laboratory for GPT pre-training research on a small budget.

run = gptlab.load("runs/books-xs-…")
run.generate(["It was a dark"], max_new_tokens=50)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptlab.config import load_config as load_config
    from gptlab.config import load_stages as load_stages
    from gptlab.run import Run as Run
    from gptlab.run import load as load
    from gptlab.souping import soup as soup
    from gptlab.stages import train_stages as train_stages
    from gptlab.train import train as train

__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    """Load what needs torch only when it is asked for: `import gptlab` alone is instant."""
    import importlib

    if name in ("load", "Run"):
        return getattr(importlib.import_module("gptlab.run"), name)
    if name in ("load_config", "load_stages"):
        return getattr(importlib.import_module("gptlab.config"), name)
    if name == "soup":
        return importlib.import_module("gptlab.souping").soup
    if name == "train_stages":
        return importlib.import_module("gptlab.stages").train_stages
    if name == "train":
        return importlib.import_module("gptlab.train")
    raise AttributeError(f"module 'gptlab' has no attribute {name!r}")
