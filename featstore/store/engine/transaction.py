"""A write transaction on the file that is there now: not one that was replaced, nor sealed, nor damaged."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import TYPE_CHECKING

import lmdb

from featstore.errors import StoreError
from featstore.store.engine.environment import open_environment
from featstore.store.engine.file_state import check_trust, leave_note, refuse_damaged_pages
from featstore.store.engine.lmdb_errors import store_error, translated
from featstore.store.engine.locks import write_lock
from featstore.store.engine.reader_table import remove_lock_file
from featstore.store.engine.snapshot import TABLES
from featstore.store.paths import DATA_FILE, LMDB_LOCK_FILE, is_sealed, lmdb_name
from featstore.system.filesystems import refuse_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_METAS = 2  # pages
_open: weakref.WeakSet[WriteTransaction] = weakref.WeakSet()
_inherited: list[lmdb.Transaction] = []


def refuse_sealed(path: Path) -> None:
    """Raise StoreError if the dataset in the folder `path` is sealed."""
    if is_sealed(path):
        raise StoreError(
            f"{path} is sealed: it is read without locks, so nothing is written into it; undo that with featstore seal "
            f"--undo --cache-dir {path.parent} --dataset {path.name}"
        )


def refuse_link(path: Path) -> None:
    """Raise StoreError if the data file in the folder `path` is a link; reading through one is fine."""
    if os.path.islink(path / DATA_FILE):
        raise StoreError(
            f"{path / DATA_FILE} is a link, and no link is written through; put the file itself there"
        )


def refuse_inherited(pid: int) -> None:
    """Raise StoreError in any process but `pid`: what a child commits in its parent's place is lost."""
    if os.getpid() != pid:
        raise StoreError(
            "this writer belongs to the process that forked this one; open a FeatureWriter here"
        )


class WriteTransaction:
    """One write transaction on the dataset in a folder; ends with `commit` or `abort`, or the last reference.

    Usable in `with`: leaving commits, an exception inside drops what was put. Commit in the thread that began it.
    Every method raises StoreError if LMDB refuses; the transaction is over then. In a forked child, its parent's is
    refused, and to abort it does nothing.
    """

    def __init__(self, path: Path) -> None:
        """Wait for other writers and begin; raise StoreNotFound or StoreError if the file may not be written."""
        refuse_network(path)
        self._pid = os.getpid()
        self._path = path
        lock = txn = None
        try:
            lock = self._lock = write_lock(path)
            refuse_sealed(path)
            refuse_link(path)
            # Under the lock nobody replaces the file: what is opened now is what is there at the commit.
            self.environment = open_environment(path)
            with translated(path):
                # A reader that was killed would keep the pages it saw from being used again.
                self.environment.lmdb.reader_check()
                txn = self._txn = self.environment.lmdb.begin(write=True)
            _open.add(self)
            self._refuse_out_of_step()
            self.environment.wait_for_others()
            check_trust(self._lock, self.environment)
        except BaseException:  # an interrupt may come between any two lines
            if txn is not None:
                txn.abort()
            if lock is not None:
                lock.close()
            raise

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return a copy of a value as this transaction sees it, or None."""
        with self._ending():
            value: bytes | None = self._txn.get(TABLES[table] + key)
            return value

    def put(self, table: str, key: bytes, value: bytes | memoryview) -> None:
        """Put a value in place of any that is there."""
        with self._ending():
            # To put over a larger value of the same transaction LMDB leaves pages behind that belong to nothing.
            self._txn.delete(TABLES[table] + key)
            self._txn.put(TABLES[table] + key, value)

    def delete(self, table: str, key: bytes) -> bool:
        """Delete a value; return whether it was there."""
        with self._ending():
            there: bool = self._txn.delete(TABLES[table] + key)
            return there

    def commit(self) -> None:
        """Make durable what was put; on an error nothing of it is visible."""
        refuse_inherited(self._pid)
        try:
            with translated(self.environment.path):
                self._txn.commit()
            self.environment.settle(self._path)
            leave_note(self._lock, self.environment)
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop what was put; after an end of any kind nothing happens."""
        if os.getpid() == self._pid:
            self._txn.abort()
            self._lock.close()

    def __enter__(self) -> WriteTransaction:
        """Return the transaction itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Commit, or abort if an exception leaves the block, or a forked child does."""
        try:
            if kind is None and os.getpid() == self._pid:
                self.commit()
        finally:
            self.abort()

    def _refuse_out_of_step(self) -> None:
        # liblmdb goes on from the lock file's last commit, and would write over those that it does not know of.
        if self._txn.id() != self.environment.lmdb.info()["last_txnid"] + 1:
            remove_lock_file(self._path)
            raise StoreError(
                f"{self._path / LMDB_LOCK_FILE} did not know of the last commit and was removed; nothing "
                "was written, run the command again"
            )

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        refuse_inherited(self._pid)
        try:
            yield
        except lmdb.Error as exc:
            self.abort()
            raise store_error(exc, self.environment.path) from exc


class StillFile:
    """A dataset's file to be copied while nobody writes to it.

    Attributes:
        live_bytes: Bytes of the pages in use: what a compacted copy takes.
        rows: Keys in all tables.
    """

    def __init__(self, environment: lmdb.Environment, path: Path) -> None:
        """Take liblmdb's environment for the folder `path`."""
        with translated(path):
            found = environment.stat()
        pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        self.live_bytes: int = (pages + _METAS) * found["psize"]
        self.rows: int = found["entries"]
        self._environment = environment
        self._path = path

    def copy_compacted(self, folder: Path) -> None:
        """Copy the pages in use to a new data file in `folder`; raise StoreError."""
        with translated(self._path), lmdb_name(folder) as name:
            self._environment.copy(name, compact=True)


@contextlib.contextmanager
def hold_still(path: Path, *, sealed: bool) -> Iterator[StillFile]:
    """Keep every writer out of the dataset in `path`, those of older releases by LMDB's own lock."""
    if not sealed:
        txn = WriteTransaction(path)
        try:
            yield StillFile(txn.environment.lmdb, path)
        finally:
            txn.abort()
        return
    lock = write_lock(path)
    try:
        refuse_damaged_pages(path)
        environment = open_environment(path)
        if not environment.reads_alone:  # opened before it was sealed
            yield StillFile(environment.lmdb, path)
            return
        with translated(path), lmdb_name(path) as name:
            opened = lmdb.open(name, readonly=True, lock=False, create=False, lib_version=0)
        with opened:
            yield StillFile(opened, path)
    finally:
        lock.close()


def _keep_inherited() -> None:
    # In a forked child: LMDB would end the parent's transactions with their last references.
    _inherited.extend(txn._txn for txn in _open)
    _open.clear()


os.register_at_fork(after_in_child=_keep_inherited)
