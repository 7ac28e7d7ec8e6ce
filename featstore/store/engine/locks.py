"""Who is at work on a dataset, and on which of its videos: locks that die with their holders.

A lock belongs to an open file, and so to whichever process has a copy of its descriptor. A forked child has copies of
all: it closes those of lock files at once, locked or not, or it would hold for its whole life what a thread of its
parent was given later. Nobody waits for ever, or in silence: a holder may be stopped, or no program of ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

import xxhash

from featstore.errors import StoreError, StoreLocked, StoreNotFound, plain_line
from featstore.store.engine.lock_holders import describe_process, find_holder
from featstore.store.paths import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK_FILE = "ingest.lock"
FLIGHT_FILE = "flight.lock"
WRITE_FILE = "write.lock"
# Commits take a second or two; to compact 300 GB takes minutes.
WRITE_WAIT = 600.0
# A video's decoding may take 600 s, and its commit may wait for WRITE_WAIT.
FLIGHT_WAIT = 1800.0
SAY_AFTER = 1.0
SAY_FLIGHT_AFTER = (
    30.0  # to decode and encode takes seconds, and each of many videos may be waited for
)
_MAX_NOTE_BYTES = 4096
_PERMISSION = (
    "; to write into a dataset takes write permission on its folder and the files in it, which users of one group have "
    "under umask 002 in a folder with the group's setgid bit (chmod g+s)"
)
# struct flock on 64-bit Linux: type, whence, start, length, pid (0, as such locks want it), padding to 8 bytes.
_FLOCK = "hhqqi0q"


def tell(sentence: str) -> None:
    """Say on stderr what is waited for; a process whose stderr nobody reads puts another function in its place."""
    with contextlib.suppress(OSError):
        print(f"featstore: {plain_line(sentence)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def ingest_lock(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the ingest lock of the dataset in `folder`; raise StoreLocked, which names the holder, after `wait` seconds.

    One ingest at a time makes a video's features once. Single commits need no lock of ours: LMDB orders them.
    """
    file = _hold(folder / LOCK_FILE, _lock_whole, _Patience("at work on", wait, SAY_AFTER))
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        file.write(json.dumps(note).encode())  # on a full disk nobody is named
        yield
    finally:
        file.close()


@contextlib.contextmanager
def flight_lock(folder: Path, key: bytes) -> Iterator[None]:
    """Hold the right to make the record called `key` in the dataset in `folder`, waiting for the one that holds it.

    A single flight: of all processes, and threads, that miss one video at once, one makes its features; the others wait
    here and, once inside, look the video up again. Other keys are not waited for: each key is one byte of the file
    `flight.lock`, far beyond its end, locked on an open file description (fcntl's F_OFD_SETLK). Nothing is ever
    written, and a lock is gone with its holder, SIGKILL included; a child that is forked inside does not hold it.
    Systems without such locks lock the whole file, one video at a time.

    Raises StoreNotFound where there is no such folder, StoreLocked after FLIGHT_WAIT seconds, StoreError where the file
    cannot be locked.
    """
    byte = xxhash.xxh3_64_intdigest(key) >> 2  # within what off_t can say
    file = _hold(
        folder / FLIGHT_FILE,
        lambda fd: _lock_byte(fd, byte),
        _Patience("making the features of a video for", FLIGHT_WAIT, SAY_FLIGHT_AFTER),
        remake=True,
    )
    try:
        yield
    finally:
        file.close()


class WriteLock:
    """The right to write into a dataset's file, and a note in which each writer says how it left the file.

    It stands before LMDB's own lock, so that the note is never older than the file that the next writer finds. Gone
    with its holder, SIGKILL included. Waits up to WRITE_WAIT seconds for the one that holds it; a signal ends the wait.
    """

    def __init__(self, folder: Path) -> None:
        """Wait for the lock of the dataset in `folder`; raise StoreNotFound where there is none, or StoreLocked."""
        self._file: _LockFile | None = None
        patience = _Patience("writing into", WRITE_WAIT, SAY_AFTER)
        self._file = _hold(folder / WRITE_FILE, _lock_whole, patience, readable=True)

    def read(self) -> bytes:
        """Return the note of the last writer."""
        return self._file.read() if self._file else b""

    def write(self, note: bytes) -> None:
        """Leave a note; nothing happens where the file is another user's, or the disk is full."""
        if self._file:
            self._file.write(note)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._file:
            self._file.close()

    def __del__(self) -> None:
        """Let go with the last reference."""
        self.release()


def make_lock_file(path: Path) -> None:
    """Make the lock file at `path` where it is not there, as the one that locks it would."""
    _LockFile(path).close()


class _LockFile:
    """A lock file, open until `close`, or until this process is forked in the child."""

    def __init__(self, path: Path, *, readable: bool = False) -> None:
        with _descriptors:  # no fork between its opening and its place in the list
            self.fd = _open(path, readable=readable)
            _open_files.add(self)

    def read(self) -> bytes:
        return os.pread(self.fd, _MAX_NOTE_BYTES, 0) if self.fd >= 0 else b""

    def write(self, note: bytes) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, note, 0)

    def close(self) -> None:
        with _descriptors:
            fd, self.fd = self.fd, -1
            _open_files.discard(self)
            if fd >= 0:
                os.close(fd)


_open_files: set[_LockFile] = set()
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


class _Patience:
    """How long a lock is waited for, from now on: who has it is said on the way, and named at the end.

    doing: what its holder is at. limit: seconds until StoreLocked.
    """

    def __init__(self, doing: str, limit: float, say_after: float) -> None:
        self._doing = doing
        self._limit = limit
        self._say_after = say_after
        self._begun = time.monotonic()

    def wait(self, file: _LockFile, path: Path) -> None:
        waited = time.monotonic() - self._begun
        if waited >= self._limit:
            raise StoreLocked(
                f"{_holder(file)} is {self._doing} {path.parent}, and still was after {waited:.0f} s; wait for it to "
                "end, or stop it"
            )
        if waited >= self._say_after:
            self._say_after = self._limit
            tell(f"waiting for {_holder(file)}, {self._doing} {path.parent}")
        # A fiftieth of what was waited: costs little and adds little, however long it takes.
        time.sleep(min(max(waited / 50, 0.001), 0.02))


def _hold(
    path: Path,
    lock: Callable[[int], None],
    patience: _Patience,
    *,
    readable: bool = False,
    remake: bool = False,
) -> _LockFile:
    """Return the lock file at `path`, locked by `lock`, once it is the file that stands there.

    The folder may be removed or replaced while we wait: then the lock held is nobody's, and the new file's is taken.
    readable: a file that may not be written is locked all the same. remake: make the folder where it was removed.
    """
    while True:
        file = _LockFile(path, readable=readable)
        try:
            if _take(file, path, lock, patience):
                return file
        except OSError as exc:
            file.close()
            if isinstance(exc, StoreError):
                raise
            raise StoreError(f"{path} cannot be locked: {exc.strerror}") from exc
        except BaseException:
            file.close()
            raise
        file.close()
        if remake:
            make_folder(path.parent)


def _take(file: _LockFile, path: Path, lock: Callable[[int], None], patience: _Patience) -> bool:
    """Lock the file; return False where it is not the one at `path` any more."""
    while _is_current(file.fd, path):
        try:
            lock(file.fd)
        except BlockingIOError:
            patience.wait(file, path)
        else:
            return _is_current(file.fd, path)
    return False


def _lock_whole(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_byte(fd: int, offset: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLK"):
        lock = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    else:
        _lock_whole(fd)


def _open(path: Path, *, readable: bool) -> int:
    """Open a lock file, making it where it is not there; `readable`: for reading where it may not be written."""
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
        remedy = _PERMISSION if isinstance(exc, PermissionError) else ""
        raise StoreError(f"{path} cannot be locked: {exc.strerror}{remedy}") from exc
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise StoreError(f"{path} cannot be locked: it is no file; remove it")
    _keep_from_readers(fd, stat.S_IMODE(mode))
    return fd


def _keep_from_readers(fd: int, mode: int) -> None:
    # To open a file for reading is enough to lock it: who may not write is not to stop those who may.
    wanted = mode & ~(0o044 & ~((mode & 0o022) << 1))
    if wanted != mode:
        with contextlib.suppress(OSError):  # another user's
            os.fchmod(fd, wanted)


def _is_current(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _holder(file: _LockFile) -> str:
    pid = find_holder(file.fd)
    try:
        note = json.loads(file.read())
        by, host, since = note["pid"], note["host"], note["since"]
    except (ValueError, KeyError, TypeError, RecursionError):
        by = None
    if pid is not None:
        return describe_process(pid, f"since {since}" if pid == by else "")
    if by is not None:
        return f"process {by} (on {host}, since {since})"
    return "a process that cannot be seen from here"
