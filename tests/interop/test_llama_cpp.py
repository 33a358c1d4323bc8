"""Every GGUF that is written loads in llama.cpp itself, cuts text into the same ids, and goes on with the same tokens.

llama.cpp is that of npm's node-llama-cpp, found in NODE_PATH or among npm's global packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from foreign import MODELS

import gptlab
from gptlab.inference.generate import Sampling, generate
from gptlab.interop import export_run, import_run
from gptlab.tokenizer import train_bpe

pytest.importorskip("gguf")
pytestmark = [pytest.mark.slow]

TEXT = "The cat don't sit  on 12345 mats, naïve 日本 🙂\n\n"
SCRIPT = """
import {pathToFileURL} from "node:url";
const [place, file, text, prompt, count] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(place + "/node-llama-cpp/dist/index.js"));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const ids = model.tokenize(text, false);
const context = await model.createContext({contextSize: 256, threads: 1});
const sequence = context.getSequence();
const tokens = [];
for await (const token of sequence.evaluate(JSON.parse(prompt), {temperature: 0, yieldEogToken: true})) {
    tokens.push(token);
    if (tokens.length >= Number(count)) break;
}
console.log(JSON.stringify({ids: Array.from(ids), tokens}));
process.exit(0);
"""


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Where node-llama-cpp is installed; skips where it is not."""
    if shutil.which("node") is None:
        pytest.skip("needs node and npm's node-llama-cpp (npm install -g node-llama-cpp)")
    places = [Path(place) for place in os.environ.get("NODE_PATH", "").split(os.pathsep) if place]
    if shutil.which("npm") is not None:
        done = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=False)
        places.append(Path(done.stdout.strip() or "nowhere"))
    for place in places:
        if (place / "node-llama-cpp" / "dist" / "index.js").is_file():
            return place
    pytest.skip("needs npm's node-llama-cpp (npm install -g node-llama-cpp, or its node_modules in NODE_PATH)")


def in_llama_cpp(node_modules: Path, file: Path, prompt: list[int], count: int) -> dict[str, list[int]]:
    """What llama.cpp makes of TEXT, and the likeliest tokens after `prompt`."""
    script = file.with_name("run.mjs")  # a file: node-llama-cpp starts itself again with the same arguments
    script.write_text(SCRIPT)
    command = ["node", str(script), str(node_modules), str(file), TEXT]
    done = subprocess.run(
        [*command, json.dumps(prompt), str(count)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


CHANGED = {"olmo2-tied": {"tie_word_embeddings": True}}
REFUSED = {"qwen3-tied-yarn", "olmo-biases", "mistral-window", "phi3-window-part"}
REFUSED |= {name for name in MODELS if name.startswith(("gemma", "smollm3"))}
WRITTEN = [name for name in [*MODELS, *CHANGED] if name not in REFUSED]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_export_runs_in_llama_cpp(node_modules: Path, name: str, kind: str, wild_model: Any, place: Path) -> None:
    (bpe,) = train_bpe([TEXT * 20], [290], name="bpe")
    bpe.save(place / "bpe")
    sizes = {"bytes": 257, "bpe": 290}  # not one more: the rest of a padded vocabulary is never predicted here alone
    base = name.partition("-")[0] if name in CHANGED else name
    theirs = wild_model(base, vocab_size=sizes[kind], **CHANGED.get(name, {}))
    theirs.save_pretrained(place / "theirs")
    run = gptlab.load(import_run(place / "theirs", name="it", tokenizer=kind), device="cpu", dtype="float32")
    file = export_run(run, place / "out", "gguf")
    prompt = run.encode_prompt("The cat")
    found = in_llama_cpp(node_modules, file, prompt, 8)
    assert found["ids"] == run.tokenizer.encode(TEXT)
    sampling = Sampling(max_new_tokens=8, temperature=0, stop_at_end=False)
    (expected,) = generate(run.generator, [prompt], sampling, stop_ids=(), device=run.device)
    assert found["tokens"] == expected


def test_a_tokenizer_that_cuts_off_each_digit(node_modules: Path, wild_model: Any, place: Path) -> None:
    """SmolLM2's kind: digits one by one, then GPT-2's pattern."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cut])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ends = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=ends, show_progress=False)
    made.train_from_iterator([TEXT] * 20, trainer)
    wild_model("llama3", vocab_size=made.get_vocab_size()).save_pretrained(place / "theirs")
    made.save(str(place / "theirs" / "tokenizer.json"))
    run = gptlab.load(import_run(place / "theirs", name="it"), device="cpu", dtype="float32")
    found = in_llama_cpp(node_modules, export_run(run, place / "out", "gguf"), run.encode_prompt("The"), 1)
    assert found["ids"] == run.tokenizer.encode(TEXT)
