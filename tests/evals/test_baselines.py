"""scripts/baselines.py: rows of Markdown, of numbers that `gptlab eval` has kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.tokenizer import byte_tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "baselines.py"


@pytest.mark.slow
def test_the_column_ours_is_what_eval_finds(make_run, tmp_path: Path) -> None:
    run = make_run(byte_tokenizer())
    for folder in ("questions", "texts"):
        (tmp_path / folder).mkdir()
    rows = [{"query": f"A boat {n} sank because", "choices": ["it leaked", "so"], "gold": 0} for n in range(8)]
    (tmp_path / "questions/copa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "texts/wiki.test.tokens").write_text(" = A = \n \n A man is on a boat . \n", encoding="utf-8")
    command = [sys.executable, str(SCRIPT), str(run.folder), "--tasks", "copa,piqa,wikitext", "--limit", "6"]
    command += ["--task-data", "questions", "--task-data", "texts"]
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "GPTLAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "piqa is left out" in done.stderr
    copa = json.loads((run.folder / "evals/copa.json").read_text(encoding="utf-8"))["results"]
    low, high = copa["intervals"]["acc"]
    assert f"| `copa` | acc | {copa['acc']:.4f} ({low:.3f} to {high:.3f}) | 6 questions |" in done.stdout
    text = json.loads((run.folder / "evals/wikitext-window1024.json").read_text(encoding="utf-8"))["results"]
    assert f"| `wikitext` | word_perplexity | {text['word_perplexity']:.2f} | 1 pages |" in done.stdout
