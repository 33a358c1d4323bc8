"""TinyStories: where stories are cut, and what is counted of their two continuations."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from gptlab.cli import main
from gptlab.errors import DataError
from gptlab.evals.benchmark import Options, evaluate
from gptlab.evals.tinystories import BETWEEN, Story, cut, encode, repeated, stories
from gptlab.tokenizer import byte_tokenizer

TEXTS = [
    'Tom had a big red ball. He said, "Look at my ball!" Then he ran to the park and lost it. The end.',
    "Mia saw a cat. The cat ran. Mia ran too. They were happy and went home to eat.",
    "One day a bird could not fly. Its mom helped. It was glad.",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stories as their authors publish them."""
    (tmp_path / "TinyStories-valid.txt").write_text(f"\n{BETWEEN}\n".join(["", *TEXTS, "no end"]), encoding="utf-8")
    return tmp_path


def test_stories_are_cut_at_the_sentence_nearest_their_middle() -> None:
    found = [cut(text) for text in TEXTS]
    assert found[0] == Story(
        'Tom had a big red ball. He said, "Look at my ball!"', " Then he ran to the park and lost it. The end."
    )
    assert found[1] == Story("Mia saw a cat. The cat ran. Mia ran too.", " They were happy and went home to eat.")
    for text, story in zip(TEXTS, found, strict=True):
        assert story is not None
        assert story.beginning + story.rest == text
    assert cut("no end") is None
    assert cut("One sentence alone.") is None
    assert cut("") is None


def test_repetition_is_counted_by_words() -> None:
    """Welleck et al.'s formula on counts made by hand."""
    assert repeated(["a", "b", "c", "d", "e", "f"]) == 0
    assert repeated(["a", "b", "a", "b", "a", "b", "a"]) == 0.5  # abab, baba, abab, baba
    assert repeated(["a"] * 9) == pytest.approx(5 / 6)
    assert repeated(["a", "b", "c"]) is None
    assert repeated(["a", "b", "a", "b"], 2) == pytest.approx(1 / 3)


def test_text_and_parquet_hold_the_same(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [*TEXTS, "no end"]}), folder / "TinyStories-valid.parquet")
    plain = stories(folder / "TinyStories-valid.txt", None)
    assert stories(folder / "TinyStories-valid.parquet", None) == plain == [cut(text) for text in TEXTS]
    assert len(stories(folder / "TinyStories-valid.txt", 2)) == 2
    pq.write_table(pa.table({"story": ["A. B."]}), folder / "other.parquet")
    with pytest.raises(DataError, match="holds no stories"):
        stories(folder / "other.parquet", None)
    (folder / "none.txt").write_text("no end")
    with pytest.raises(DataError, match="holds no story of two sentences"):
        stories(folder / "none.txt", None)


@pytest.mark.parametrize("context", [128, 32])
def test_numbers_are_those_of_the_model_itself(make_run, folder: Path, context: int) -> None:
    """Bits per byte by the run's own loss a token; what was said by its own `generate`. A short context sees a part."""
    run = make_run(byte_tokenizer(), context=context)
    found = evaluate(run, "tinystories", Options(task_data=folder))
    assert found.results["questions"] == 3
    total = size = 0.0
    for text, record in zip(TEXTS, found.records, strict=True):
        story = cut(text)
        assert story is not None
        pairs = encode(run.tokenizer, story, context)
        assert sum(pair.count for pair in pairs) == len(story.rest)
        assert all(len(pair.ids) <= context + 1 for pair in pairs)
        ends = [bytes(pair.ids[-pair.count :]).decode() for pair in pairs]
        assert "".join(ends) == story.rest
        if len(text) < context:
            nats = sum(run.token_losses(text).nats[-len(story.rest) :])
            assert record["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(story.rest), abs=2e-4)
            assert record["said"] == run.generate(story.beginning, max_new_tokens=context // 2, temperature=0)
        total += record["bits_per_byte"] * record["bytes"]
        size += record["bytes"]
        assert (record["prompt"], record["true"]) == (story.beginning, story.rest)
        assert record["seq_rep_4_true"] == 0
        assert record["truncated"] is (len(story.beginning) + 1 > context - context // 2)
    assert found.results["bits_per_byte"] == pytest.approx(total / size, abs=1e-4)
    repetition = [one["seq_rep_4"] for one in found.records if one["seq_rep_4"] is not None]
    assert not repetition or found.results["seq_rep_4"] == pytest.approx(sum(repetition) / len(repetition))


def test_the_command(
    make_run, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(byte_tokenizer())
    words = ["gptlab", "eval", str(run.folder), "--tasks", "tinystories", "--task-data", str(folder), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "tinystories bits/byte" in capsys.readouterr().out
    kept = json.loads((run.folder / "evals/tinystories.json").read_text(encoding="utf-8"))
    assert len(kept["records"]) == 2
    assert kept["settings"]["new_tokens"] == 64
    from gptlab.lab.judge.prompts import read_prompts

    lines = [json.dumps({"prompt": record["prompt"]}) for record in kept["records"]]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    assert list(read_prompts(str(folder / "prompts.jsonl")).texts) == [record["prompt"] for record in kept["records"]]
