"""Who is at work on a dataset, and on which of its videos: locks that die with their holders."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

import xxhash

from featstore.errors import StoreError, StoreLocked, StoreNotFound
from featstore.store.layout import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK_FILE = "ingest.lock"
FLIGHT_FILE = "flight.lock"
WRITE_FILE = "write.lock"
_MAX_NOTE_BYTES = 4096
# struct flock on 64-bit Linux: type, whence, start, length, pid (0, as such locks want it), padding to 8 bytes.
_FLOCK = "hhqqi0q"


@contextlib.contextmanager
def ingest_lock(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the ingest lock of the dataset in `folder`; raise StoreLocked, which names the holder, after `wait` seconds.

    One ingest at a time makes a video's features once. Single commits need no lock of ours: LMDB orders them.
    """
    path, deadline = folder / LOCK_FILE, time.monotonic() + wait

    def lock(fd: int) -> None:
        while _is_current(fd, path):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() >= deadline:
                holder = _describe(os.pread(fd, _MAX_NOTE_BYTES, 0))
                raise StoreLocked(
                    f"another process is at work on {folder}{holder}; wait for it to end, or stop it"
                )
            time.sleep(0.05)

    fd = _hold(path, lock)
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        with contextlib.suppress(OSError):  # on a full disk nobody is named
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(note).encode(), 0)
        yield
    finally:
        _close(fd)


@contextlib.contextmanager
def flight_lock(folder: Path, key: bytes) -> Iterator[None]:
    """Hold the right to make the record called `key` in the dataset in `folder`, waiting for whoever holds it.

    A single flight: of all processes, and threads, that miss one video at once, one makes its features; the others wait
    here and, once inside, look the video up again. Other keys are not waited for: each key is one byte of the file
    `flight.lock`, far beyond its end, locked on an open file description (fcntl's F_OFD_SETLKW). Nothing is ever
    written, and a lock is gone with its holder, SIGKILL included.
    Systems without such locks lock the whole file, one video at a time.

    Raises StoreNotFound where there is no such folder, StoreError where the file cannot be locked.
    """
    byte = xxhash.xxh3_64_intdigest(key) >> 2  # within what off_t can say
    fd = _hold(folder / FLIGHT_FILE, lambda fd: _lock_byte(fd, byte), remake=True)
    try:
        yield
    finally:
        _close(fd)


class WriteLock:
    """The right to write into a dataset's file, and a note in which each writer says how it left the file.

    It stands before LMDB's own lock, so that the note is never older than the file that the next writer finds. Gone
    with its holder, SIGKILL included. Waits for whoever holds it; a signal ends the wait.
    """

    def __init__(self, folder: Path) -> None:
        """Wait for the lock of the dataset in `folder`; raise StoreNotFound where there is none."""
        self._fd = -1
        self._fd = _hold(
            folder / WRITE_FILE, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX), readable=True
        )

    def read(self) -> bytes:
        """Return the note of the last writer."""
        return os.pread(self._fd, _MAX_NOTE_BYTES, 0)

    def write(self, note: bytes) -> None:
        """Leave a note; nothing happens where the file is another user's, or the disk is full."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, note, 0)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _close(fd)

    def __del__(self) -> None:
        """Let go with the last reference."""
        self.release()


_held: set[int] = set()  # descriptors, from before they are locked


def _let_go_in_child() -> None:
    # A forked child would hold the locks for as long as it lives, whatever its parent does.
    while _held:
        os.close(_held.pop())


def _close(fd: int) -> None:
    if fd in _held:  # a forked child has closed it already
        _held.remove(fd)
        os.close(fd)


os.register_at_fork(after_in_child=_let_go_in_child)


def _hold(
    path: Path, lock: Callable[[int], None], *, readable: bool = False, remake: bool = False
) -> int:
    """Return a descriptor of the lock file at `path`, locked by `lock`, once it is the file that stands there.

    The folder may be removed or replaced while we wait: then the lock held is nobody's, and the new file's is taken.
    readable: a file that may not be written is locked all the same. remake: make the folder where it was removed.
    """
    while True:
        fd = _open(path, readable=readable)
        _held.add(fd)
        try:
            lock(fd)
            if _is_current(fd, path):
                held, fd = fd, -1
                return held
        except OSError as exc:
            raise StoreError(f"{path} cannot be locked: {exc.strerror}") from exc
        finally:
            if fd >= 0:
                _close(fd)
        if remake:
            make_folder(path.parent)


def _lock_byte(fd: int, offset: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLKW"):
        lock = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, lock)
    else:
        fcntl.flock(fd, fcntl.LOCK_EX)


def _open(path: Path, *, readable: bool = False) -> int:
    """Open a lock file, making it where it is not there; `readable`: for reading where it may not be written."""
    # A link in a folder that came from elsewhere would have us write through it.
    flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            return os.open(path, os.O_RDWR | flags, 0o666)
        except PermissionError:
            if not readable:
                raise
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise StoreNotFound(
            f"there is no dataset in {path.parent}; make it with featstore ingest"
        ) from exc
    except OSError as exc:
        raise StoreError(f"{path} cannot be locked: {exc.strerror}") from exc


def _is_current(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _describe(note: bytes) -> str:
    try:
        fields = json.loads(note)
        return f" (process {fields['pid']} on {fields['host']}, since {fields['since']})"
    except (ValueError, KeyError, TypeError):
        return ""
