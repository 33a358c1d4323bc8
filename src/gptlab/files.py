"""Writing files so that a crash at any moment leaves either the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptlab.console import say
from gptlab.errors import GptlabError

MAX_NAME_BYTES = 200  # a disk takes 255, and what is written aside has a longer name (`.NAME.partial`)

_RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS}
_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


def check_place(path: Path, option: str) -> None:
    """Refuse, before any work, a place where nothing could be written in the end. `option` (`--out`) named it.

    Raises GptlabError for a name with control characters or of more than `MAX_NAME_BYTES`, a link that leads nowhere, a
    file where a folder has to be on the way, and a folder that may not be written to.
    """
    shown = ascii(str(path))[1:-1] if not str(path).isprintable() else str(path)
    if shown != str(path):
        raise GptlabError(f"{option} {shown}: a name must not hold line breaks or other control characters")
    for part in path.parts:
        if (size := len(os.fsencode(part))) > MAX_NAME_BYTES:
            raise GptlabError(f"{option} {part[:40]}…: a name of {size} bytes; {MAX_NAME_BYTES} at most")
    try:
        if path.is_symlink() and not path.exists():
            raise GptlabError(f"{option} {path}: is a link to {os.readlink(path)}, where nothing is; remove it")
        parents = path.absolute().parents
        above = next((parent for parent in parents if parent.exists() or parent.is_symlink()), path)
        if not above.is_dir():
            raise GptlabError(f"{option} {path}: {above} is no folder; name another place")
        if not os.access(above, os.W_OK | os.X_OK):
            raise GptlabError(f"{option} {path}: {above} may not be written to; name another place")
    except OSError as error:
        raise GptlabError(f"{option} {shown[:200]}: no such place ({error.strerror}); name another") from None


def what_is_there(path: Path) -> str:
    """What stands at `path`, where something else is needed: a folder, a file, nothing."""
    return "it is a folder" if path.is_dir() else "it is a file" if path.exists() else "nothing is there"


def not_a_folder(path: Path, what: str, holds: str = "") -> str:
    """That `path` is not `what` (a run folder, a data set, …), and why: another folder, a file, nothing.

    `holds`: the file that makes a folder one. Where `path` is a file in such a folder, that one is named.
    """
    why = what_is_there(path)
    if path.is_dir():
        why = f"it holds no {holds}"
    elif holds and path.exists():
        near = path.parent != Path() and (path.parent / holds).is_file()
        why += f"; {path.parent}, in which it is, is one" if near else f", and one is a folder that holds {holds}"
    return f"{path} is not {what} ({why})"


def machine_error(error: OSError) -> str | None:
    """One line for an error that the machine is to blame for (rights, a full disk, names); None for any other."""
    if error.errno not in _RIGHTS | _SPACE | _NAMES:
        return None
    where = str(error.filename)[:200] if error.filename else "the output"
    return (
        f"{where}: cannot be read or written ({error.strerror}); check the path, its rights and the space on the disk"
    )


def fsync_directory(folder: Path) -> None:
    """Make a rename inside `folder` durable (POSIX wants the directory itself synced)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`: aside, fsync, rename. Parent folders are made.

    Raises OSError where the disk refuses; `path` then keeps what it held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)  # mkstemp makes files private; these are meant to be shared
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it takes the place of `path`, on any error it disappears.

    An existing folder at `path` is replaced (`replace_folder`), so that `path` is never a mixture of both.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        os.chmod(aside, 0o755)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                fsync_file(file)
        replace_folder(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder `new`, which is whole and synced, in the place of `path`.

    Two folders cannot change places at once: where a process is killed between the two renames, `settle` finishes.
    """
    coming, old = _neighbours(path)
    for left in (coming, old):  # of a kill, after which `path` was whole all the same
        if path.exists() and left.exists():
            shutil.rmtree(left)
    if path.exists():
        try:
            os.replace(new, coming)
            os.replace(path, old)
            os.replace(coming, path)
        except BaseException as error:
            if not path.exists():
                os.replace(old, path)
            if coming.exists():
                os.replace(coming, new)
            if new.exists() or not isinstance(error, FileNotFoundError):
                raise
            # Else a reader found the place empty, and was faster to put it there (`settle`).
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(new, path)
    fsync_directory(path.parent)


def settle(path: Path) -> None:
    """Finish what a kill left half done in the place of the folder `path`; what wants that folder calls this first.

    Where nothing stands there, what should have replaced it does from now on; else the one that was moved aside.
    """
    with contextlib.suppress(OSError):  # no place at all, or another process was faster
        if path.exists() or not any(left.is_dir() for left in _neighbours(path)):
            return
        coming, old = _neighbours(path)
        os.replace(coming if coming.is_dir() else old, path)
        which = "it is back in its place" if not old.is_dir() else "what was to replace it is in its place"
        say(f"{path}: was being replaced when a process was killed; {which}")
        shutil.rmtree(old, ignore_errors=True)


def _neighbours(path: Path) -> tuple[Path, Path]:
    """Where a folder waits that is to replace `path`, and where the one that it replaces."""
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def exclusive(path: Path, refusal: GptlabError) -> Iterator[None]:
    """Hold the lock file `path`, which is made and in the end removed; raise `refusal` where another process holds it.

    The lock is the system's: it ends with the process, however that ends. Windows has no such lock: there, two at once
    are not noticed.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with contextlib.ExitStack() as stack:
        for attempt in range(8):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it between our open and our lock: then we hold what nobody sees.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
            except FileNotFoundError:
                pass
            except BlockingIOError:
                time.sleep(0.02 * attempt)  # `is_held` holds it for an instant
        else:
            raise refusal
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether another process holds the lock file `path` (`exclusive`)."""
    try:
        import fcntl

        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, FileNotFoundError):
        pass
    return False


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Sequence[Path]) -> str:
    """Hex SHA-256 of one file; of several, that of their own, in order."""
    each = [sha256_file(path) for path in paths]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def fsync_file(path: Path) -> None:
    """Make what was written to `path` durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
