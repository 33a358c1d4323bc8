"""Perplexity of published texts, beside lm-evaluation-harness's own on the same model and pages."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from foreign import smollm2_gguf

from gptlab.errors import DataError
from gptlab.evals import perplexity, ptb, wikitext
from gptlab.evals.benchmark import Options, evaluate
from gptlab.interop import import_run, load
from gptlab.lab.experiment.metric import Metric
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer

MakeRun = Callable[..., Run]


def log_likelihood(run: Run, context: list[int], continuation: list[int]) -> float:
    """log p of a continuation, one row at a time."""
    ids = torch.tensor([*context, *continuation])
    with torch.no_grad():
        logp = run.model(ids[None, :-1], return_logits=True)[0].float().log_softmax(-1)
    return float(logp[-len(continuation) :].gather(-1, ids[-len(continuation) :, None]).sum())


@pytest.fixture
def some_pages(test_data: Path, tmp_path: Path) -> Path:
    """A folder with the first articles of WikiText's real test file."""
    with gzip.open(test_data / "wikitext/wiki.test.tokens.gz", "rt", encoding="utf-8") as file:
        lines = file.read(30_000).splitlines(keepends=True)[:-1]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "wiki.test.tokens").write_text("".join(lines), encoding="utf-8")
    return folder


def test_wikitext_as_the_harness_counts_it(make_run: MakeRun, tokenizer: Tokenizer, some_pages: Path) -> None:
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    run = make_run(tokenizer)
    pages = wikitext.pages((some_pages / "wiki.test.tokens").read_text(encoding="utf-8"))
    assert len(pages) > 1
    theirs = []
    for page in pages:
        assert page.plain == wikitext_detokenizer({"page": page.published})
        ids, end = tokenizer.encode(page.plain), tokenizer.end_of_text
        length = run.model.context_length
        cut = [make_disjoint_window(pair) for pair in get_rolling_token_windows(ids, end, length, 1)]
        logprob = sum(log_likelihood(run, *pair) for pair in cut)
        theirs.append(process_results({"page": page.published}, (logprob,)))
    found = evaluate(run, "wikitext", Options(task_data=some_pages))
    for name in ("word_perplexity", "byte_perplexity"):
        assert found.results[name] == pytest.approx(weighted_perplexity([page[name] for page in theirs]), rel=1e-3)
    assert found.results["bits_per_byte"] == pytest.approx(
        bits_per_byte([page["bits_per_byte"] for page in theirs]), rel=2e-4
    )
    for row, page in zip(found.records or [], theirs, strict=True):
        assert (-row["nats"], row["words"]) == (
            pytest.approx(page["word_perplexity"][0], rel=2e-4),
            page["word_perplexity"][1],
        )
    assert found.results["perplexity"] == pytest.approx(
        math.exp(sum(row["nats"] for row in found.records or []) / found.results["tokens"])
    )
    assert found.standard_errors["word_perplexity"]
    one = evaluate(run, "wikitext", Options(task_data=some_pages, limit=1))
    assert (one.results["pages"], one.standard_errors["bits_per_byte"]) == (1, None)
    assert (one.records or [])[0] == (found.records or [])[0]


def test_all_of_wikitext_is_cut_into_its_articles(test_data: Path) -> None:
    text = perplexity.read_text(test_data / "wikitext/wiki.test.tokens.gz", "")
    pages = wikitext.pages(text)
    assert "".join(page.published for page in pages).strip() == text.strip()
    assert len(pages) == 60  # as many as WikiText's authors say (table 1)
    assert all(page.published.startswith(" = ") for page in pages)
    assert sum(len(page.published.split()) for page in pages) + text.count("\n") == 245_569  # with line ends: theirs
    assert not any(mark in page.plain for page in pages for mark in (" @-@ ", " , ", " . "))


def test_penn_treebank(make_run: MakeRun, tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = " the <unk> 's stock did n't rise N % to $ N million \n no it was n't black monday \n"
    plain = ptb.undo(text, ptb.MARKS)
    assert plain == " the <unk>'s stock didn't rise 1 % to $1 million\nno it wasn't black monday\n"
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb/ptb.test.txt").write_text(text)
    run = make_run(tokenizer)
    found = evaluate(run, "ptb", Options(task_data=tmp_path))
    nats = run.loss(plain)
    assert found.results["bytes"] == len(text)
    assert found.results["tokens"] == nats.tokens
    assert found.results["bits_per_byte"] == pytest.approx(nats.nats / math.log(2) / len(text), rel=1e-5)
    assert found.results["word_perplexity"] > found.results["perplexity"] > found.results["byte_perplexity"]


def test_the_hub_s_form_is_the_same_text(some_pages: Path, tmp_path: Path) -> None:
    text = (some_pages / "wiki.test.tokens").read_text(encoding="utf-8")
    rows = pa.table({"text": text.splitlines(keepends=True)})
    pq.write_table(rows, tmp_path / "test-00000-of-00001.parquet")
    assert perplexity.read_text(tmp_path / "test-00000-of-00001.parquet", "") == text


def test_what_is_no_text_is_one_line(tmp_path: Path) -> None:
    for name, content in (("a.gz", b"none"), ("b.parquet", b"none"), ("c", b"\xff\xfe\x00"), ("d", b"  \n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="get the file again: https://x"):
            perplexity.read_text(tmp_path / name, "https://x")


def test_windows_do_not_overlap_and_miss_nothing() -> None:
    pairs = list(perplexity.windows(range(10, 17), 0, 3))
    assert [(pair.ids, pair.count) for pair in pairs] == [([0, 10, 11, 12], 3), ([12, 13, 14, 15], 3), ([15, 16], 1)]


def test_no_experiment_is_decided_by_what_has_no_accuracy() -> None:
    with pytest.raises(ValueError, match="no task of questions is called 'ptb'"):
        Metric(accuracy="ptb")
    with pytest.raises(ValueError, match=r"as many questions as .* take another metric"):
        Metric(logged="val/ptb/perplexity", better="lower")
    with pytest.raises(ValueError, match=r"as many questions as .* write {accuracy: hellaswag}"):
        Metric(logged="val/hellaswag/acc", better="higher")


@pytest.mark.parametrize(("length", "stride"), [(16, 5), (16, 16), (16, 1)])
def test_windows_that_overlap(length: int, stride: int) -> None:
    """As Hugging Face's page on the perplexity of models of fixed length has it: max_length and stride."""
    ids = list(range(1, 60))
    found = list(perplexity.windows(ids, 0, length, stride))
    whole, before, expected = [0, *ids], 0, []
    for begin in range(0, len(whole) - 1, stride):
        end = min(begin + length, len(whole) - 1)
        expected.append((whole[begin : end + 1], end - before))
        before = end
        if end == len(whole) - 1:
            break
    assert [(pair.ids, pair.count) for pair in found] == expected
    assert [token for pair in found for token in pair.ids[-pair.count :]] == ids


@pytest.mark.slow
def test_smollm2_by_stride_512_is_transformers_own(test_data: Path, tmp_path: Path) -> None:
    """A published model on real text, with windows of 1,024 tokens that move on by 512, against a computation that
    shares nothing with ours but the ids."""
    transformers = pytest.importorskip("transformers")
    file = smollm2_gguf()
    with gzip.open(test_data / "wikitext" / "wiki.test.tokens.gz", "rt", encoding="utf-8") as lines:
        text = lines.read(60_000)
    (tmp_path / "wiki.test.tokens").write_text("".join(p.published for p in wikitext.pages(text)[:2]), encoding="utf-8")
    run = load(import_run(file, name="smollm2", runs=tmp_path), device="cpu", dtype="float32")
    options = Options(task_data=tmp_path, limit=1, sequence_length=1024, stride=512)
    found = evaluate(run, "wikitext", options)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    page = wikitext.pages((tmp_path / "wiki.test.tokens").read_text(encoding="utf-8"))[0]
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = torch.tensor([[start, *tokenizer(page.plain, add_special_tokens=False)["input_ids"]]])
    nats, before, total = 0.0, 0, ids.shape[1] - 1
    for begin in range(0, total, 512):
        end = min(begin + 1024, total)
        window = ids[:, begin : end + 1]
        labels = window.clone()
        labels[:, : window.shape[1] - (end - before)] = -100
        with torch.no_grad():
            loss = theirs(window, labels=labels).loss
        nats += float(loss) * (end - before)
        before = end
        if end == total:
            break
    assert total > 1024 + 200  # or windows would not overlap
    assert found.results["tokens"] == total
    assert found.results["perplexity"] == pytest.approx(math.exp(nats / total), rel=1e-4)
    size = len(page.published.encode("utf-8"))
    assert found.results["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
