"""One LMDB environment per file per process, its snapshots, and views that hold them.

With bare py-lmdb a view outlives its transaction without any error: after an overwrite it shows other bytes, after the
environment is closed it ends the process. Here a view keeps its snapshot alive, a snapshot its environment, and nobody
closes an environment outright: the last reference does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import lmdb
import lmdb._envid
import numpy as np

from featstore.errors import StoreError, StoreFull, StoreMismatch, StoreNotFound
from featstore.store.layout import DATA_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATABASES = ("manifest", "specs", "catalog", "failures", "records")
# Virtual address space, not disk: the file is as large as its records. Growing a map would kill its views.
MAP_BYTES = 4 << 40
MAX_READERS = 1022

_lock = threading.Lock()
_environments: weakref.WeakValueDictionary[tuple[int, int], Environment] = (
    weakref.WeakValueDictionary()
)
_inherited: list[Environment] = []


class Environment:
    """An open environment; `open_environment` gives the process's own."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open the environment in folder `path`, for reading alone where the file may not be written."""
        self.path = path
        self.pid = os.getpid()
        self.writable = create or os.access(path / DATA_FILE, os.W_OK)
        self.verified: set[tuple[bytes, int]] = set()  # (record key, checksum) proved once
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._snapshot_lock = threading.Lock()
        with translated(path), _beside_inherited():
            self.lmdb = lmdb.open(
                os.fspath(path),
                map_size=MAP_BYTES,
                max_dbs=len(DATABASES),
                max_readers=MAX_READERS,
                readonly=not self.writable,
                create=create,
                lib_version=0,
            )
            if self.lmdb.lib_version()[0] != 0:
                raise StoreMismatch(
                    f"{path / DATA_FILE} was written by LMDB engine 1.0, featstore's stores are of engine 0.9; "
                    "ingest into another --cache-dir"
                )
            try:
                self.dbs = {
                    name: self.lmdb.open_db(name.encode(), create=create) for name in DATABASES
                }
            except (lmdb.NotFoundError, lmdb.ReadonlyError) as exc:
                raise StoreMismatch(
                    f"{path / DATA_FILE} is an LMDB file but no featstore dataset; ingest into another --cache-dir"
                ) from exc

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot; the one in use is shared for as long as nothing was committed since."""
        with self._snapshot_lock, translated(self.path):
            shared = self._snapshot() if self._snapshot else None
            if shared is None or shared.txn_id != self.lmdb.info()["last_txnid"]:
                shared = Snapshot(self)
                self._snapshot = weakref.ref(shared)
            return shared


class Snapshot:
    """One read transaction and all views taken from it; it ends when the last of them is gone."""

    def __init__(self, environment: Environment) -> None:
        """Begin the transaction."""
        self.environment = environment
        self._txn = environment.lmdb.begin(buffers=True)
        self.txn_id: int = self._txn.id()
        self._lock = threading.Lock()  # LMDB allows a read transaction one thread at a time

    def get(self, database: str, key: bytes) -> memoryview | None:
        """Return the value of `key` as a read-only view on the map that keeps this snapshot, or None."""
        with self._lock, translated(self.environment.path):
            value = self._txn.get(key, db=self.environment.dbs[database])
        return None if value is None else _View(self, value).memory()

    def read(self, database: str, key: bytes) -> bytes | None:
        """Return a copy of the value of `key`, or None; for small rows."""
        with self._lock, translated(self.environment.path):
            value = self._txn.get(key, db=self.environment.dbs[database])
            return None if value is None else bytes(value)

    def keys(self, database: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, in order, touching no value."""
        for key, _ in self._scan(database, prefix, values=False):
            yield key

    def rows(self, database: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield copies of the keys and values whose keys begin with `prefix`, in order."""
        yield from self._scan(database, prefix, values=True)

    def count(self, database: str) -> int:
        """Return the number of keys."""
        with self._lock, translated(self.environment.path):
            return int(self._txn.stat(self.environment.dbs[database])["entries"])

    def _scan(self, database: str, prefix: bytes, *, values: bool) -> Iterator[tuple[bytes, bytes]]:
        with self._lock, translated(self.environment.path):
            cursor = self._txn.cursor(self.environment.dbs[database])
            more = cursor.set_range(prefix)
        while more:
            with self._lock, translated(self.environment.path):
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                row = key, bytes(cursor.value()) if values else b""
                more = cursor.next()
            yield row


class _View:
    """Memory inside the map, as numpy's array interface describes it: read-only, and it holds its snapshot."""

    def __init__(self, snapshot: Snapshot, value: memoryview) -> None:
        self._snapshot = snapshot
        address = np.frombuffer(value, dtype=np.uint8).__array_interface__["data"][0]
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True),
            "shape": (len(value),),
            "typestr": "|u1",
            "version": 3,
        }

    def memory(self) -> memoryview:
        return np.asarray(self).data


def open_environment(path: Path, *, create: bool = False) -> Environment:
    """Return this process's environment for the folder `path`, opening it where it is not open yet.

    Follows the file, not its name: after a dataset was removed and made again, or replaced by a compacted copy, the
    new file is opened beside the old one, whose views stay good. Raises StoreNotFound without `create`.
    """
    with _lock:
        key = _identity(path)
        known = _environments.get(key) if key else None
        if known is not None:
            return known
        if key is None and not create:
            raise StoreNotFound(
                errno.ENOENT, f"there is no dataset in {path}; make it with featstore ingest"
            )
        environment = Environment(path, create=create)
        key = _identity(path)
        if key is not None:
            _environments[key] = environment
        return environment


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn lmdb's errors into StoreErrors that name `path`; the cause is kept."""
    try:
        yield
    except lmdb.Error as exc:
        raise store_error(exc, path) from exc


def store_error(exc: lmdb.Error, path: Path) -> StoreError:
    """Return the StoreError that says what `exc` means for the store in `path` and what to do."""
    for kinds, error, sentence in _MEANINGS:
        if isinstance(exc, kinds):
            return error(f"{path}: {sentence} ({exc})")
    # A full disk reaches us as a plain "Input/output error" or a short write as often as by its name.
    if isinstance(exc, lmdb.DiskError) or "space left" in str(exc) or _free_bytes(path) < 1 << 20:
        return StoreFull(
            errno.ENOSPC,
            f"{path}: the disk is full ({exc}); free some space and run the command again",
        )
    return StoreError(
        f"{path}: LMDB refused: {exc}; run featstore check, and mend the disk if it fails again"
    )


_DAMAGED = "the file is damaged; run featstore check, then remove the dataset and ingest it again"
_MEANINGS: tuple[tuple[tuple[type[lmdb.Error], ...], type[StoreError], str], ...] = (
    ((lmdb.MapFullError,), StoreFull, "4 TiB are stored; ingest into another dataset"),
    (
        (lmdb.ReadersFullError,),
        StoreError,
        f"{MAX_READERS} readers are at work, no more fit; end some of them",
    ),
    (
        (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError),
        StoreError,
        _DAMAGED,
    ),
    (
        (lmdb.VersionMismatchError, lmdb.IncompatibleError),
        StoreMismatch,
        "the file is of another LMDB version; featstore's are of engine 0.9",
    ),
    (
        (lmdb.LockError, lmdb.ReadonlyError),
        StoreError,
        "the store may not be written here; give yourself write permission on its folder",
    ),
    ((lmdb.MemoryError,), StoreError, "no memory for the map; lift the limit on address space"),
)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path / DATA_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_dev, stat.st_ino


def _free_bytes(path: Path) -> int:
    try:
        stat = os.statvfs(path)
    except OSError:
        return 1 << 62
    return stat.f_bavail * stat.f_frsize


@contextlib.contextmanager
def _beside_inherited() -> Iterator[None]:
    # py-lmdb refuses a file twice in one process and takes an environment inherited through fork for the first time.
    # Closing that one instead was measured: it wipes the parent's reader slots and unmaps views the child still holds.
    if not _inherited:
        yield
        return
    guard = lmdb._envid.env_keys
    lmdb._envid.env_keys = lambda path, subdir: ()
    try:
        yield
    finally:
        lmdb._envid.env_keys = guard


def _leave_inherited_alone() -> None:
    # In a forked child: keep the parent's environments as they are, for good, and open our own from now on.
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_environments.values())
    _environments.clear()


os.register_at_fork(after_in_child=_leave_inherited_alone)
