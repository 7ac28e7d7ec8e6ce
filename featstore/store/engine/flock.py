"""A lock on a file: taken with patience, named by its holder, gone with it.

A lock belongs to an open file, and so to each process that has a copy of its descriptor. A forked child has copies of
all: it closes those of lock files at once, locked or not, or it would hold for its whole life what a thread of its
parent was given later. Nobody waits for ever, or in silence: a holder may be stopped, or not a program of ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import struct
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreLocked, StoreNotFound, plain_line
from featstore.store.paths import because, make_folder

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_NOTE_BYTES = 4096
_PERMISSION = (
    "to write into a dataset takes write permission on its folder and the files in it, which users of one group have "
    "under umask 002 in a folder with the group's setgid bit (chmod g+s)"
)
# struct flock on 64-bit Linux: type, whence, start, length, pid (0, as such locks want it), padding to 8 bytes.
_FLOCK = "hhqqi0q"
_PROC = Path("/proc")
# As in `1: FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF`; one that waits has an arrow before its kind.
_LOCKED = re.compile(r"\d+: FLOCK +\S+ +\S+ +(\d+) (\S+) .*")


def _print(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"featstore: {plain_line(sentence)}", file=sys.stderr, flush=True)


_report: Callable[[str], None] = _print


def report_waiting(sentence: str) -> None:
    """Say what is waited for: on stderr, or as `report_waiting_to` has it."""
    _report(sentence)


def report_waiting_to(report: Callable[[str], None]) -> None:
    """Have `report` called with what is waited for, in a process whose stderr nobody reads."""
    global _report
    _report = report


class LockFile:
    """A lock file, open until `close` or its last reference, or in a forked child until it is forked."""

    fd = -1

    def __init__(self, path: Path, *, readable: bool = False) -> None:
        """Open it, making it if it is missing; `readable`: for reading if it may not be written."""
        with _descriptors:  # no fork between its opening and its place in the list
            self.fd = _open(path, readable=readable)
            _open_files.add(self)

    def read(self) -> bytes:
        """Return the note in it."""
        return os.pread(self.fd, _MAX_NOTE_BYTES, 0) if self.fd >= 0 else b""

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


class Patience:
    """How long a lock is waited for, from now on: its holder is named on the way, and at the end."""

    def __init__(self, doing: str, limit: float, say_after: float) -> None:
        """Take what the holder is doing, and the seconds until StoreLocked and until it is said."""
        self._doing = doing
        self._limit = limit
        self._say_after = say_after
        self._started = time.monotonic()

    def wait(self, file: LockFile, path: Path) -> None:
        """Sleep for a moment; raise StoreLocked if it was long enough."""
        waited = time.monotonic() - self._started
        if waited >= self._limit:
            raise StoreLocked(
                f"{_holder(file)} is {self._doing} {path.parent}, and still was after {waited:.0f} s; wait for it to "
                "end, or stop it"
            )
        if waited >= self._say_after:
            self._say_after = self._limit
            report_waiting(f"waiting for {_holder(file)}, {self._doing} {path.parent}")
        # A fiftieth of what was waited: costs little and adds little, however long it takes.
        time.sleep(min(max(waited / 50, 0.001), 0.02))


def hold(
    path: Path,
    lock: Callable[[int], None],
    patience: Patience,
    *,
    readable: bool = False,
    remake: bool = False,
) -> LockFile:
    """Return the lock file at `path`, locked by `lock`, once it is the file of that name.

    The folder may be removed or replaced while we wait: then the lock held is nobody's, and the new file's is taken.

    Args:
        path: The lock file; made if it is missing.
        lock: Locks an open file, or raises BlockingIOError.
        patience: How long to wait.
        readable: Lock a file that may not be written all the same.
        remake: Make the folder again if it was removed.
    """
    while True:
        file = LockFile(path, readable=readable)
        try:
            if _take(file, path, lock, patience):
                return file
        except OSError as exc:
            file.close()
            if isinstance(exc, StoreError):
                raise
            raise StoreError(f"{path} cannot be locked: {because(exc)}") from exc
        except BaseException:
            file.close()
            raise
        file.close()
        if remake:
            make_folder(path.parent)


def _take(file: LockFile, path: Path, lock: Callable[[int], None], patience: Patience) -> bool:
    """Lock the file; return False if it is not the one at `path` any more."""
    while _is_current(file.fd, path):
        try:
            lock(file.fd)
        except BlockingIOError:
            patience.wait(file, path)
        else:
            return _is_current(file.fd, path)
    return False


def lock_whole(fd: int) -> None:
    """Lock the open file; raise BlockingIOError if another holds it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_byte(fd: int, offset: int) -> None:
    """Lock one byte of the open file, or all of it on systems that cannot; raise BlockingIOError."""
    if hasattr(fcntl, "F_OFD_SETLK"):
        lock = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    else:
        lock_whole(fd)


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
    _keep_from_readers(fd, stat.S_IMODE(mode))
    return fd


def _no_file(path: Path) -> StoreError:
    return StoreError(f"{path} cannot be locked: it is not a file; remove it")


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


def _holder(file: LockFile) -> str:
    pid = _find_holder(file.fd)
    try:
        note = json.loads(file.read())
        by, host, since = note["pid"], note["host"], note["since"]
    except (ValueError, KeyError, TypeError, RecursionError):
        by = None
    if pid is not None:
        return _describe_process(pid, f"since {since}" if pid == by else "")
    if by is not None:
        return f"process {by} (on {host}, since {since})"
    return "a process that cannot be seen from here"


def _find_holder(fd: int) -> int | None:
    """Return the process that holds the flock on the open file; None if it is not visible from here.

    The kernel says, for a note in the file would name its writer, which may have ended long ago.
    """
    found = os.fstat(fd)
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    held = [_LOCKED.fullmatch(line) for line in lines]
    return next((int(line[1]) for line in held if line and line[2] == name), None)


def _describe_process(pid: int, more: str) -> str:
    """Return the words for a process: its number, its name, how to wake it if it is stopped, and `more`."""
    try:
        status = (_PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:  # another user's, if the system hides those
        status = ""
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    stopped = f"stopped: kill -CONT {pid} wakes it" if facts.get("State", "")[:1] == "T" else ""
    words = ", ".join(filter(None, (facts.get("Name"), stopped, more)))
    return f"process {pid} ({words})" if words else f"process {pid}"
