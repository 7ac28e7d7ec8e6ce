"""LMDB's lock file, lock.mdb: its space on disk, its end, and whether a writer is about to change what it says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreFull
from featstore.store.engine.settings import TABLE_BYTES
from featstore.store.paths import LMDB_LOCK_FILE, WRITE_LOCK_FILE
from featstore.system import libc
from featstore.system.filesystems import DISK_FULL_ERRNOS

if TYPE_CHECKING:
    from pathlib import Path


def allocate_table(folder: Path) -> None:
    """Give the reader table in `folder` its space on disk, making it if it is missing; raise StoreFull or StoreError.

    lock.mdb is a file with holes that processes write to through memory. On a full disk the first to need a page of it
    is ended by a bus error: measured for a reader that opened a store, and for the 65th reader of one.

    Only for a file that this process does not have open in LMDB: closing it lets go of all locks the process has on it.
    Does nothing if this user may not write it; whether that is in order is LMDB's to say.
    """
    path = folder / LMDB_LOCK_FILE
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StoreError(f"{path} is not a file; remove it")
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
