"""LMDB's lock file: whether it is still the one that was opened, and who reads through another.

lock.mdb holds the reader table, by which writers spare the pages that are being read, and the number of the last
commit. It looks like litter: cleaners of stale locks delete it, and so does `rsync --delete`. Those who have the old
one open and those who make the next then know nothing of each other. So each environment marks the data file it has
open, by a shared lock on the byte whose number is the inode of its lock file. A writer that finds another byte marked
does not write. That makes it safe to remove lock.mdb, which is how it is parted from a data file that is not its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from featstore.errors import StoreError
from featstore.store.engine.locks import WRITE_FILE
from featstore.store.paths import LMDB_LOCK_FILE

if TYPE_CHECKING:
    from pathlib import Path

# struct flock on 64-bit Linux: type, whence, start, length, pid (0, as such locks want it), padding to 8 bytes.
_FLOCK = "hhqqi0q"
_TO_THE_END = 0
_INODES = 1 << 62  # what off_t can say; some file systems set the highest bits


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
        if struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK:
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
            folder / WRITE_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
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
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
