"""The loss task: the whole validation split, in windows, with counts that agree with the data set's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import foreign_tokenizer
from helpers import make_data, plain_json

from gptlab.data import TokenDataset, prepare
from gptlab.errors import DataError, GptlabError
from gptlab.evals import validation
from gptlab.evals.benchmark import Options, evaluate
from gptlab.run import Run
from gptlab.tokenizer import byte_tokenizer, import_tokenizer

LENGTH = 32


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "made")


@pytest.fixture
def run(make_run, data: Path) -> Run:
    return make_run(byte_tokenizer(), context=LENGTH, data=data)


def nats_by_hand(run: Run, data: Path) -> list[np.ndarray]:
    """−log p of each token of each window, one window at a time."""
    dataset = TokenDataset.open(data, "validation")
    ids = torch.from_numpy(dataset.read(0, dataset.tokens).astype(np.int64))
    windows = []
    for start in range(0, len(ids) - 1, LENGTH):
        piece = ids[start : start + LENGTH + 1]
        with torch.no_grad():
            logp = run.model(piece[None, :-1], return_logits=True)[0].double().log_softmax(-1)
        windows.append(-logp.gather(-1, piece[1:, None])[:, 0].numpy())
    return windows


def test_whole_split(run: Run, data: Path) -> None:
    found = evaluate(run, "loss")
    dataset = TokenDataset.open(data, "validation")
    windows = nats_by_hand(run, data)
    every = np.concatenate(windows)
    results, errors = found.results, found.standard_errors
    assert results["tokens"] == dataset.tokens - 1 == len(every)
    assert results["bytes"] == dataset.bytes  # its first token, the separator, is not predicted and stands for no text
    assert results["windows"] == len(windows)
    assert len(windows[-1]) < LENGTH
    assert results["loss"] == pytest.approx(every.mean(), rel=1e-5)
    assert results["perplexity"] == pytest.approx(math.exp(every.mean()), rel=1e-4)
    assert results["bits_per_byte"] == pytest.approx(every.sum() / math.log(2) / dataset.bytes, rel=1e-5)
    # The error of a ratio of sums, against the jackknife: leave out each window in turn.
    total, count, n = every.sum(), len(every), len(windows)
    without = [(total - w.sum()) / (count - len(w)) for w in windows]
    jackknife = math.sqrt((n - 1) / n * sum((value - np.mean(without)) ** 2 for value in without))
    assert errors["loss"] == pytest.approx(jackknife, rel=0.05)
    assert errors["perplexity"] == pytest.approx(errors["loss"] * results["perplexity"])
    assert errors["bits_per_byte"] == pytest.approx(errors["loss"] / math.log(2), rel=0.01)  # a byte is a token here


def test_limit_counts_windows(run: Run, data: Path) -> None:
    windows = nats_by_hand(run, data)
    for limit in (1, 3, len(windows) + 10):
        found = evaluate(run, "loss", Options(limit=limit))
        taken = windows[:limit]
        assert (found.results["windows"], found.settings["limit"]) == (len(taken), limit)
        assert found.results["loss"] == pytest.approx(np.concatenate(taken).mean(), rel=1e-5)
    assert evaluate(run, "loss", Options(limit=1)).standard_errors["loss"] is None


def test_another_data_set_and_one_of_another_tokenizer(run: Run, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", seed=3)
    found = evaluate(run, "loss", Options(data=other))
    assert found.settings["data"]["data"]["path"] == str(other)
    assert found.results["loss"] != evaluate(run, "loss").results["loss"]
    manifest = plain_json(other / "dataset.json")
    manifest["tokenizer"]["hash"] = "0" * 16
    (other / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="made with tokenizer"):
        evaluate(run, "loss", Options(data=other))
    with pytest.raises(DataError, match="is not a data set"):
        evaluate(run, "loss", Options(data=tmp_path / "nowhere"))


def test_several_sources_are_weighed_by_their_tokens(run: Run, data: Path, tmp_path: Path) -> None:
    long = make_data(tmp_path / "other", seed=3)
    section = run.config.data.model_copy(update={"path": None, "sources": {"a": str(data), "b": str(long)}})
    run.config = run.config.model_copy(update={"data": section})
    found = evaluate(run, "loss").results
    parts = found["sources"]
    assert set(parts) == {"a", "b"}
    assert found["tokens"] == sum(part["tokens"] for part in parts.values())
    nats = sum(part["loss"] * part["tokens"] for part in parts.values())
    assert found["loss"] == pytest.approx(nats / found["tokens"])


def test_weights_that_are_not_finite_give_no_numbers(run: Run) -> None:
    with torch.no_grad():
        run.model.embedding.weight.fill_(float("nan"))
    with pytest.raises(GptlabError, match="not finite"):
        evaluate(run, "loss")


def test_the_model_is_left_in_its_mode(run: Run) -> None:
    run.model.train()
    evaluate(run, "loss", Options(limit=1))
    assert run.model.training


def test_separators_count_as_tokens_but_not_as_text(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 20), ("validation", 7)):
        (tmp_path / split).mkdir()
        for number in range(count):
            (tmp_path / split / f"{number}.txt").write_text(f"Text {number} of {split}, é." * 3)
    made = tmp_path / "documents"
    prepare([str(tmp_path / "train")], made, validation=[str(tmp_path / "validation")], tokenizer="byte", workers=1)
    run = make_run(byte_tokenizer(), context=LENGTH, data=made)
    monkeypatch.setitem(validation._WINDOW_TOKENS, "cpu", 4 * LENGTH)  # the last batch has rows beyond the end
    found = evaluate(run, "loss").results
    dataset = TokenDataset.open(made, "validation")
    ids = dataset.read(0, dataset.tokens)
    nats = np.concatenate(nats_by_hand(run, made))
    text = ids[1:] != dataset.end_of_text
    assert (~text).sum() == 6
    assert found["windows"] == -(-len(nats) // LENGTH)
    assert found["windows"] % 4 != 0
    assert (found["tokens"], found["bytes"]) == (len(nats), dataset.bytes)
    assert found["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats[text].sum() / math.log(2) / dataset.bytes, rel=1e-5)


TEXT = "Once upon a time  there WAS a little girl. 日本の首都 🙂 naïve!\n\nUnknown: Ωmega 12345"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "words", "sentencepiece"])
def test_bytes_are_those_of_the_text_whatever_a_tokenizer_makes_of_it(kind: str, make_run, tmp_path: Path) -> None:
    """Lower case, one blank for two, unknown characters, a blank before the text: none of it is in the text."""
    foreign_tokenizer(kind).save(str(tmp_path / "tokenizer.json"))
    tokenizer = import_tokenizer(str(tmp_path / "tokenizer.json"), name=kind, end_of_text="</s>")
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(TEXT[number:] * 3)
    everything = [str(tmp_path / f"{number}.txt") for number in range(5)]
    (tmp_path / "train.txt").write_text("other text to train on")
    prepare([str(tmp_path / "train.txt")], tmp_path / "data", validation=everything, tokenizer=tokenizer, workers=1)
    run = make_run(tokenizer, context=LENGTH, data=tmp_path / "data")
    size = sum(len((TEXT[number:] * 3).encode()) for number in range(5))
    found = evaluate(run, "loss").results
    assert (found["bytes"], TokenDataset.open(tmp_path / "data", "validation").bytes) == (size, size)
    alone = run.loss(TEXT)
    assert alone.bytes == len(TEXT.encode())
    assert alone.bits_per_byte == pytest.approx(alone.nats / math.log(2) / len(TEXT.encode()))


def test_bytes_of_other_peoples_shards_are_unknown_where_tokens_are_not_the_text(make_run, tmp_path: Path) -> None:
    foreign_tokenizer("wordpiece").save(str(tmp_path / "tokenizer.json"))
    tokenizer = import_tokenizer(str(tmp_path / "tokenizer.json"), name="wordpiece", end_of_text="</s>")
    (tmp_path / "text.txt").write_text(TEXT * 3)
    text = [str(tmp_path / "text.txt")]
    (tmp_path / "train.txt").write_text("other text to train on")
    prepare([str(tmp_path / "train.txt")], tmp_path / "data", validation=text, tokenizer=tokenizer, workers=1)
    (tmp_path / "data" / "dataset.json").unlink()
    found = evaluate(make_run(tokenizer, context=LENGTH, data=tmp_path / "data"), "loss").results
    assert (found["bytes"], found["bits_per_byte"]) == (0, None)
    assert found["loss"] > 0
