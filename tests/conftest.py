"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real text and benchmark questions; tests that need it skip where it is absent (CI has it)."""
    folder = Path(os.environ.get("GPTLAB_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set GPTLAB_TEST_DATA to the folder that holds it")
    return folder
