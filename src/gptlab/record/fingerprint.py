"""Which code a run was computed by: a fingerprint over the modules that training executes.

Two runs of one config are only comparable where the code between config and loss was the same. The source is compared
without comments, docstrings and layout, so that a better explanation does not make last month's baseline useless.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

import gptlab

ROOMS = (
    "data/batches.py",
    "data/dataset.py",
    "data/mixture.py",
    "data/permutation.py",
    "data/shards.py",
    "data/splits.py",
    "evals/loss.py",
    "loss.py",
    "model",
    "optim.py",
    "precision.py",
    "run.py",
    "systems/checkpoint.py",
    "systems/compile.py",
    "systems/device.py",
    "systems/distributed.py",
    "train.py",
)
"""What stands between a config and its losses. Display, plots, commands and the lab itself do not."""


@functools.cache
def code_fingerprint(package: Path = Path(gptlab.__file__).parent) -> str:
    """Eight hex digits of SHA-256 over the executable content of `ROOMS` in `package` (or in a run's code/gptlab)."""
    digest = hashlib.sha256()
    for room in ROOMS:
        path = package / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(
                    f"{file.relative_to(package).as_posix()}\0{executable(file.read_text('utf-8'))}\0".encode()
                )
    return digest.hexdigest()[:8]


def executable(source: str) -> str:
    """Python source without what does not run: comments, layout, docstrings. Raises SyntaxError."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
