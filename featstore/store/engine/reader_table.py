"""Room on the disk for LMDB's reader table, before LMDB maps it.

lock.mdb is a file with holes that processes write to through memory. Where the disk is full, the first to need a page
of it is ended by a bus error: measured for a reader that opened a store, and for the 65th reader of one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreFull
from featstore.store.paths import LMDB_LOCK_FILE
from featstore.store.room import NO_ROOM

if TYPE_CHECKING:
    from pathlib import Path

# What LMDB 0.9 makes it for 1,022 readers: 64 bytes each, and 192 of its own for one of them less.
TABLE_BYTES = 64 << 10


def allocate_table(folder: Path) -> None:
    """Give the reader table in `folder` its room on the disk, making it where it is not there; or raise StoreFull.

    For a file that this process does not have open in LMDB: closing it lets go of all locks that the process has on it.
    Nothing happens where this user may not write it; whether that is in order is LMDB's to say. StoreError where it is
    no file.
    """
    path = folder / LMDB_LOCK_FILE
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path} is no file; remove it")
        if found.st_size and found.st_blocks * 512 >= found.st_size:
            return
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError:
        return
    try:
        code = _allocate(fd, os.fstat(fd).st_size or TABLE_BYTES)
    finally:
        os.close(fd)
    if code in NO_ROOM:
        raise StoreFull(
            f"{folder}: the disk has no room for the {TABLE_BYTES >> 10} KiB of {LMDB_LOCK_FILE} "
            f"({os.strerror(code)}), without which a store can neither be read nor written; free some space"
        )


def _allocate(fd: int, size: int) -> int:
    """Allocate and return 0, or what the system says.

    Not os.posix_fallocate: where a file system cannot allocate, that writes zeros, over what readers write meanwhile.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return 0
    done = libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size))
    return 0 if done == 0 else ctypes.get_errno()
