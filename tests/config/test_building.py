"""Building components: what they are passed, and whose fault an error is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.config import build
from gptlab.config.building import import_component
from gptlab.errors import ConfigError


def test_build_gives_a_component_what_it_asks_for() -> None:
    schedule = build("schedule", {"use": "WSD", "decay": 0.5, "warmup": 0}, total_steps=10)
    assert [round(schedule(step), 3) for step in (0, 5, 9)] == [1.0, 1.0, 0.2]
    with pytest.raises(ConfigError, match=r"schedule\.deacy: WSD has no argument 'deacy'; did you mean 'decay'"):
        build("schedule", {"use": "WSD", "deacy": 0.5}, total_steps=10)


def test_an_error_in_a_user_s_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import json\n\nx = json.loads('{')\n\n\nclass Mine:\n    pass\n")
    with pytest.raises(ConfigError, match=r"broken\.py:3: JSONDecodeError"):
        import_component("mlp", f"{tmp_path / 'broken.py'}:Mine")
    (tmp_path / "fine.py").write_text("class Mine:\n    pass\n")
    assert import_component("mlp", f"{tmp_path}/fine.py:Mine") is import_component("mlp", f"{tmp_path}/fine.py:Mine")
