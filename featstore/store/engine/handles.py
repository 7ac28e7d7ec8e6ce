"""liblmdb's environments in this process: each lock file is opened once, and closed before it is opened again.

Its locks belong to process and file, so one that is closed takes those of another on the same file along, and clears
the reader table of what this process reads. A handle is therefore kept here until it is closed, which its owner's end
only asks for: `weakref` tells of an end before the finalizers run, so another thread may come in between.

The lock file, lock.mdb, holds the reader table, by which writers spare the pages that are being read, and the number of
the last commit. It looks like litter: cleaners of stale locks delete it, and so does `rsync --delete`. Processes that
have the old one open and those that make the next then know nothing of each other. So who opens one marks the data
file, and a writer that finds the mark of another lock file does not write (transaction.py). That makes it safe to
remove lock.mdb, which is how it is parted from a data file that is not its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

import lmdb
import lmdb._envid

from featstore.errors import StoreError
from featstore.store.engine.lmdb_errors import store_error
from featstore.store.engine.pages import read_metas
from featstore.store.engine.reader_table import (
    allocate_table,
    is_being_written,
    remove_lock_file,
)
from featstore.store.engine.settings import FLOCK, MAP_BYTES, MAX_READERS
from featstore.store.paths import DATA_FILE, LMDB_LOCK_FILE, identify, pinned_name
from featstore.system.filesystems import is_read_only_disk

if TYPE_CHECKING:
    from pathlib import Path

_TRIES = 100
INODES = 1 << 62  # what off_t can say; some file systems set the highest bits
SEALED = 0  # the inode of no file

lock = threading.Lock()  # held while environments are opened and closed; see `_let_go`
_handles: dict[tuple[int, int], Handle] = {}
_ended: deque[Handle] = deque()
_inherited: list[object] = []


class DataFileReplaced(Exception):
    """Another data file took the place of the one that was opened; open again."""


class Handle:
    """An environment of liblmdb's and the lock file it was opened with, None on a disk that is read-only."""

    def __init__(
        self, environment: lmdb.Environment, lock_file: tuple[int, int] | None, owner: object
    ) -> None:
        """Take over an environment for as long as `owner` lives."""
        self.lmdb = environment
        self.lock_file = lock_file
        self.owner = weakref.ref(owner)
        if lock_file is not None:
            _handles[lock_file] = self
        weakref.finalize(owner, _let_go, self).atexit = False  # others may read to the very end

    def close(self) -> None:
        """Close it unless it is closed; under the lock."""
        if self.lock_file is None or _handles.get(self.lock_file) is self:
            self.lmdb.close()
            _handles.pop(self.lock_file or (0, 0), None)


def open_handle(folder: Path, data: int, owner: object) -> Handle:
    """Open the environment in `folder`, whose data file is open as `data`, for `owner`; under the lock.

    The lock file is then the one that is there, and it belongs to that data file. Raises StoreError, and
    DataFileReplaced if another data file is there by now.
    """
    _refuse_what_liblmdb_would_not(folder)
    for _ in range(_TRIES):
        close_ended()
        there = identify(folder / LMDB_LOCK_FILE)
        held = _handles.get(there) if there else None
        if held is None:
            handle = _open_once(folder, data, owner)
            if handle is not None:
                return handle
        elif held.owner() is None:
            held.close()  # its finalizer is about to ask for it
        else:
            _part(folder, data)
    raise StoreError(
        f"{folder / LMDB_LOCK_FILE} is replaced again and again; see which program does that, and leave the file to "
        "featstore"
    )


def open_liblmdb(name: str, *, readonly: bool, lock: bool = True) -> lmdb.Environment:
    """Open the environment in the folder called `name`, which this process does not have open.

    liblmdb makes a file that is missing, whatever it is told: the caller knows that it is there.
    """
    # py-lmdb's own guard goes by data files as well, and takes those inherited through fork for open. Closing the
    # inherited ones instead was measured: it wipes the parent's reader slots.
    guard = lmdb._envid.env_keys
    lmdb._envid.env_keys = lambda path, subdir: ()
    try:
        return lmdb.open(
            name,
            map_size=MAP_BYTES,
            max_readers=MAX_READERS,
            readonly=readonly,
            lock=lock,
            create=False,
            mode=0o666,  # of what it makes; the umask says who may write it
            lib_version=0,
        )
    finally:
        lmdb._envid.env_keys = guard


def close_ended() -> None:
    """Close the handles whose owners are gone; under the lock."""
    while _ended:
        _ended.popleft().close()


def sweep() -> None:
    """Close the handles whose owners are gone, unless the lock is held: its holder sweeps after letting go of it."""
    while _ended and lock.acquire(blocking=False):
        try:
            close_ended()
        finally:
            lock.release()


def leave_inherited() -> None:
    """In a forked child: keep the parent's environments as they are, for good."""
    _inherited.append((dict(_handles), tuple(_ended)))
    _handles.clear()
    _ended.clear()


def begin_reading(environment: lmdb.Environment) -> lmdb.Transaction:
    """Begin a read transaction."""
    try:
        return environment.begin()
    except lmdb.ReadersFullError:
        environment.reader_check()  # readers that were killed hold slots until somebody looks
        return environment.begin()


def _let_go(handle: Handle) -> None:
    # A finalizer: it runs anywhere, also in a thread that holds the lock, which is not reentrant.
    _ended.append(handle)
    sweep()


def _open_once(folder: Path, data: int, owner: object) -> Handle | None:
    """Open it; return None if the lock file was replaced since, or was not this data file's and is removed."""
    if not _has_whole_table(folder):
        allocate_table(folder)
    lock_file = identify(folder / LMDB_LOCK_FILE)
    handle = None
    try:
        with pinned_name(folder) as name:
            _refuse_another(name, data)
            readonly = not os.access(f"{name}/{DATA_FILE}", os.W_OK)
            handle = Handle(open_liblmdb(name, readonly=readonly), lock_file, owner)
        if lock_file is not None:
            mark(data, lock_file[1])
        if identify(folder / LMDB_LOCK_FILE) == lock_file:  # since it was marked
            handle.lmdb.reader_check()  # clears the slots of readers that were killed
            if _is_in_step(handle.lmdb, data, folder):
                return handle
            _part(folder, data)
    except BaseException as exc:
        if handle is not None:
            handle.close()
        if isinstance(exc, lmdb.Error):
            _refuse_another(
                folder, data
            )  # liblmdb finds no files in a folder that was removed since
            raise store_error(exc, folder) from exc
        raise
    handle.close()
    return None


def _refuse_another(folder: Path | str, data: int) -> None:
    opened = os.fstat(data)
    if identify(f"{folder}/{DATA_FILE}") != (opened.st_dev, opened.st_ino):
        raise DataFileReplaced


def _has_whole_table(folder: Path) -> bool:
    try:
        found = os.stat(folder / LMDB_LOCK_FILE)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and 0 < found.st_size <= found.st_blocks * 512


def mark(data: int, inode: int) -> None:
    """Mark the data file, by its descriptor, as open through the lock file `inode` and through no other.

    `SEALED` in place of an inode: without one, because it is sealed.

    The mark is a shared lock on the byte of that number, and goes with the last descriptor made from this one. Nothing
    happens on systems and file systems without such locks.
    """
    if hasattr(fcntl, "F_OFD_SETLK"):
        for kind, start, length in ((fcntl.F_UNLCK, 0, 0), (fcntl.F_RDLCK, inode % INODES, 1)):
            with contextlib.suppress(OSError):
                fcntl.fcntl(
                    data, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
                )


def _part(folder: Path, data: int) -> None:
    """Remove the lock file, which belongs to a data file that this one took the place of."""
    _refuse_another(folder, data)
    remove_lock_file(folder)


def _is_in_step(environment: lmdb.Environment, data: int, folder: Path) -> bool:
    """Return whether the lock file's last commit is the data file's: a replaced data file has another."""
    number = newest = 0
    for _ in range(_TRIES):
        txn = begin_reading(environment)
        number = txn.id()
        txn.abort()
        newest = max(meta.txn_id for meta in read_metas(data, folder))
        if number == newest:
            return True
    return number + 1 == newest and is_being_written(folder)  # it tells the lock file last


def _refuse_what_liblmdb_would_not(folder: Path) -> None:
    if os.path.islink(folder / LMDB_LOCK_FILE):  # liblmdb would write over whatever it leads to
        raise StoreError(
            f"{folder / LMDB_LOCK_FILE} is a link, and no link is written through; remove it"
        )
    if os.statvfs(folder).f_flag & os.ST_RDONLY and not is_read_only_disk(folder):
        # liblmdb would read it without a slot in the reader table, and a writer elsewhere use its pages again.
        raise StoreError(
            f"{folder} is mounted read-only here: programs that write to it elsewhere cannot see who reads, and could "
            "change what is being read; mount it writable, or seal it on a machine that may write it: "
            f"featstore seal --dataset {folder.name} --cache-dir ..."
        )
