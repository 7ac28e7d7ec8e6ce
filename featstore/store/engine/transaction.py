"""A write transaction on the file that is there now: not one that was replaced, nor sealed, nor damaged.

LMDB trusts what a page says. To write into a file that was copied in part, restored over another or made to harm
can end the process, or spoil what is good in it. Each writer therefore leaves a note: device, inode, change time and
last transaction of the file. A file that fits its note is written to at once. Any other, a copy is one, is first read
by the verifier.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from featstore.errors import StoreError, StoreLocked, command_line
from featstore.store.engine.environment import open_environment, with_room
from featstore.store.engine.handles import INODES, SEALED, open_liblmdb
from featstore.store.engine.lmdb_errors import store_error, translated
from featstore.store.engine.locks import write_lock
from featstore.store.engine.pages import refuse_damaged_pages
from featstore.store.engine.reader_table import allocate_table, remove_lock_file
from featstore.store.engine.settings import FLOCK
from featstore.store.engine.snapshot import TABLES
from featstore.store.paths import (
    DATA_FILE,
    LMDB_LOCK_FILE,
    SEAL_FILE,
    because,
    explained,
    identify,
    is_sealed,
    lmdb_name,
    refuse_shards,
)
from featstore.system.filesystems import refuse_network
from featstore.system.fsync import written_early

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.store.engine.environment import Environment
    from featstore.store.engine.locks import LockFile

OTHERS_WAIT = 2.0  # seconds
_PAUSE = 0.05
_open: weakref.WeakSet[WriteTransaction] = weakref.WeakSet()
_inherited: list[lmdb.Transaction] = []
# What this process knows of the files it left, if the note may not be written.
_left: weakref.WeakKeyDictionary[Environment, dict[str, Any]] = weakref.WeakKeyDictionary()


def refuse_sealed(path: Path) -> None:
    """Raise StoreError if the dataset in the folder `path` is sealed, or made of sealed shards."""
    refuse_shards(path)
    if is_sealed(path):
        raise StoreError(
            f"{path} is sealed: it is read without locks, so nothing is written into it; undo that with "
            f"{command_line('seal', undo=True, cache_dir=path.parent, dataset=path.name)}"
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
        self._put_bytes = 0
        lock = txn = None
        try:
            lock = self._lock = write_lock(path)
            refuse_sealed(path)
            refuse_link(path)
            # Under the lock nobody replaces the file: what is opened now is what is there at the commit.
            self.environment = open_environment(path)
            # A reader that was killed would keep the pages it saw from being used again.
            self.environment.lmdb.reader_check()
            txn = self._txn = self.environment.lmdb.begin(write=True)
            _open.add(self)
            self._refuse_out_of_step()
            self._wait_for_others()
            _check_trust(self._lock, self.environment)
        except BaseException as exc:  # an interrupt may come between any two lines
            if txn is not None:
                txn.abort()
            if lock is not None:
                lock.close()
            if isinstance(exc, lmdb.Error):
                raise store_error(exc, path) from exc
            raise

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return a copy of a value as this transaction sees it, or None."""
        value: bytes | None = self._do(self._txn.get, TABLES[table] + key)
        return value

    def put(self, table: str, key: bytes, value: bytes | memoryview) -> None:
        """Put a value in place of any that is there."""
        # To put over a larger value of the same transaction LMDB leaves pages behind that belong to nothing.
        self._do(self._txn.delete, TABLES[table] + key)
        self._do(self._txn.put, TABLES[table] + key, value)
        self._put_bytes += len(value)

    def delete(self, table: str, key: bytes) -> bool:
        """Delete a value; return whether it was there."""
        there: bool = self._do(self._txn.delete, TABLES[table] + key)
        return there

    def commit(self) -> None:
        """Make durable what was put; on an error nothing of it is visible."""
        try:
            with written_early(self.environment.file, self._put_bytes):
                self._do(self._txn.commit)
            self._settle()
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

    def _wait_for_others(self) -> None:
        """Wait until nobody reads through another lock file, or none; raise StoreLocked after `OTHERS_WAIT` seconds.

        Who reads so is not in the reader table that this transaction goes by.
        """
        deadline = time.monotonic() + OTHERS_WAIT
        while (found := _mark_of_others(self.environment)) is not None:
            if time.monotonic() >= deadline:
                name = LMDB_LOCK_FILE
                advice = "keep whatever deletes lock files away from the cache"
                if found == SEALED:
                    name, advice = SEAL_FILE, "lift a seal with featstore seal --undo only"
                raise StoreLocked(
                    f"{self._path / name} was deleted or replaced while it was in use, and a commit could "
                    "change what those still look at who opened it before: let go of their features, or end them "
                    f"(fuser -v {self._path / DATA_FILE} lists them), and run the command again; {advice}"
                )
            time.sleep(_PAUSE)

    def _settle(self) -> None:
        """See that all find what was just committed; raise StoreError if it is not there."""
        if self.environment.is_current(self._path):
            return
        remove_lock_file(self._path)  # a process that opened it just now may have missed the commit
        if identify(self._path / DATA_FILE) != self.environment.data_file:
            raise StoreError(
                f"{self._path / DATA_FILE} was removed or replaced while it was written, and what was written last is "
                "not in the dataset; run the command again"
            )

    def _do(self, action: Callable[..., Any], *arguments: Any) -> Any:
        refuse_inherited(self._pid)
        try:
            return action(*arguments)
        except lmdb.Error as exc:
            self.abort()
            raise store_error(exc, self.environment.path) from exc


def _mark_of_others(environment: Environment) -> int | None:
    """Return the mark of somebody, in this process too, who has the data file open through another lock file."""
    if environment.lock_file is None or not hasattr(fcntl, "F_OFD_GETLK"):
        return None
    byte = environment.lock_file[1] % INODES
    for start, length in ((0, byte), (byte + 1, 0)):  # 0: to the end
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, mark, *_ = FLOCK.unpack(fcntl.fcntl(environment.file, fcntl.F_OFD_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            return int(mark)
    return None


def make_file(path: Path, table: str, key: bytes, value: bytes) -> None:
    """Make the LMDB file in the folder `path` with one first row, unless a file is there.

    It is made aside and linked into place: readers see it whole or not at all, whenever its maker is killed.
    """
    with_room(lambda: _make_file(path, TABLES[table] + key, value))


def _make_file(path: Path, key: bytes, value: bytes) -> None:
    with (
        explained(f"no dataset can be made in {path}", "choose another --cache-dir"),
        tempfile.TemporaryDirectory(prefix=".making-", dir=path) as aside,
        translated(path),
    ):
        allocate_table(Path(aside))
        with lmdb_name(Path(aside)) as name:
            draft = open_liblmdb(name, readonly=False)
        with draft.begin(write=True) as txn:
            txn.put(key, value)
        draft.close()
        with contextlib.suppress(FileExistsError):
            os.link(os.path.join(aside, DATA_FILE), path / DATA_FILE)


def leave_note(lock: LockFile, environment: Environment) -> None:
    """Note how the file is now; called under the lock, after a commit, which stands whatever happens here."""
    try:
        found = _describe(environment)
    except OSError:
        return
    _left[environment] = found
    lock.write(json.dumps(found).encode())


def _check_trust(lock: LockFile, environment: Environment) -> None:
    """Raise StoreError unless the file is as its note says, or passes the verifier; called under the lock."""
    try:
        found = _describe(environment)
    except OSError as exc:
        raise StoreError(
            f"{environment.path} cannot be looked into: {because(exc, 'was it removed?')}"
        ) from exc
    if found in (_left.get(environment), _read(lock.read())):
        return
    refuse_damaged_pages(environment.path)
    leave_note(lock, environment)


def _describe(environment: Environment) -> dict[str, Any]:
    stat = os.stat(environment.path / DATA_FILE)
    return {
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "ctime_ns": stat.st_ctime_ns,
        "transaction": environment.lmdb.info()["last_txnid"],
    }


def _read(note: bytes) -> Any:
    try:
        return json.loads(note)
    except (ValueError, RecursionError):
        return None


def _keep_inherited() -> None:
    # In a forked child: LMDB would end the parent's transactions with their last references.
    _inherited.extend(txn._txn for txn in _open)
    _open.clear()


os.register_at_fork(after_in_child=_keep_inherited)
