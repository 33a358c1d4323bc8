"""A training that is stopped and goes on gives the tokenizer that it gives in one piece, to the bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab import console
from gptlab.errors import BusyError, DataError
from gptlab.tokenizer import Tokenizer, grow_bpe, journal, load_tokenizer, train_bpe
from gptlab.tokenizer.journal import kept_journal

TEXTS = [
    f"the {a}{b} sat on the {c}{a} mat, and {b}{c}{c} did not. " * 3 for a in "abcd" for b in "efgh" for c in "ijkl"
]


class Stop(BaseException):
    """What a signal raises."""


def stopping_after(count: int) -> Iterator[str]:
    for number, text in enumerate(TEXTS):
        if number == count:
            raise Stop
        yield text


def unread() -> Iterator[str]:
    yield from ()
    raise AssertionError("the text was read again")


@pytest.fixture(autouse=True)
def written_at_every_occasion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(journal, "_SHARE", 0)
    monkeypatch.setattr("gptlab.tokenizer.training._SHOWN_EVERY", 0.0)


def stopped_at(number: int, monkeypatch: pytest.MonkeyPatch, training: Callable[[], object]) -> None:
    """Call `training`, and stop it when the journal is to be written after so many merges."""
    keep = journal.Journal.keep

    def stopping(self: journal.Journal, *, at_once: bool = False) -> None:
        keep(self, at_once=at_once)
        if len(self.merges) == number and not at_once:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "keep", stopping)
        with pytest.raises(Stop):
            training()


def trained(folder: Path, texts: Iterator[str] | list[str], size: int = 330) -> Tokenizer:
    with kept_journal(folder, ["text", 1], "t") as kept:
        return train_bpe(texts, [size], name="t", journal=kept)[0]


def test_stopped_while_counting_and_while_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole,) = train_bpe(TEXTS, [330], name="t")
    folder = tmp_path / ".t.partial"
    for place in (1, 30):
        with pytest.raises(Stop):
            trained(folder, stopping_after(place))
        assert f"kept in {folder}: the same command goes on from there" in capsys.readouterr().err
    for merges in (1, 17, 40):
        texts = iter(TEXTS) if merges == 1 else unread()
        stopped_at(merges, monkeypatch, lambda texts=texts: trained(folder, texts))  # type: ignore[misc]
    said = capsys.readouterr().err
    assert "going on where it was stopped: 0.0 MB of text are counted, the rest of the text is to be counted" in said
    assert "17 merges are made" in said
    assert trained(folder, unread()).hash == whole.hash
    assert list(tmp_path.iterdir()) == []


def test_another_size_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at(40, monkeypatch, lambda: trained(tmp_path / "p", iter(TEXTS)))
    assert trained(tmp_path / "p", unread(), 280).hash == train_bpe(TEXTS, [280], name="t")[0].hash


def test_growing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base,) = train_bpe(TEXTS, [280], name="b", special_tokens=["<a>"])
    options: dict[str, Any] = {"name": "g", "special_tokens": ["<b>"]}
    (whole,) = grow_bpe(base, TEXTS, [340], **options)

    def grown(texts: Iterator[str]) -> Tokenizer:
        with kept_journal(tmp_path / "p", "x", "g") as kept:
            return grow_bpe(base, texts, [340], journal=kept, **options)[0]

    stopped_at(20, monkeypatch, lambda: grown(iter(TEXTS)))
    assert grown(unread()).hash == whole.hash


@pytest.mark.parametrize("other", ["text", "pattern", "base"])
def test_another_training_starts_over_and_says_so(
    tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stop):
        trained(tmp_path / "p", stopping_after(30))
    base = train_bpe(TEXTS, [270], name="b")[0]
    with kept_journal(tmp_path / "p", ["text", 2 if other == "text" else 1], "t") as kept:
        if other == "base":
            (made,) = grow_bpe(base, TEXTS, [330], name="t", journal=kept)
            assert made.hash == grow_bpe(base, TEXTS, [330], name="t")[0].hash
        else:
            pattern = "gpt2" if other == "pattern" else "gpt4"
            (made,) = train_bpe(TEXTS, [330], name="t", pattern=pattern, journal=kept)
            assert made.hash == train_bpe(TEXTS, [330], name="t", pattern=pattern)[0].hash
    assert "is of another text, pattern or base, so training starts over" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["counts.npz", "merges.json"])
@pytest.mark.parametrize("how", ["cut", "zeros", "edited", "empty"])
def test_a_damaged_journal_starts_over_and_says_so(
    tmp_path: Path, file: str, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(40, monkeypatch, lambda: trained(tmp_path / "p", iter(TEXTS)))
    path = tmp_path / "p" / file
    data = path.read_bytes()
    if how == "edited" and file == "merges.json":
        path.write_bytes(data.replace(b"[104, 101]", b"[104, 102]"))
        assert path.read_bytes() != data
    elif how == "edited":
        with np.load(path) as held:
            arrays = dict(held)
        np.savez(path, **arrays | {"lengths": arrays["lengths"] + 1})
    else:
        middle = len(data) // 2
        path.write_bytes({"cut": data[:middle], "zeros": data[:middle] + bytes(len(data) - middle), "empty": b""}[how])
    assert trained(tmp_path / "p", iter(TEXTS)).hash == train_bpe(TEXTS, [330], name="t")[0].hash
    assert "is damaged, so training starts over" in capsys.readouterr().err


def test_a_mistake_keeps_what_was_counted_and_one_process_trains(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"largest vocabulary it gives is"):
        trained(tmp_path / "p", iter(TEXTS), 5000)
    assert trained(tmp_path / "p", unread()).hash == train_bpe(TEXTS, [330], name="t")[0].hash
    folder = tmp_path / "p"
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "p.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(BusyError, match="t: another process is training this tokenizer"):
        trained(folder, iter(TEXTS))
    holder.communicate(b"\n")


def test_merges_are_shown_as_they_come(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal: a line now and then."""
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    train_bpe([*TEXTS, "中中中 " * 3000], [330], name="t")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("merging '")]
    shape = r"merging '.+' \+ '.+' \([\d,]+ times\): \d+ of 73 merges \(\d+%\), \d+ s"
    assert all(re.fullmatch(shape, line) for line in told)
    assert any(line.startswith("merging 't' + 'he' (") for line in told)
    assert any(r"\xe4" in line for line in told)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_is_stopped_and_given_again(tmp_path: Path, test_data: Path, how: signal.Signals) -> None:
    text = str(test_data / "gutenberg/train-00000-of-00004.parquet")
    often = "import gptlab.tokenizer.journal as j; j._SAVE_SECONDS = 0.2; from gptlab.__main__ import main; main()"
    command = [sys.executable, "-c", often, "tokenizer", "train", "--input", text, "--vocab-size", "2000"]
    options: dict[str, Any] = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    # A suite that runs in the background inherits that interrupts are ignored; a terminal's command does not.
    heard = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    started = subprocess.Popen([*command, "--name", "t", "--workers", "2"], **heard, **options)
    kept = tmp_path / "tokenizers/.t.partial/counts.npz"
    while started.poll() is None and not kept.exists():
        time.sleep(0.05)
    assert started.poll() is None, started.communicate()
    (started.kill if how == signal.SIGKILL else lambda: os.killpg(started.pid, how))()
    _, told = started.communicate(timeout=60)
    assert started.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    if how != signal.SIGKILL:
        assert "tokenizers/.t.partial: the same command goes on from there" in told
        assert "Traceback" not in told
    for name in ("t", "whole"):
        done = subprocess.run([*command, "--name", name], **options, check=True)
        assert ("going on where it was stopped" in done.stderr) == (name == "t")
    again, whole = (load_tokenizer(name, root=tmp_path / "tokenizers") for name in ("t", "whole"))
    assert again.hash == whole.hash
    assert sorted(path.name for path in (tmp_path / "tokenizers").iterdir()) == ["t", "whole"]
