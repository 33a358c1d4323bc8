"""Writing that leaves the old content or the new, whatever happens in between."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TINY, make_data

from gptlab import files
from gptlab.errors import GptlabError
from gptlab.files import atomic_folder, exclusive, settle, sha256_file, write_atomic
from gptlab.systems.signals import Terminated


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_write_atomic_makes_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "first é")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert everything(tmp_path) == {"a", "a/b.txt"}
    assert path.stat().st_mode & 0o777 == 0o644
    assert sha256_file(path) == hashlib.sha256(b"second").hexdigest()


@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_write_atomic_keeps_the_old_content_on_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert everything(tmp_path) == {"file"}


def test_a_kill_leaves_nothing_under_the_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process cleans nothing up: what it leaves must not look like the file, or be found by its pattern."""
    monkeypatch.setattr(os, "replace", lambda *_: os._exit(9))
    if (child := os.fork()) == 0:
        write_atomic(tmp_path / "metrics.jsonl", "half")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = everything(tmp_path)
    assert left.startswith(".metrics.jsonl.")
    assert left.endswith(".tmp")
    assert not list(tmp_path.glob("*.jsonl"))


def test_atomic_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "x" / "set") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("new")
        assert not (tmp_path / "x" / "set").exists()
        assert folder.parent == tmp_path / "x"
        assert folder.name.startswith(".set.")
    assert everything(tmp_path) == {"x", "x/set", "x/set/deep", "x/set/deep/file"}


def test_atomic_folder_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "set"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("old")

    def give_up() -> None:
        with atomic_folder(target) as folder:
            (folder / "new").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert everything(tmp_path) == {"set", "set/old"}
    with atomic_folder(target) as folder:
        (folder / "new").write_text("new")
    assert everything(tmp_path) == {"set", "set/new"}

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fsync_file", full)
    with pytest.raises(OSError, match="No space"), atomic_folder(target) as folder:
        (folder / "newer").write_text("newer")
    assert everything(tmp_path) == {"set", "set/new"}


def test_atomic_folder_puts_the_old_one_back_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "set"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("old")
    rename = os.replace

    def failing(source: Path, destination: Path) -> None:
        if Path(destination) == target and str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(target) as folder:
        (folder / "new").write_text("new")
    assert everything(tmp_path) == {"set", "set/old"}


# ---------------------------------------------------------------- a kill while a folder is replaced


def killed_at(rename: int, act: Callable[[], object]) -> None:
    """`act` in a process that is killed in the place of its `rename`-th rename (from 1)."""
    if (child := os.fork()) == 0:
        rename_really, count = os.replace, 0

        def replace(source: str | Path, target: str | Path) -> None:
            nonlocal count
            count += 1
            if count == rename:
                os.kill(os.getpid(), signal.SIGKILL)
            rename_really(source, target)

        os.replace = replace
        try:
            act()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def written(folder: Path, content: str) -> None:
    with atomic_folder(folder) as aside:
        (aside / "file").write_text(content)


@pytest.mark.parametrize(("rename", "stands"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_kill_while_a_folder_is_replaced_is_settled(
    rename: int, stands: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "set"
    written(target, "old")
    killed_at(rename, lambda: written(target, "new"))
    assert target.exists() == (rename < 3)  # what the kill leaves
    settle(target)
    assert (target / "file").read_text() == stands
    assert ("was being replaced" in capsys.readouterr().err) == (rename == 3)
    written(target, "newer")
    assert (target / "file").read_text() == "newer"
    assert [left for left in everything(tmp_path) if left.endswith((".old", ".new"))] == []


def test_what_was_moved_aside_comes_back_where_nothing_follows_it(tmp_path: Path) -> None:
    written(tmp_path / ".set.old", "old")
    settle(tmp_path / "set")
    assert (tmp_path / "set" / "file").read_text() == "old"
    settle(tmp_path / "nothing")
    assert everything(tmp_path) == {"set", "set/file"}


def test_a_reader_that_is_faster_than_the_writer_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "set"
    written(target, "old")
    rename = os.replace

    def replace(source: Path, destination: Path) -> None:
        rename(source, destination)
        if str(destination).endswith(".old"):  # now nothing stands there
            monkeypatch.setattr(os, "replace", rename)
            settle(target)

    monkeypatch.setattr(os, "replace", replace)
    written(target, "new")
    assert (target / "file").read_text() == "new"
    assert everything(tmp_path) == {"set", "set/file"}


def test_a_data_set_and_a_tokenizer_that_a_kill_left_in_between_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlab.data import info, prepare
    from gptlab.tokenizer import byte_tokenizer, load_tokenizer

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("an old text " * 200)
    Path("b.txt").write_text("a new text " * 300)
    prepare(["a.txt"], Path("set"), tokenizer="byte", workers=1)
    renames = 0
    rename_really = os.replace

    def count(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        rename_really(source, target)

    with monkeypatch.context() as patch:  # how many renames there are before the last, of the data set itself
        patch.setattr(os, "replace", count)
        prepare(["a.txt"], Path("set"), tokenizer="byte", workers=1, force=True)
    killed_at(renames, lambda: prepare(["b.txt"], Path("set"), tokenizer="byte", workers=1, force=True))
    assert not Path("set").exists()
    assert info("set").splits["train"].bytes == Path("b.txt").stat().st_size
    prepare(["a.txt"], Path("set"), tokenizer="byte", workers=1, force=True)  # no lock is in the way

    old, new = (byte_tokenizer(name="mine", special_tokens=special) for special in ([], ["<a>"]))
    old.save(Path("tokenizers/mine"))
    killed_at(3, lambda: new.save(Path("tokenizers/mine")))
    assert not Path("tokenizers/mine").exists()
    assert load_tokenizer("mine").hash == new.hash


# ---------------------------------------------------------------- locks


def locks(folder: Path) -> list[Path]:
    return [*folder.rglob(".*.lock")]


def test_a_lock_ends_with_whatever_ends(tmp_path: Path) -> None:
    path, busy = tmp_path / ".set.lock", GptlabError("busy")
    with exclusive(path, busy):
        with pytest.raises(GptlabError, match="busy"), exclusive(path, busy):
            pass
        assert locks(tmp_path) == [path]  # a refusal takes nothing from who holds it
    assert locks(tmp_path) == []
    for error in (ValueError, KeyboardInterrupt, SystemExit, Terminated):
        with pytest.raises(error), exclusive(path, busy):
            raise error(signal.SIGTERM)
        assert locks(tmp_path) == []
    if (child := os.fork()) == 0:
        with exclusive(path, busy):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert locks(tmp_path) == [path]
    with exclusive(path, busy):
        pass
    assert locks(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_lets_go(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it prepares, and while it builds what it would train: before the loop, which saves."""
    from gptlab.cli import main
    from gptlab.data.preparation import DatasetWriter

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a text " * 300)
    given = signal.signal(number, signal.SIG_DFL)  # under nohup a hang-up is ignored
    before = signal.getsignal(number)
    held: list[Path] = []

    def told(*_: object) -> None:
        held.extend(locks(tmp_path))
        signal.raise_signal(number)

    monkeypatch.setattr(DatasetWriter, "run", told)
    arguments = ["data", "prepare", "--input", "a.txt", "--tokenizer", "byte", "--out", "set", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 128 + number
    assert [path.name for path in held] == [".set.lock"]
    assert everything(tmp_path) == {"a.txt"}
    assert signal.getsignal(number) == before
    signal.signal(number, given)


def test_training_that_is_told_to_end_while_it_is_built_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlab.cli import main
    from gptlab.training import setup

    make_data(tmp_path)
    (tmp_path / "tiny.yaml").write_text(f"name: tiny\ndata: {{path: {tmp_path}/data}}\n{TINY}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup, "smoke_test_components", lambda *_: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sys, "argv", ["gptlab", "train", "tiny.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 128 + signal.SIGTERM
    assert locks(tmp_path) == []
    assert not [*tmp_path.glob("runs/*")]
