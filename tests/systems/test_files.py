"""Writing that leaves the old content or the new, whatever happens in between."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from gptlab import files
from gptlab.files import atomic_folder, sha256_file, write_atomic


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
        if Path(destination) == target and str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(target) as folder:
        (folder / "new").write_text("new")
    assert everything(tmp_path) == {"set", "set/old"}
