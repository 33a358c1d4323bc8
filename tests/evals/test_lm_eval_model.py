"""A run of gptlab as a model of lm-evaluation-harness: its own command line, its own tasks, our numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlab.cli.lm_eval import GptlabLM
from gptlab.errors import DataError, GptlabError
from gptlab.evals import perplexity
from gptlab.evals.benchmark import Options, evaluate
from gptlab.tokenizer import train_char

ROWS = [
    {"id": f"q{n}", "question": f"Is {n} odd?", "choices": {"text": ["no", "yes", f"never {n}"], "label": list("ABC")}}
    | {"answerKey": "AB"[n % 2]}
    for n in range(20)
]


@pytest.fixture
def run(make_run: Any) -> Any:
    return make_run(train_char([json.dumps(ROWS), "Question:\nAnswer: .,"], name="char"), context=96)


class Request:
    """What the harness hands over."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def test_the_harness_own_command_line_runs_it(run: Any, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    (tmp_path / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks/arc/arc_easy.yaml", resolve_func=False)
    config |= {"task": "odd", "dataset_path": "json", "dataset_name": None, "training_split": None}
    config |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "arc_easy.jsonl")}}, "validation_split": None}
    config.pop("tag")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "odd.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    code = "from gptlab.cli.lm_eval import main; main()"
    asked = [
        "run",
        "--model",
        "gptlab",
        "--model_args",
        f"run={run.folder},dtype=float32",
        "--tasks",
        "odd",
        "--device",
        "cpu",
    ]
    asked += ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text(encoding="utf-8"))["results"]["odd"]
    ours = evaluate(run, "arc_easy", Options(task_data=tmp_path))
    for metric in ("acc", "acc_norm"):
        assert theirs[f"{metric},none"] == ours.results[metric]
        assert theirs[f"{metric}_stderr,none"] == pytest.approx(ours.standard_errors[metric])
    wrong = [*asked[:4], f"run={tmp_path / 'nothing'}", *asked[5:]]
    done = subprocess.run([sys.executable, "-c", code, *wrong], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "not a run folder" in done.stderr.splitlines()[-1]


def test_whole_texts_and_generated_ones(run: Any) -> None:
    model = GptlabLM(str(run.folder), device="cpu", dtype="float32")
    texts = ["Is 3 odd? yes", "no " * 60]
    found = model.loglikelihood_rolling([Request(text) for text in texts])
    for text, value in zip(texts, found, strict=True):
        pages = perplexity.evaluate_pages(run, "t", [perplexity.Page(text, text)], Path(__file__), Options())
        assert -value == pytest.approx(pages.records[0]["nats"], abs=1e-3)
    asked = [
        Request("Question: Is", {"until": ["\n"], "max_gen_toks": 12}),
        Request("Answer", {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}),
        Request("Question: Is", {"until": "z", "max_gen_toks": 5}),
    ]
    said = model.generate_until(asked)
    whole = run.generate(["Question: Is", "Answer"], max_new_tokens=12, temperature=0)
    assert said[:2] == [text.partition("\n")[0] for text in whole]
    assert said[2] == whole[0][:5]
    sampled = {"until": [], "max_gen_toks": 30, "do_sample": True, "temperature": 3.0}
    assert model.generate_until([Request("Is", sampled)]) == model.generate_until([Request("Is", sampled)])
    assert model.generate_until([Request("Is", sampled)]) != model.generate_until(
        [Request("Is", {**sampled, "do_sample": False})]
    )
    assert model.tokenizer_name.startswith("char-")
    with pytest.raises(DataError, match="no chat template"):
        model.apply_chat_template([{"role": "user", "content": "Hi"}])
    with pytest.raises(GptlabError, match="gen_prefix"):
        model.apply_chat_template([], add_generation_prompt=False)
