"""What begins a document, what ends it, and what ends a generated text are three things, and go out as they came in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import smollm2_tokenizer

import gptlab as package
from gptlab.config import config_from
from gptlab.data import TokenDataset, prepare
from gptlab.errors import DataError, GptlabError
from gptlab.evals.multiple_choice import Question, encode_question
from gptlab.inference.generate import Sampling, generate
from gptlab.interop import export_run, import_run
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer, import_tokenizer, load_tokenizer, train_bpe

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
BOTH = {"bos_token": "<s>", "eos_token": "</s>"}


def write_tokenizer(
    folder: Path, specials: list[str], template: str | None = None, model: Any = None, **config: Any
) -> Path:
    """A byte-level tokenizer.json with these special tokens, and what stands beside it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["the cat sat"],
        trainers.BpeTrainer(vocab_size=260, initial_alphabet=alphabet, special_tokens=specials, show_progress=False),
    )
    if template is not None:
        used = [text for text in specials if text in template]
        made.post_processor = processors.TemplateProcessing(
            template, special_tokens=[(text, specials.index(text)) for text in used]
        )
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model is not None:
        (folder / "generation_config.json").write_text(json.dumps(model))
    return folder


LLAMA3 = ["<|begin|>", "<|end|>", "<|eot|>"]
INSTRUCT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("specials", "files", "start", "end", "stop"),
    [
        (["<s>", "</s>"], {"template": "<s> $A", "eos_token": "</s>"}, "<s>", None, {"<s>", "</s>"}),
        (["<s>", "</s>"], {"template": "<s> $A </s>"}, "<s>", "</s>", {"<s>", "</s>"}),
        (["<s>", "</s>"], {"bos_token": "<s>", "eos_token": {"content": "</s>"}}, "<s>", None, {"<s>", "</s>"}),
        (["<s>", "</s>"], BOTH | {"add_bos_token": False}, "</s>", None, {"</s>"}),
        (["<s>", "</s>"], BOTH | {"add_eos_token": True}, "<s>", "</s>", {"<s>", "</s>"}),
        (INSTRUCT, dict(zip(BOTH, INSTRUCT[1:], strict=True)), INSTRUCT[0], None, {INSTRUCT[0], INSTRUCT[2]}),
        (INSTRUCT, {"bos_token": None, "eos_token": "<|endoftext|>"}, INSTRUCT[0], None, {INSTRUCT[0]}),
        (
            LLAMA3,
            {"template": "<|begin|> $A", "eos_token": "<|eot|>", "model": {"eos_token_id": [1, 2]}},
            LLAMA3[0],
            None,
            set(LLAMA3),
        ),
    ],
)
def test_an_import_tells_start_end_and_stop_apart(
    specials: list[str],
    files: dict[str, Any],
    start: str,
    end: str | None,
    stop: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = import_tokenizer(str(write_tokenizer(tmp_path / "theirs", specials, **files)), name="x")
    assert (found.end_of_text_token, found.document_end_token) == (start, end)
    assert {text for text, index in found.special_tokens.items() if index in found.stop_ids} == stop
    said = capsys.readouterr().err
    assert f"documents begin with {start} (" in said
    assert "generation stops at" in said
    found.save(tmp_path / "x")
    again = load_tokenizer(tmp_path / "x")
    assert (again.end_of_text, again.document_end, again.stop_ids) == (
        found.end_of_text,
        found.document_end,
        found.stop_ids,
    )
    assert again.hash == found.hash


def test_what_is_asked_for_is_taken_and_the_stop_token_stays(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "theirs", LLAMA3, eos_token="<|end|>")
    found = import_tokenizer(str(folder), name="x", end_of_text="<|begin|>", document_end="<|eot|>")
    assert (found.end_of_text, found.document_end, found.stop_ids) == (0, 2, {0, 1, 2})
    assert (found.named_token("bos_token"), found.named_token("eos_token")) == ("<|begin|>", "<|end|>")
    without = import_tokenizer(str(folder), name="x", end_of_text="<|begin|>")
    assert without.stop_ids == {0, 1}
    assert without.hash != found.hash  # other data is made with it


def test_packing_evaluation_and_scoring_with_an_end_of_document(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "theirs", ["<s>", "</s>"], template="<s> $A </s>")
    tokenizer = import_tokenizer(str(folder), name="x")
    texts = []
    for number, text in enumerate(["the cat", "sat", "on a mat"]):
        (tmp_path / f"{number}.txt").write_text(text)
        texts.append(str(tmp_path / f"{number}.txt"))
    (tmp_path / "train.txt").write_text("the mat")
    prepare([str(tmp_path / "train.txt")], tmp_path / "data", validation=texts, tokenizer=tokenizer, workers=1)
    dataset = TokenDataset.open(tmp_path / "data", "validation")
    documents = [[1, 0, *tokenizer.encode(Path(text).read_text())] for text in texts]
    assert dataset.read(0, dataset.tokens).tolist() == [token for document in documents for token in document]
    (pair, *_) = encode_question(tokenizer, Question("1", ("the",), ("cat",), 0), 32)
    assert pair.ids[0] == 0


def test_old_folders_have_one_token_for_all(tmp_path: Path) -> None:
    old = load_tokenizer(Path(__file__).parents[1] / "fixtures" / "v0.3" / "data" / "tokenizer")
    assert old.stop_ids == {old.end_of_text}
    assert old.document_end is None
    old.save(tmp_path / "again")
    meta = json.loads((tmp_path / "again" / "meta.json").read_text())
    assert not {"stop_tokens", "document_end", "tokenizer_config"} & set(meta)


# ---------------------------------------------------------------- in and out


def imported(wild_model: Any, place: Path, source: Path, **changes: Any) -> Run:
    """A wild Llama beside a tokenizer of others, as a run."""
    wild_model("llama3", **({"vocab_size": 260} | changes)).save_pretrained(place / "model")
    for file in source.iterdir():
        (place / "model" / file.name).write_bytes(file.read_bytes())
    return package.load(import_run(place / "model", name="it"), device="cpu", dtype="float32")


def test_generation_stops_where_the_source_says(wild_model: Any, place: Path) -> None:
    source = write_tokenizer(place / "theirs", LLAMA3, eos_token="<|eot|>", model={"eos_token_id": [1, 2]})
    run = imported(wild_model, place, source)
    prompt = run.encode_prompt("the cat")
    free = Sampling(max_new_tokens=200, temperature=0, stop_at_end=False)
    (row,) = generate(run.generator, [prompt], free, stop_ids=(), device=run.device)
    for stop in (row[3], row[5]):  # any of several
        (stopped,) = generate(run.generator, [prompt], Sampling(200, 0), stop_ids=[stop, 1_000_000], device=run.device)
        assert stopped == row[: row.index(stop)]


def test_what_came_in_goes_out(wild_model: Any, place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    said = {"bos_token": "<|begin|>", "eos_token": "<|eot|>", "pad_token": "<|end|>", "unk_token": "<|end|>"}
    source = write_tokenizer(place / "theirs", LLAMA3, "<|begin|> $A", {"eos_token_id": [1, 2], "top_k": 7}, **said)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    run = imported(wild_model, place, source)
    assert run.tokenizer.kind == "bpe"  # so that its template of bos has to be written anew
    export_run(run, place / "out")
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(place / folder) for folder in ("model", "out"))
    assert {role: getattr(ours, role) for role in said} == said
    assert ours("the cat")["input_ids"] == theirs("the cat")["input_ids"] == run.encode_prompt("the cat")
    turns = [{"role": "user", "content": "hi"}]
    chat = {"tokenize": False, "add_generation_prompt": True}
    assert ours.apply_chat_template(turns, **chat) == theirs.apply_chat_template(turns, **chat)
    assert json.loads((place / "out" / "generation_config.json").read_text()) == {"eos_token_id": [1, 2], "top_k": 7}
    config = json.loads((place / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 2, 1)
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(export_run(run, place / "gguf", "gguf"))
    fields = {key.removeprefix("tokenizer."): field.contents() for key, field in reader.fields.items()}
    assert fields["chat_template"] == TEMPLATE
    names = ("bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id", "add_bos_token")
    assert [fields[f"ggml.{name}"] for name in names] == [0, 2, 1, 1, True]


def test_an_export_of_ours_begins_with_the_separator(wild_model: Any, place: Path) -> None:
    """So transformers goes on as `sample` does, and lm-eval's add_bos_token has a token to add."""
    transformers = pytest.importorskip("transformers")
    (small,) = train_bpe(["the cat sat on the mat and the other cat sat on the other mat. " * 20], [270], name="small")
    small.save(place / "small")
    wild_model("llama3", vocab_size=270).save_pretrained(place / "theirs")
    run = package.load(import_run(place / "theirs", name="it", tokenizer="small"), device="cpu", dtype="float32")
    export_run(run, place / "out")
    reader = transformers.AutoTokenizer.from_pretrained(place / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "out")
    assert (reader.bos_token_id, reader.eos_token_id) == (small.end_of_text, small.end_of_text)
    ids = reader("the cat", return_tensors="pt")
    with torch.no_grad():
        theirs = model.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[
            0, ids["input_ids"].shape[1] :
        ]
    ours = run.generate("the cat", max_new_tokens=20, temperature=0)
    assert reader.decode(theirs, skip_special_tokens=True) == ours


@pytest.mark.parametrize("role", [{"end_of_text": "<s>"}, {"document_end": "</s>"}, {"stop": ["</s>"]}])
def test_a_role_that_nobody_would_read_is_refused(wild_model: Any, place: Path, role: dict[str, Any]) -> None:
    """A tokenizer of gptlab says itself what begins and ends a document: what was asked for beside it was ignored."""
    wild_model("llama3", vocab_size=257).save_pretrained(place / "theirs")
    with pytest.raises(GptlabError, match=f"{next(iter(role))} is for a tokenizer.json of others, and byte has"):
        import_run(place / "theirs", name="it", tokenizer="byte", **role)
    assert not (place / "runs").exists()


@pytest.mark.slow
def test_smollm2_begins_with_what_it_was_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: Tokenizer = import_tokenizer(str(smollm2_tokenizer(tmp_path / "theirs")), name="smollm2")
    assert found.end_of_text_token == "<|endoftext|>"
    assert found.special_tokens["<|im_end|>"] in found.stop_ids
    assert found.named_token("eos_token") == "<|im_end|>"
    assert "<|im_start|>" in (found.chat_template or "")
    assert "<|im_end|>, its eos_token, ends a turn" in capsys.readouterr().err


def test_the_three_go_with_a_model_from_import_to_export(wild_model: Any, place: Path) -> None:
    """Imported, its data prepared, finetuned, sampled, evaluated, exported: start, end and stops are what was asked."""
    source = write_tokenizer(place / "theirs", [*LLAMA3, "<|turn|>"], eos_token="<|end|>")
    wild_model("llama3", vocab_size=261, max_position_embeddings=64).save_pretrained(place / "model")
    for file in source.iterdir():
        (place / "model" / file.name).write_bytes(file.read_bytes())
    roles: dict[str, Any] = {"end_of_text": "<|begin|>", "document_end": "<|eot|>", "stop": ["<|turn|>"]}
    with pytest.raises(DataError, match=r"no added token '<\|turm\|>'"):
        import_run(place / "model", name="it", **{**roles, "stop": ["<|turm|>"]})
    first = import_run(place / "model", name="it", **roles)
    (place / "text.jsonl").write_text("".join(json.dumps({"text": "the cat sat " * 9}) + "\n" for _ in range(40)))
    chosen = load_tokenizer(first / "tokenizer")
    prepare(inputs=["text.jsonl"], validation_fraction=0.2, tokenizer=chosen, out=place / "data", workers=1)
    ids = TokenDataset.open(place / "data", "train").read(0, 400)
    starts = np.flatnonzero(ids == 0)
    assert len(starts) > 2
    assert (ids[starts[1:] - 1] == 2).all()

    config = {
        "name": "tuned",
        "model": {"init_from": str(first)},
        "data": {"path": "data"},
        "optimizer": {"use": "AdamW", "lr": 1e-4},
        "train": {"tokens": 256, "batch_tokens": 128, "sequence_length": 32, "dtype": "float32"},
        "eval": {"tokens": 64},
        "system": {"device": "cpu", "threads": 1},
    }
    run = package.load(package.train(config_from(config)).folder, device="cpu", dtype="float32")
    again = run.tokenizer
    assert (again.end_of_text, again.document_end, again.stop_ids) == (0, 2, {0, 1, 2, 3})
    assert run.encode_prompt("the")[0] == 0
    assert json.loads((place / "data" / "dataset.json").read_text())["end_of_text"] == again.end_of_text
    export_run(run, place / "out")
    out = import_tokenizer(str(place / "out"), name="x")
    assert out.end_of_text == 0
    assert {0, 1} <= out.stop_ids
