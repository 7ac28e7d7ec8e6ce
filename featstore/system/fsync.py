"""What outlives a power loss: a file's content is on disk once it is synced, its name once its folder is."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

from featstore.system import libc

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYNC_FILE_RANGE_WRITE = 2
_EARLY_BYTES = 8 << 20
_EARLY_SECONDS = 0.002  # in which a fast disk writes some MiB
DRAFT = ".writing-"  # how the name of a file begins that is being written
# The answers of file systems that cannot sync a folder, and of a folder that may be entered but not read.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def sync_dir(path: str | os.PathLike[str]) -> None:
    """Make durable which names the folder `path` holds; raise OSError if the disk fails.

    Does nothing on file systems that cannot do that.
    """
    try:
        _sync(path, os.O_DIRECTORY)
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise


def sync_file(path: str | os.PathLike[str]) -> None:
    """Make durable what the file `path` holds; raise OSError."""
    _sync(path, 0)


@contextlib.contextmanager
def written_early(fd: int, size: int) -> Iterator[None]:
    """Have the disk write what the block puts into a file while it still does, so that its sync finds little left.

    This makes nothing durable: the kernel may write what is not synced at any time, and is asked to do it now. Where it
    fails, each descriptor that syncs the file is told so.

    Args:
        fd: The file.
        size: Bytes that the block writes; nothing is done for few.
    """
    done = threading.Event()

    def ask() -> None:
        while not done.wait(_EARLY_SECONDS):
            libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)  # to the end, without waiting

    asking = threading.Thread(target=ask, name="write-early", daemon=True)
    if libc.sync_file_range is None or size < _EARLY_BYTES:
        yield
        return
    try:
        with contextlib.suppress(RuntimeError):  # the process may have no more threads
            asking.start()
        yield
    finally:
        done.set()
        if asking.ident is not None:
            asking.join()  # the descriptor may be closed next


def make_durable_folder(path: Path) -> None:
    """Make the folder `path` and those above it that are missing, their names durable; raise OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_dir(folder.parent)


@contextlib.contextmanager
def write_atomically(
    target: str | os.PathLike[str], *, draft: str = DRAFT, replace: bool = True
) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `target` when the block ends, and leaves nothing if it raises.

    Others see the old file or the new one, whole, also after a power loss. The umask decides who may read it, unlike
    tempfile's, which only their maker may read, also once they have taken the place of a file that others read.

    Args:
        target: The file to write, in a folder that exists.
        draft: How the name begins that the file has until then, beside `target`.
        replace: Take the place of a file that is there. Without, it is a link that is made, which two cannot both make.

    Raises:
        FileExistsError: There is a file, which is not to be replaced.
        OSError: The file cannot be written.
    """
    folder = Path(target).absolute().parent
    written = folder / f"{draft}{secrets.token_hex(8)}"
    fd = os.open(written, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
            # Before it is closed: the one that writes it may hold a lock on it.
            (os.replace if replace else os.link)(written, target)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it has its name
            os.unlink(written)
    sync_dir(folder)


@contextlib.contextmanager
def open_target(target: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file for what a user wants to have in `target`: as `write_atomically`, but a device or a pipe is written.

    Raises:
        OSError: It cannot be written.
    """
    if os.path.isfile(target) or not os.path.exists(target):
        with write_atomically(target) as file:
            yield file
    else:
        with open(target, "wb", buffering=0) as device:
            yield device


def _sync(path: str | os.PathLike[str], flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
