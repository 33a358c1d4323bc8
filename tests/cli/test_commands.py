"""`gptlab config`, `trace`, `sample` and `--help` as a user types them; every mistake is one line and exit code 2."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from helpers import TINY, make_data, only_run

import gptlab
from gptlab.cli import app, main
from gptlab.cli.options import complete_config, complete_experiment, complete_setting

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "src/gptlab/config/presets"

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and one trained run."""
    from gptlab.config import load_config
    from gptlab.training.loop import train

    folder = tmp_path_factory.mktemp("work")
    make_data(folder / "made")
    (folder / "tiny.yaml").write_text(f"name: tiny\ndata: {{path: {folder}/made/data}}\n{TINY}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(load_config("tiny.yaml", ["train.tokens=1024"]))
    return folder


@pytest.fixture
def call(workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """`call("trace", …)` → exit code, standard output, standard error; through the real entry point."""
    from gptlab.console import console, output

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.chdir(workplace)
        monkeypatch.setenv("COLUMNS", "150")
        monkeypatch.setattr(sys, "argv", ["gptlab", *map(str, arguments)])
        for screen in (console, output):
            screen.cache_clear()
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return run


# ---------------------------------------------------------------- config


def test_show_writes_every_default_out_and_reads_back_as_the_same_run(call: Call, workplace: Path) -> None:
    code, shown, err = call("config", "show", "tiny.yaml", "--set", "optimizer.lr=5e-4")
    assert (code, err) == (0, "")
    values = yaml.safe_load(shown)
    assert values["model"]["dim"] == 32
    expected = {"use": "RoPE", "theta": 10000.0, "fraction": 1.0, "angles": "float64", "window_theta": None}
    assert values["model"]["position"] == expected
    assert values["optimizer"]["lr"] == 5e-4
    (workplace / "shown.yaml").write_text(shown)
    assert call("config", "show", "shown.yaml")[1] == shown
    assert call("config", "diff", "shown.yaml", "tiny.yaml")[1] == "optimizer.lr: 0.0005 → 0.001\n"


def test_diff_sees_through_defaults_and_bases(call: Call, workplace: Path) -> None:
    (workplace / "same.yaml").write_text("base: tiny.yaml\nname: tiny\nmodel: {use: GPT, position: RoPE}\n")
    (workplace / "other.yaml").write_text("base: tiny.yaml\nmodel: {block: {mlp: SwiGLU}}\nseed: 2\n")
    assert call("config", "diff", "tiny.yaml", "same.yaml") == (0, "", "")
    code, out, _ = call("config", "diff", "tiny.yaml", "other.yaml")
    assert code == 0
    assert re.search(r'^model\.block\.mlp: .*"GELU".* → .*"SwiGLU"', out, re.M)
    assert "seed.data: 0 → 2" in out or "seed.data: 1 → 2" in out
    assert "model.position" not in out


def test_a_run_folder_is_a_config_too(call: Call, workplace: Path) -> None:
    code, out, err = call("config", "diff", "tiny.yaml", only_run(workplace))
    assert code == 0, err
    assert "train.tokens: 5120 → 1024" in out


def test_schema_is_a_json_schema_of_configs(call: Call) -> None:
    code, out, err = call("config", "schema")
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert {"model", "data", "train", "optimizer", "base"} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["config", "show", "nowhere.yaml"], "no config file at nowhere.yaml"),
        (["config", "show", "tiny.yaml", "--set", "model.lyers=3"], "did you mean 'layers'?"),
        (["config", "show", "tiny.yaml", "--set", "model.layers"], "--set"),
        (["config", "show", "tiny.yaml", "--set", "model.layers=many"], "layers"),
        (["config", "diff", "tiny.yaml", "nowhere.yaml"], "no config file at nowhere.yaml"),
        (["trace", "nowhere.yaml"], "no config file at nowhere.yaml"),
        (["trace", "tiny.yaml", "--set", "model.heads=3"], "3 heads do not divide the width 32"),
        (["trace", "tiny.yaml", "--vocab-size", "0"], "--vocab-size must be at least 1"),
        (["trace", "tiny.yaml", "--vocab-size", "-5"], "--vocab-size must be at least 1"),
        (["trace", "tiny.yaml", "--depth", "0"], "--depth must be at least 1"),
        (["sample", "nowhere"], "nowhere is not a run folder"),
        (["sample", "RUN", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["sample", "RUN", "--temperature", "-1"], "--temperature must be 0, or from 1e-06 on"),
        (["sample", "RUN", "--top-p", "1.5"], "--top-p must be above 0 and at most 1"),
        (["sample", "RUN", "--device", "tpu"], "'tpu' is no device"),
        (["sample", "RUN", "--checkpoint", "step-1"], "has no checkpoint 'step-1'; it has step-00000004"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_one_line(call: Call, workplace: Path, arguments: list[str], complaint: str) -> None:
    run = str(only_run(workplace))
    code, out, err = call(*[run if word == "RUN" else word for word in arguments])
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
    assert complaint in err


def test_a_damaged_config_is_one_line(call: Call, workplace: Path) -> None:
    (workplace / "damaged.yaml").write_text("model: {dim: 32\ntrain: [")
    code, out, err = call("config", "show", "damaged.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "damaged.yaml" in err
    assert "Traceback" not in err


# ---------------------------------------------------------------- trace


def test_trace_of_gpt2_tells_its_parameters_and_shapes(call: Call) -> None:
    code, out, err = call("trace", CONFIGS / "gpt2.yaml", "--vocab-size", "50257")
    assert (code, err) == (0, "")
    assert "124,439,808 parameters" in out
    assert re.search(r"blocks 0 to 11 +Block +B T D +B T D +7,087,872", out)
    assert re.search(r"^ +qkv +Linear +B T D +B T 3D +1,771,776", out, re.M)
    assert re.search(r"^ +head +Linear +B T D +B T V +38,597,376", out, re.M)
    assert "V=50257" in out


def test_trace_takes_the_vocabulary_of_the_data_and_less_depth(call: Call) -> None:
    code, out, err = call("trace", "tiny.yaml", "--depth", "2")
    assert (code, err) == (0, "")
    assert "V=257" in out
    assert "attention" not in out.replace("attention counted", "")
    deeper = call("trace", "tiny.yaml")[1]
    assert len(deeper.splitlines()) > len(out.splitlines())


def test_trace_says_when_it_has_to_guess_the_vocabulary(call: Call) -> None:
    code, out, err = call("trace", "tiny.yaml", "--set", "data.path=elsewhere")
    assert code == 0
    assert "V=50257" in out
    assert "no data set at elsewhere; taking V = 50257" in err


# ---------------------------------------------------------------- sample


def test_sample_prints_prompt_and_continuation_and_a_seed_repeats_it(call: Call, workplace: Path) -> None:
    run = only_run(workplace)
    options = ["--max-new-tokens", "20", "--seed", "7"]
    code, first, err = call("sample", run, "the cat", *options)
    assert (code, err) == (0, "")
    assert first.startswith("the cat")
    assert len(first) > len("the cat\n")
    assert call("sample", run, "the cat", *options)[1] == first
    assert call("sample", run, "the cat", "--max-new-tokens", "20", "--seed", "8")[1] != first


def test_samples_are_kept_cut_and_set_beside_another_runs(call: Call, workplace: Path, tmp_path: Path) -> None:
    run = str(only_run(workplace))
    draw = ["--max-new-tokens", "30", "--seed", "7", "--samples", "2"]
    whole = call("sample", run, "the cat", *draw)[1]
    out = tmp_path / "kept.jsonl"
    code, shown, err = call("sample", run, "the cat", *draw, "--out", str(out))
    assert (code, shown) == (0, "")
    assert "wrote 2 texts" in err
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat"] * 2
    assert all(row["seed"] == 7 and row["run"] == Path(run).name for row in rows)
    assert all(row["text"] in whole for row in rows)
    # Cut before the first of what is named, wherever its tokens end.
    stop = rows[0]["text"][9:11]
    assert call("sample", run, "the cat", *draw, "--stop", stop, "--stop", "zzz", "--out", str(out))[0] == 0
    cut = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert cut == [row["text"].partition(stop)[0] for row in rows]
    other = shutil.copytree(run, tmp_path / "other")
    code, beside, _ = call("sample", run, "the cat", *draw, "--compare", str(other))
    assert code == 0
    assert f"{Path(run).name} " in beside
    assert beside.count("other") == 2
    assert beside.count("the cat\n") == 2
    for words, said in (
        (["--out", "kept.txt"], "ends in .jsonl"),
        (["--out", str(out), "--show-tokens"], "leave out --out and --compare"),
        (["--stop", "a", "--show-tokens"], "leave out --stop"),
        (["--stop", ""], "--stop"),
        (["--compare", "nowhere"], "nowhere is not a run folder"),
        (["--compare", run], "the run itself"),
    ):
        code, shown, err = call("sample", run, "the cat", *words)
        assert (code, shown) == (2, "")
        assert said in err


def test_sample_takes_several_prompts_and_checkpoints(call: Call, workplace: Path) -> None:
    run = only_run(workplace)
    greedy = ["--max-new-tokens", "12", "--temperature", "0", "--ignore-end"]
    code, both, _ = call("sample", run, "the cat", "until [noon]", *greedy)
    assert code == 0
    for prompt in ("the cat", "until [noon]"):
        alone = call("sample", run, prompt, *greedy)[1]
        assert alone.startswith(prompt)
        assert alone.rstrip() in both
    # The last checkpoint holds the final weights.
    same = call("sample", run, "the cat", *greedy, "--checkpoint", "step-00000004")[1]
    assert same == call("sample", run, "the cat", *greedy)[1]


def test_sample_by_beams_and_with_a_penalty(call: Call, workplace: Path, tmp_path: Path) -> None:
    import gptlab

    run = only_run(workplace)
    draw = ["--max-new-tokens", "12", "--ignore-end"]
    loaded = gptlab.load(run, device="cpu")
    options = {"max_new_tokens": 12, "temperature": 0, "stop_at_end": False}
    code, shown, _ = call("sample", run, "the cat", *draw, "--beams", "3", "--device", "cpu")
    assert code == 0
    assert shown.rstrip("\n") == ("the cat" + loaded.generate("the cat", beams=3, **options)).rstrip("\n")
    out = tmp_path / "kept.jsonl"
    asked = [*draw, "--beams", "3", "--repetition-penalty", "1.5", "--out", str(out), "--device", "cpu"]
    assert call("sample", run, "the cat", "a", *asked)[0] == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    expected = loaded.generate(["the cat", "a"], beams=3, repetition_penalty=1.5, **options)
    assert [row["text"] for row in rows] == expected
    assert {(row["beams"], row["repetition_penalty"], row["temperature"]) for row in rows} == {(3, 1.5, 0.0)}
    assert call("sample", run, "the cat", *draw, "--beams", "3", "--show-tokens")[0] == 0
    for words, said in (
        (["--beams", "3", "--temperature", "0.8"], "--beams 3 draws nothing, and --temperature 0.8 is for draws"),
        (["--beams", "3", "--stop", "a"], "--beams looks for the likeliest text as a whole"),
        (["--beams", "900"], "beams can be followed; lower it"),
        (["--repetition-penalty", "0"], "--repetition-penalty must be from 0.01 to 100"),
    ):
        code, shown, err = call("sample", run, "the cat", *words)
        assert (code, shown) == (2, "")
        assert said in err


# ---------------------------------------------------------------- start


def test_help_is_instant_because_it_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gptlab", "--help"], capture_output=True, text=True, check=True
    )
    assert "eval" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "gptlab.cli" in imported
    heavy = {
        "torch",
        "numpy",
        "pydantic",
        "tiktoken",
        "tokenizers",
        "pyarrow",
        "matplotlib",
        "yaml",
        "safetensors",
        "scipy",
    }
    assert not imported & heavy


def test_help_shows_every_command_by_the_work_it_is_for(call: Call) -> None:
    from gptlab.cli import COMMANDS

    code, shown, _ = call("--help")
    assert code == 0
    places = [shown.index(f"─ {panel} ─") for panel in COMMANDS]
    assert places == sorted(places)
    for (panel, commands), end in zip(COMMANDS.items(), [*places[1:], len(shown)], strict=True):
        part = shown[shown.index(f"─ {panel} ─") : end]
        assert [name for name in commands if f"│ {name} " in part] == list(commands), panel


# ---------------------------------------------------------------- the door


def test_nothing_asked_shows_where_to_begin(call: Call) -> None:
    code, shown, err = call()
    assert (code, err) == (0, "")
    rows = [line[24:].strip() for line in shown.replace("\\\n", " ").splitlines() if line[24:].startswith("gptlab ")]
    assert len(rows) > 8
    commands = typer.main.get_command(app)
    for line in ", ".join(rows).split(", "):
        words = shlex.split(line)[1:]
        command = commands
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0) if words[0] in command.commands else command.fallback]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_train_without_a_config_says_what_there_is(call: Call) -> None:
    code, _, err = call("train")
    assert code == 2
    assert err.startswith("error: which config? books-mini, books-xs, demo,")
    assert len(err.splitlines()) == 1


def test_the_version(call: Call) -> None:
    assert call("--version") == (0, f"gptlab {gptlab.__version__}\n", "")


def test_a_shell_completes_configs_runs_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/tiny-0123abcd-seed1").mkdir(parents=True)
    Path("tiny.yaml").touch()
    assert complete_config("gpt2") == ["gpt2", "gpt2-large", "gpt2-medium", "gpt2-mini", "gpt2-xl"]
    assert complete_config("ti") == ["tinyllama-1.1b", "tiny.yaml"]
    assert complete_config("runs/t") == ["runs/tiny-0123abcd-seed1"]
    Path("experiments/mine").mkdir(parents=True)
    assert complete_experiment("exp") == []  # a folder is one where it says what is asked
    Path("experiments/mine/experiment.yaml").touch()
    assert complete_experiment("exp") == ["experiments/mine"]
    assert complete_setting("optimizer.l") == ["optimizer.lr="]
    assert "model.block.mlp.use=" in complete_setting("model.block")
