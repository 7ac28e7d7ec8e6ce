"""LMDB's lock file, lock.mdb: its space on disk, whether it is still the one opened, who reads through another.

It holds the reader table, by which writers spare the pages that are being read, and the number of the last commit. It
looks like litter: cleaners of stale locks delete it, and so does `rsync --delete`. Processes that have the old one open
and those that make the next then know nothing of each other. So each environment marks the data file it has open, by a
shared lock on the byte whose number is the inode of its lock file. A writer that finds another byte marked does not
write. That makes it safe to remove lock.mdb, which is how it is parted from a data file that is not its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreFull
from featstore.store.engine.settings import FLOCK, TABLE_BYTES
from featstore.store.paths import LMDB_LOCK_FILE, WRITE_LOCK_FILE
from featstore.system import libc
from featstore.system.filesystems import DISK_FULL_ERRNOS

if TYPE_CHECKING:
    from pathlib import Path

_TO_THE_END = 0
_INODES = 1 << 62  # what off_t can say; some file systems set the highest bits


def allocate_table(folder: Path) -> None:
    """Give the reader table in `folder` its space on disk, making it if it is missing; raise StoreFull or StoreError.

    lock.mdb is a file with holes that processes write to through memory. On a full disk the first to need a page of it
    is ended by a bus error: measured for a reader that opened a store, and for the 65th reader of one.

    Only for a file that this process does not have open in LMDB: closing it lets go of all locks the process has on it.
    Does nothing if this user may not write it; whether that is in order is LMDB's to say.
    """
    path = folder / LMDB_LOCK_FILE
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path} is not a file; remove it")
        if found.st_size and found.st_blocks * 512 >= found.st_size:
            return
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError:
        return
    try:
        # os.posix_fallocate writes zeros over what others write if a file system cannot allocate.
        size = os.fstat(fd).st_size or TABLE_BYTES
        if libc.fallocate and libc.fallocate(fd, 0, 0, size) != 0:
            exc = libc.error()
            if exc.errno in DISK_FULL_ERRNOS:
                raise StoreFull(
                    f"{folder}: the disk has no room for the {TABLE_BYTES >> 10} KiB of {LMDB_LOCK_FILE} "
                    f"({exc.strerror}), without which a store can neither be read nor written; free some space"
                ) from exc
    finally:
        os.close(fd)


def identify(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return device and inode of a file, None if there is none; raise StoreError if it cannot be looked at."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        folder = os.path.dirname(path)
        raise StoreError(f"{folder} cannot be looked into: {exc.strerror}") from exc
    return found.st_dev, found.st_ino


def mark(data: int, inode: int) -> None:
    """Mark the data file, by its descriptor, as open through the lock file `inode` and through no other.

    The mark goes with the last descriptor made from this one. Nothing happens on systems and file systems without such
    locks.
    """
    if hasattr(fcntl, "F_OFD_SETLK"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(data, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, 0, _TO_THE_END))
            fcntl.fcntl(data, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, inode % _INODES, 1))


def is_marked_by_others(data: int, inode: int) -> bool:
    """Return whether somebody, in this process too, has the data file open through another lock file than `inode`."""
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return False
    byte = inode % _INODES
    for start, length in ((0, byte), (byte + 1, _TO_THE_END)):
        asked = _flock(fcntl.F_WRLCK, start, length)
        found = fcntl.fcntl(data, fcntl.F_OFD_GETLK, asked)
        if FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
            return True
    return False


def remove_lock_file(folder: Path) -> None:
    """Remove lock.mdb, which is another data file's or missed a commit: all that have it open notice, and make another.

    Raises StoreError if this user may not.
    """
    try:
        os.unlink(folder / LMDB_LOCK_FILE)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise StoreError(
            f"{folder / LMDB_LOCK_FILE} does not belong to the data.mdb beside it, which was replaced while it was in "
            f"use, and cannot be removed: {exc.strerror}; ask its owner to remove that one file"
        ) from exc


def is_being_written(folder: Path) -> bool:
    """Return whether a writer is at work in `folder`, or may be: its lock cannot be tried."""
    try:
        fd = os.open(
            folder / WRITE_LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _flock(kind: int, start: int, length: int) -> bytes:
    return FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
