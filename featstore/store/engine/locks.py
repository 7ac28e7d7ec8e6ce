"""Who is at work on a dataset, and on which of its videos: locks on files that die with their holders.

A lock belongs to an open file, and so to each process that has a copy of its descriptor. A forked child has copies of
all: it closes those of lock files at once, locked or not, or it would hold for its whole life what a thread of its
parent was given later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from featstore.errors import StoreError, StoreNotFound
from featstore.store.engine.settings import FLOCK
from featstore.store.engine.waiting import MAX_NOTE_BYTES, Patience
from featstore.store.paths import (
    FLIGHT_LOCK_FILE,
    INGEST_LOCK_FILE,
    WRITE_LOCK_FILE,
    because,
    compacting_path,
    make_folder,
    sync_dataset,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Commits take a second or two; to compact 300 GB takes minutes.
WRITE_WAIT = 600.0
# A video's decoding may take 600 s, and its commit may wait for WRITE_WAIT.
FLIGHT_WAIT = 1800.0
SAY_AFTER = 1.0
SAY_FLIGHT_AFTER = (
    30.0  # to decode and encode takes seconds, and each of many videos may be waited for
)
_PERMISSION = (
    "to write into a dataset takes write permission on its folder and the files in it, which users of one group have "
    "under umask 002 in a folder with the group's setgid bit (chmod g+s)"
)


@contextlib.contextmanager
def ingest_lock(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the right to ingest into the dataset in `folder`, or to change it as a whole.

    One ingest at a time makes a video's features once. Single commits need no lock of ours: LMDB orders them. What a
    compaction that was killed left is removed first.

    Args:
        folder: The dataset's folder, which exists.
        wait: Seconds to wait for another holder.

    Raises:
        StoreLocked: Another process still holds it; the message names the process.
        StoreNotFound: There is no such folder.
        StoreError: The file cannot be locked, or the disk fails.
    """
    file = _hold(folder / INGEST_LOCK_FILE, _lock_whole, "at work on", wait, SAY_AFTER)
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        file.write(json.dumps(note).encode())  # on a full disk nobody is named
        clear_leftovers(folder)
        yield
    finally:
        file.close()


@contextlib.contextmanager
def single_flight_lock(folder: Path, key: bytes) -> Iterator[None]:
    """Hold the right to make the features of one video, waiting for the process or thread that holds it.

    Of all that miss one video at once, one makes its features; the others wait here and, once inside, look the video up
    again. Each key is one byte of the file `flight.lock`, far beyond its end, locked on an open file description
    (fcntl's F_OFD_SETLK), so other keys are not waited for. Nothing is ever written, and a lock is gone with its
    holder, SIGKILL included; a child that is forked inside does not hold it. Systems without such locks lock the whole
    file, one video at a time.

    Args:
        folder: The dataset's folder; made again if it is removed while waiting.
        key: What names the video and its feature set.

    Raises:
        StoreLocked: Another holder is still at work after `FLIGHT_WAIT` seconds.
        StoreNotFound: There is no such folder.
        StoreError: The file cannot be locked.
    """
    byte = xxhash.xxh3_64_intdigest(key) >> 2  # within what off_t can say
    file = _hold(
        folder / FLIGHT_LOCK_FILE,
        lambda fd: _lock_byte(fd, byte),
        "making the features of a video for",
        FLIGHT_WAIT,
        SAY_FLIGHT_AFTER,
        remake=True,
    )
    try:
        yield
    finally:
        file.close()


def write_lock(folder: Path) -> LockFile:
    """Take the right to write into a dataset's file, and the note in which each writer says how it left the file.

    It is taken before LMDB's own lock, so that the note is never older than the file that the next writer finds. Waits
    up to `WRITE_WAIT` seconds for another holder; a signal ends the wait. Raises as `single_flight_lock` does.
    """
    path = folder / WRITE_LOCK_FILE
    return _hold(path, _lock_whole, "writing into", WRITE_WAIT, SAY_AFTER, readable=True)


def clear_leftovers(path: Path) -> None:
    """Remove what a compaction of the dataset in `path` left; only for the holder of its ingest lock.

    Raises StoreError if the disk fails; nothing is removed then.
    """
    path = Path(os.path.realpath(path))
    aside = compacting_path(path)
    if aside.exists():
        sync_dataset(
            path
        )  # after a power loss the old folder, were it emptied first, could be back
        shutil.rmtree(aside, ignore_errors=True)


class LockFile:
    """A lock file, open until `close` or its last reference, or in a forked child until it is forked."""

    fd = -1

    def __init__(self, path: Path, *, readable: bool = False) -> None:
        """Open it, making it if it is missing; `readable`: for reading if it may not be written."""
        with _descriptors:  # no fork between its opening and its place in the list
            self.fd = _open(path, readable=readable)
            _open_files.add(self)

    def read(self) -> bytes:
        """Return the note in it, while it is open."""
        return os.pread(self.fd, MAX_NOTE_BYTES, 0)

    def write(self, note: bytes) -> None:
        """Put a note into it; does nothing if that fails."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, note, 0)

    def close(self) -> None:
        """Let go of the lock and the file; a second call does nothing."""
        with _descriptors:
            fd, self.fd = self.fd, -1
            _open_files.discard(self)
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        """Close it."""
        self.close()


_open_files: weakref.WeakSet[LockFile] = weakref.WeakSet()
_descriptors = threading.RLock()


def _let_go_in_child() -> None:
    for file in list(_open_files):
        file.close()
    _descriptors.release()


os.register_at_fork(
    before=_descriptors.acquire,
    after_in_parent=_descriptors.release,
    after_in_child=_let_go_in_child,
)


def _hold(
    path: Path,
    lock: Callable[[int], None],
    doing: str,
    limit: float,
    say_after: float,
    *,
    readable: bool = False,
    remake: bool = False,
) -> LockFile:
    """Return the lock file at `path`, locked by `lock`, once it is the file of that name.

    The folder may be removed or replaced while we wait: then the lock held is nobody's, and the new file's is taken.

    Args:
        path: The lock file; made if it is missing.
        lock: Locks an open file, or raises BlockingIOError.
        doing: What a holder does.
        limit: Seconds to wait for one before StoreLocked.
        say_after: Seconds after which it is said who is waited for.
        readable: Lock a file that may not be written all the same.
        remake: Make the folder again if it was removed.
    """
    patience = None
    while True:
        file = LockFile(path, readable=readable)
        try:
            while _is_current(file.fd, path):
                try:
                    lock(file.fd)
                except BlockingIOError:
                    patience = patience or Patience(doing, limit, say_after)
                    patience.wait(file.fd, path)
                else:
                    if _is_current(file.fd, path):
                        return file
        except BaseException as exc:
            file.close()
            if isinstance(exc, OSError) and not isinstance(exc, StoreError):
                raise StoreError(f"{path} cannot be locked: {because(exc)}") from exc
            raise
        file.close()
        if remake:
            make_folder(path.parent)


def _lock_whole(fd: int) -> None:
    """Lock the open file; raise BlockingIOError if another holds it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_byte(fd: int, offset: int) -> None:
    """Lock one byte of the open file, or all of it on systems that cannot; raise BlockingIOError."""
    if hasattr(fcntl, "F_OFD_SETLK"):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    else:
        _lock_whole(fd)


def _open(path: Path, *, readable: bool) -> int:
    """Open a lock file, making it if it is missing; `readable`: for reading if it may not be written."""
    # A link in a folder that came from elsewhere would have us write through it, a FIFO wait for ever.
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except PermissionError:
            if not readable:
                raise
            fd = os.open(path, os.O_RDONLY | flags)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise StoreNotFound(
            f"there is no dataset in {path.parent}; make it with featstore ingest"
        ) from exc
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EISDIR):
            raise _no_file(path) from exc
        remedy = _PERMISSION if isinstance(exc, PermissionError) else ""
        raise StoreError(f"{path} cannot be locked: {because(exc, remedy)}") from exc
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise _no_file(path)
    # To open a file for reading is enough to lock it: who may not write is not to stop those who may.
    wanted = stat.S_IMODE(mode) & ~(0o044 & ~((mode & 0o022) << 1))
    if wanted != stat.S_IMODE(mode):
        with contextlib.suppress(OSError):  # another user's
            os.fchmod(fd, wanted)
    return fd


def _no_file(path: Path) -> StoreError:
    return StoreError(f"{path} cannot be locked: it is not a file; remove it")


def _is_current(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)
