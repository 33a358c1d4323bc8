"""The pages on extending gptlab, walked through: each file that they show is written, and does what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data, only_run

from gptlab.config import load_config
from gptlab.contracts import config_subject, find_subject, run_contracts
from gptlab.model import build_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "extending"
TITLED = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.M | re.S)


def write_files(page: str, folder: Path) -> list[str]:
    """Write what a page shows under a title; their names."""
    found = TITLED.findall((PAGES / page).read_text(encoding="utf-8"))
    found = [(name, text) for name, text in found if not name.startswith("src/")]  # of gptlab itself
    for name, text in found:
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "demo.yaml").write_text((ROOT / "src/gptlab/config/presets" / "demo.yaml").read_text())
    return [name for name, _ in found]


def python(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("page", "code", "name", "config"),
    [
        ("component.md", "mirrored.py", "Mirrored", "mirrored.yaml"),
        ("model.md", "bigram.py", "BigramGPT", "bigram.yaml"),
    ],
)
def test_components_and_models_keep_every_contract(
    tmp_path: Path, page: str, code: str, name: str, config: str
) -> None:
    assert write_files(page, tmp_path) == [code, config]
    outcomes = run_contracts(find_subject(f"{tmp_path / code}:{name}", backend="aot_eager"))
    assert not {o.contract.name: (o.detail, o.where) for o in outcomes if o.status == "broken"}
    switched = {o.contract.name: o.status for o in outcomes}["off switch"]
    assert switched == ("holds" if page == "component.md" else "skipped")
    model = build_model(load_config(tmp_path / config), 97, device="meta")
    assert any(type(module).__name__ == name for module in model.modules())
    assert all(o.status == "holds" for o in run_contracts(config_subject(tmp_path / config), ["causal", "cached"])[:2])


@pytest.mark.slow
def test_a_tokenizer_a_source_and_a_benchmark(tmp_path: Path) -> None:
    assert write_files("tokenizer.md", tmp_path) == ["make_tokenizer.py"]
    size, digest = python("make_tokenizer.py", cwd=tmp_path).split()
    assert int(size) == len("ACGTN\n") + len(["<|endoftext|>", "<|gene|>"])
    assert gptlab("tokenizer", "show", "dna", "GATTACA", cwd=tmp_path).stdout
    assert len(digest) >= 16

    assert write_files("data-source.md", tmp_path) == ["make_documents.py"]
    python("make_documents.py", cwd=tmp_path)
    page = (PAGES / "data-source.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^gptlab (data prepare .+)$", page, re.M)
    gptlab(*command.split(), cwd=tmp_path)
    assert "1,800" in gptlab("data", "info", "data/sums", cwd=tmp_path).stdout

    assert write_files("benchmark.md", tmp_path) == ["ask.py"]
    (tmp_path / "sums.yaml").write_text(f"data: {{path: data/sums}}{TINY}")
    gptlab("train", "sums.yaml", cwd=tmp_path)
    answer = python("ask.py", str(only_run(tmp_path)), cwd=tmp_path)
    assert re.fullmatch(r"0\.\d+ ± 0\.\d+ of 25 sums\n", answer)


def test_the_mixture_of_the_page_is_one(tmp_path: Path) -> None:
    page = (PAGES / "data-source.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "mixed.yaml").write_text(text)
    outcomes = run_contracts(config_subject(tmp_path / "mixed.yaml"), ["shares"])
    assert {o.contract.name: o.status for o in outcomes}["shares"] == "holds"


def test_what_a_class_may_say_is_what_is_read() -> None:
    page = (PAGES / "contracts.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    said = set(re.findall(r"^    (\w+) = ", block, re.M))
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/gptlab/contracts").glob("*.py"))
    for name in said:
        assert f'"{name}"' in source, name


def test_the_page_names_every_contract() -> None:
    from gptlab.contracts import CONTRACTS

    page = (PAGES / "contracts.md").read_text(encoding="utf-8")
    named = {name.strip() for row in re.findall(r"^\| ([^|]+) \|", page, re.M) for name in row.split(",")}
    assert set(CONTRACTS) <= named


# ---------------------------------------------------------------- changes of gptlab itself


def apply_diffs(page: str, package: Path) -> list[str]:
    """Apply a page's diffs, all of which add lines at the end of a file of the package; the files."""
    diffs = re.findall(
        r"^```diff\n\+\+\+ b/src/gptlab/(\S+)\n(.*?)^```$", (PAGES / page).read_text("utf-8"), re.M | re.S
    )
    for name, lines in diffs:
        assert all(line.startswith("+") for line in lines.splitlines())
        added = "".join(f"{line[1:]}\n" for line in lines.splitlines())
        path = package / name
        path.write_text(f"{path.read_text('utf-8')}\n\n{added}" if path.exists() else added, encoding="utf-8")
    return [name for name, _ in diffs]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every change of the manual, and a folder to work in beside it."""
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(ROOT / "src" / "gptlab", folder / "src" / "gptlab")
    assert apply_diffs("inside.md", folder / "src" / "gptlab") == ["schedules.py", "model/attention.py", "model/mlp.py"]
    assert apply_diffs("benchmark.md", folder / "src" / "gptlab") == ["evals/siqa.py"]
    return folder


def in_changed(folder: Path, code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HOLD = """
from gptlab.config import component_names, json_schema
from gptlab.contracts import find_subject, run_contracts
if __name__ == "__main__":
    for name in ("SqrtWSD", "MeanAttention", "Bilinear"):
        for outcome in run_contracts(find_subject(name, backend="aot_eager")):
            print(name, outcome.contract.name, outcome.status, outcome.detail)
    assert "SqrtWSD" in component_names("schedule") and "SqrtWSD" in str(json_schema())
"""


@pytest.mark.slow
def test_a_schedule_an_attention_and_a_sharding_rule_are_one_file_each(changed: Path) -> None:
    (changed / "hold.py").write_text(HOLD)
    lines = in_changed(changed, "import runpy; runpy.run_path('hold.py', run_name='__main__')").splitlines()
    assert not [line for line in lines if " broken " in f"{line} "]
    for held in (
        "SqrtWSD multiplier holds",
        "MeanAttention causal holds",
        "MeanAttention cached holds",
        "Bilinear sharded holds",
    ):
        assert any(line.startswith(held) for line in lines), held
    flops = in_changed(
        changed,
        "from gptlab.config import config_from; from gptlab.model import build_model\n"
        "for use in ('Attention', 'MeanAttention'):\n"
        "    config = config_from({'model': {'dim': 64, 'layers': 2, 'block': {'attention': use}}})\n"
        "    model = build_model(config, 97, device='meta')\n"
        "    print(model.flops_per_token(128) - model.flops_per_token(64))\n",
    )
    assert [float(line) for line in flops.split()] == [12.0 * 64 * 64 * 2, 6.0 * 64 * 64 * 2]


@pytest.mark.slow
def test_a_benchmark_is_one_file(changed: Path) -> None:
    rows = [
        {"context": f"{a} and", "question": "Why?", "answerA": "the", "answerB": "of a", "answerC": "so"}
        | {"label": str(a % 3 + 1)}
        for a in range(6)
    ]
    (changed / "questions").mkdir()
    (changed / "questions" / "siqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_data(changed)
    (changed / "tiny.yaml").write_text(TINY + "data: {path: data}\n")
    gptlab("train", "tiny.yaml", cwd=changed)
    run = str(only_run(changed))
    shown = in_changed(
        changed,
        "import sys; from gptlab.cli import main\n"
        f"sys.argv = ['gptlab', 'eval', {run!r}, '--tasks', 'siqa', '--task-data', 'questions']; main()",
    )
    assert "siqa acc" in shown
    assert json.loads((Path(run) / "evals" / "siqa.json").read_text())["results"]["questions"] == 6
