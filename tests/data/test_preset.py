"""Data sets by name: what a preset is, and that a config brings what it reads."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers import gptlab

from gptlab.cli.data import prepare, prepare_missing
from gptlab.config import load_config, presets
from gptlab.data import Manifest, preset
from gptlab.data.dataset import load_manifest
from gptlab.data.preset import load_preset, preset_names
from gptlab.errors import DataError


@pytest.mark.parametrize("name", preset_names())
def test_each_is_whole(name: str) -> None:
    known = load_preset(name)
    assert known.inputs
    assert known.description
    assert known.tokenizer or known.vocab_size or known.train_tokenizer


def test_one_may_be_another_with_a_tokenizer_of_its_own() -> None:
    one, base = load_preset("tinystories-2k"), load_preset("tinystories-v2")
    assert (one.inputs, one.separator, one.vocab_size) == (base.inputs, base.separator, 2048)
    assert load_preset("fineweb-edu-32k").tokenizer is None


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Presets of this test alone: `small`, with a tokenizer of its own, and two of which a part will do."""
    monkeypatch.chdir(tmp_path)
    texts = [f"the cat {number} sat on the mat of the {number * 7} th house " * 4 for number in range(120)]
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    files = {name: tmp_path / f"{name}.yaml" for name in ("small", "streamed", "large")}
    common = f"inputs: [{tmp_path / 'text.jsonl'}]\n"
    files["small"].write_text(f"description: small\n{common}validation_fraction: 0.1\nvocab_size: 270\n")
    files["streamed"].write_text(f"description: s\n{common}validation_tokens: 100M\ntokenizer: byte\ntokens: 10B\n")
    files["large"].write_text(f"description: l\n{common}validation_tokens: 500\ntokenizer: byte\ntokens: 10B\n")
    monkeypatch.setattr(preset, "_files", lambda: files)
    return files


def config(path: str, *settings: str) -> object:
    return load_config("demo", [f"data.path={path}", *settings])


def test_what_a_config_reads_is_prepared(known: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    prepare_missing(config("data/small"), ask=False)
    assert Manifest.load(Path("data/small")).vocab_size == 270
    assert "$ gptlab data prepare small --out data/small\n" in capsys.readouterr().err
    before = Path("data/small/dataset.json").stat().st_mtime_ns
    prepare_missing(config("data/small"), ask=False)  # it is there
    assert Path("data/small/dataset.json").stat().st_mtime_ns == before
    prepare_missing(config("data/unknown"), ask=False)  # whoever opens it says what to do
    assert not Path("data/unknown").exists()


def test_of_a_large_set_a_run_takes_what_it_needs(known: dict[str, Path]) -> None:
    for tokens, shards in (("1M", 1), ("250M", 3), ("20B", None)):
        prepare_missing(config(f"for-{tokens}/large", f"train.tokens={tokens}"), ask=False)
        assert Manifest.load(Path(f"for-{tokens}/large")).options["num_shards"] == shards


def test_it_is_asked_in_a_terminal(known: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, there in (("n", False), ("y", True)):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{answer}\n"))
        prepare_missing(config("data/small"), ask=True)
        assert Path("data/small").exists() == there


def test_a_small_trial_leaves_text_to_train_on(known: dict[str, Path]) -> None:
    """The validation of a preset takes a shard at most; the rest is trained on."""
    prepare(preset="streamed", shard_size="2000", num_shards=2)
    splits = Manifest.load(Path("data/streamed")).splits
    assert splits["validation"].tokens <= 2000
    assert 3000 < splits["train"].tokens <= 4000


def test_what_is_missing_names_the_command_that_makes_it(tmp_path: Path) -> None:
    for name, mend in (
        ("shakespeare-char", "make it with: gptlab data prepare shakespeare-char\n"),
        ("books-xs", "make one with: gptlab data prepare --input FILES --tokenizer NAME --out data/books\n"),
    ):
        done = gptlab("train", name, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr.endswith(mend)) == (2, True), done.stderr
    with pytest.raises(
        DataError, match=r"nothing is there\); make it with: gptlab data prepare stdlib --out x/stdlib$"
    ):
        load_manifest(tmp_path.relative_to(tmp_path) / "x/stdlib")


def test_every_config_names_data_that_can_be_had_or_says_how() -> None:
    """A preset's, or commands in the comment at its top."""
    for name, file in presets().items():
        head = file.read_text(encoding="utf-8").partition("\ndata:")[0]
        paths = [
            line.split()[1] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("  path: ")
        ]
        for path in paths:
            assert Path(path).name in preset_names() or "gptlab data prepare" in head, name


def test_a_preset_with_a_tokenizer_of_its_own_does_not_take_that_of_the_one_it_stands_on() -> None:
    """tinystories-2k stands on tinystories-v2, whose tokens are GPT-2's."""
    for name, size in {"tinystories-2k": 2048, "tinystories-32k": 32_000, "fineweb-edu-32k": 32_000}.items():
        known = load_preset(name)
        assert (known.tokenizer, known.vocab_size) == (None, size)
    for name in preset_names():
        known = load_preset(name)
        assert sum(way is not None for way in (known.tokenizer, known.vocab_size, known.train_tokenizer)) == 1, name


def test_two_tokenizers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("inputs: [a.txt]\ntokenizer: gpt2\nvocab_size: 512\n")
    with pytest.raises(DataError, match="at most one of tokenizer, train_tokenizer, vocab_size"):
        load_preset(str(tmp_path / "mine.yaml"))
