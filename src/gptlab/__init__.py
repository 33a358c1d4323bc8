"""gptlab: a laboratory for GPT pre-training research on a small budget.

run = gptlab.load("runs/books-xs-…")
run.generate(["It was a dark"], max_new_tokens=50)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gptlab.version import __version__ as __version__

if TYPE_CHECKING:
    from gptlab.config import load_config as load_config
    from gptlab.config import load_stages as load_stages
    from gptlab.evals.benchmark import evaluate as evaluate
    from gptlab.evals.words import compare_words as compare_words
    from gptlab.interop import load as load
    from gptlab.lab.experiment.evidence import read_verdicts as read_verdicts
    from gptlab.lab.report.comparison import compare as compare
    from gptlab.run import Run as Run
    from gptlab.training.loop import train as train
    from gptlab.training.soup import soup as soup
    from gptlab.training.stages import train_stages as train_stages

_HOMES = {
    "Run": "gptlab.run",
    "compare": "gptlab.lab.report.comparison",
    "compare_words": "gptlab.evals.words",
    "evaluate": "gptlab.evals.benchmark",
    "load": "gptlab.interop",
    "load_config": "gptlab.config",
    "load_stages": "gptlab.config",
    "read_verdicts": "gptlab.lab.experiment.evidence",
    "soup": "gptlab.training.soup",
    "train": "gptlab.training.loop",
    "train_stages": "gptlab.training.stages",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch only when it is asked for: `import gptlab` alone is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gptlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
