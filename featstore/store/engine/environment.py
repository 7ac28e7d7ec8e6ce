"""One LMDB environment per file per process.

With bare py-lmdb a view of a closed environment ends the process. Here views keep their snapshot (snapshot.py), a
snapshot its environment, and nobody closes an environment outright: the last reference does.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
import weakref
from itertools import count
from pathlib import Path

import lmdb

from featstore.errors import StoreError, StoreFull, StoreLocked, StoreNotFound
from featstore.store.engine.handles import (
    DataFileReplaced,
    begin_reading,
    keepers,
    leave_inherited,
    lock,
    open_data_file,
    open_handle,
    open_liblmdb,
    sweep,
    with_room,
)
from featstore.store.engine.lmdb_errors import store_error, translated
from featstore.store.engine.reader_table import (
    allocate_table,
    identify,
    is_marked_by_others,
    remove_lock_file,
)
from featstore.store.engine.settings import KEPT_ENVIRONMENTS
from featstore.store.engine.snapshot import TABLES, Cache, Snapshot
from featstore.store.engine.tree import Tree, read_metas
from featstore.store.paths import DATA_FILE, LMDB_LOCK_FILE, because, is_sealed
from featstore.system.file_map import FileMap
from featstore.system.filesystems import DISK_FULL_ERRNOS, warn_of_network

_Files = tuple[tuple[int, int], "tuple[int, int] | None"]

OTHERS_WAIT = 2.0  # seconds
_PAUSE = 0.05
_BEGINS = 100

_uses = count(1)
_environments: weakref.WeakValueDictionary[_Files, Environment] = weakref.WeakValueDictionary()
_inherited: list[Environment] = []


class Environment:
    """An open environment; `open_environment` gives the process's own.

    liblmdb begins transactions, so that writers leave alone what a snapshot sees; the pages are read by ourselves (see
    tree.py), out of a map of our own.
    """

    def __init__(self, path: Path) -> None:
        """Open the environment in folder `path`, only for reading if the file may not be written."""
        self.path = path
        self.name_synced = False  # whether this process made its name durable
        self._cache = Cache()
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._snapshot_lock = threading.Lock()
        self._file = open_data_file(path)
        # Others may still read while the process ends.
        weakref.finalize(self, os.close, self._file).atexit = False
        found = os.fstat(self._file)
        self._mapping: FileMap | None = None
        self._tree: Tree | None = None
        read_metas(self._file, path)  # liblmdb would take them as they are
        self._handle = None if is_sealed(path) else open_handle(path, self._file, self)
        self._data_file = found.st_dev, found.st_ino
        self._lock_file = self._handle.lock_file if self._handle else None

    @property
    def lmdb(self) -> lmdb.Environment:
        """Return liblmdb's environment; raise StoreError if the dataset is sealed, so that there is none."""
        if self._handle is None:
            raise StoreError(
                f"{self.path} is sealed, nothing is written to it; lift the seal with featstore seal --undo"
            )
        return self._handle.lmdb

    @property
    def reads_alone(self) -> bool:
        """Return whether it reads without liblmdb, because the dataset is sealed."""
        return self._handle is None

    @property
    def files(self) -> _Files:
        """Return device and inode of the data file and of the lock file, None for one that it does without."""
        return self._data_file, self._lock_file

    def is_current(self, path: Path | None = None) -> bool:
        """Return whether the files that it opened are those in the folder `path`, by default its own."""
        path = path or self.path
        if identify(f"{path}/{DATA_FILE}") != self._data_file:
            return False
        return self.reads_alone or identify(f"{path}/{LMDB_LOCK_FILE}") == self._lock_file

    def wait_for_others(self) -> None:
        """Wait until nobody reads through another lock file; raise StoreLocked after `OTHERS_WAIT` seconds.

        For a writer, before its first change: who reads so is not in the reader table that it goes by.
        """
        deadline = time.monotonic() + OTHERS_WAIT
        while self._lock_file and is_marked_by_others(self._file, self._lock_file[1]):
            if time.monotonic() >= deadline:
                raise StoreLocked(
                    f"{self.path / LMDB_LOCK_FILE} was deleted or replaced while it was in use, and a commit could "
                    "change what those still look at who opened it before: let go of their features, or end them "
                    f"(fuser -v {self.path / DATA_FILE} lists them), and run the command again; keep whatever deletes "
                    "lock files away from the cache"
                )
            time.sleep(_PAUSE)

    def settle(self, path: Path) -> None:
        """See that all find what was just committed in the folder `path`; raise StoreError if it is not there."""
        if self.is_current(path):
            return
        remove_lock_file(path)  # a process that opened it just now may have missed the commit
        if identify(path / DATA_FILE) != self._data_file:
            raise StoreError(
                f"{path / DATA_FILE} was removed or replaced while it was written, and what was written last is "
                "not in the dataset; run the command again"
            )

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot; the one in use is shared for as long as nothing was committed since."""
        with self._snapshot_lock:
            shared = self._snapshot() if self._snapshot else None
            try:
                if shared is None or (
                    not self.reads_alone and shared.txn_id != self.lmdb.info()["last_txnid"]
                ):
                    shared = self._begin()
                    self._snapshot = weakref.ref(shared)
            except lmdb.Error as exc:
                raise store_error(exc, self.path) from exc
            return shared

    def _begin(self) -> Snapshot:
        if self._handle is None:  # nobody writes: the newest commit stays the newest
            if self._tree is None:
                newest = max(read_metas(self._file, self.path), key=lambda meta: meta.txn_id)
                self._tree = Tree(self._map(), newest, self.path)
            return Snapshot(self, self.path, self._cache, None, self._tree)
        for _ in range(_BEGINS):
            txn = begin_reading(self.lmdb)
            tree = self._tree
            if tree is None or tree.txn_id != txn.id():
                metas = read_metas(self._file, self.path)
                tree = Tree(self._map(), metas[txn.id() & 1], self.path)
            if tree.txn_id == txn.id():
                self._tree = tree  # its branches serve until the next commit
                return Snapshot(self, self.path, self._cache, txn, tree)
            txn.abort()  # two commits came in between, and the second wrote over the page
        remove_lock_file(self.path)
        raise StoreError(
            f"{self.path / DATA_FILE} was replaced while it was opened, so that its last commit is not the one in "
            f"{LMDB_LOCK_FILE}, which was removed; run the command again"
        )

    def _map(self) -> FileMap:
        if self._mapping is None or self._mapping.file_bytes() > self._mapping.length:
            self._mapping = with_room(lambda: FileMap(self._file))
        return self._mapping


def make_file(path: Path, table: str, key: bytes, value: bytes) -> None:
    """Make the LMDB file in the folder `path` with one first row, unless a file is there.

    It is made aside and linked into place: readers see it whole or not at all, whenever its maker is killed.
    """
    with_room(lambda: _make_file(path, TABLES[table] + key, value))


def _make_file(path: Path, key: bytes, value: bytes) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path) as aside, translated(path):
            allocate_table(Path(aside))
            draft = open_liblmdb(Path(aside), readonly=False)
            with draft.begin(write=True) as txn:
                txn.put(key, value)
            draft.close()
            with contextlib.suppress(FileExistsError):
                os.link(os.path.join(aside, DATA_FILE), path / DATA_FILE)
    except StoreError:
        raise
    except OSError as exc:
        raise (StoreFull if exc.errno in DISK_FULL_ERRNOS else StoreError)(
            f"no dataset can be made in {path}: {because(exc, 'choose another --cache-dir')}"
        ) from exc


def open_environment(path: Path) -> Environment:
    """Return this process's environment for the folder `path`, opening it if it is not open yet.

    Follows the files, not their names: after a dataset was removed and made again, or its data file or lock file was
    replaced, the new ones are opened beside the old ones, whose views stay valid. So ask for each lookup. Raises
    StoreNotFound if there is none.
    """
    environment = None
    while environment is None:  # its file was replaced while it was opened
        environment = with_room(lambda: _known_or_opened(path))
        sweep()
    return environment


def _known_or_opened(path: Path) -> Environment | None:
    with lock:
        return _known(path) or _opened(path)


def _known(path: Path) -> Environment | None:
    data = identify(f"{path}/{DATA_FILE}")
    if data is None:
        raise StoreNotFound(f"there is no dataset in {path}; make it with featstore ingest")
    lock_file = identify(f"{path}/{LMDB_LOCK_FILE}")
    known = _environments.get((data, lock_file)) or _environments.get((data, None))
    return None if known and known.reads_alone and not is_sealed(path) else known


def _opened(path: Path) -> Environment | None:
    for keeper in keepers:  # what is kept of replaced files would be in the way of writers
        if keeper.environment is not None and not keeper.environment.is_current():
            keeper.environment = None
    warn_of_network(path)
    with contextlib.suppress(DataFileReplaced):
        environment = Environment(path)
        if environment.is_current():
            _environments[environment.files] = environment
            return environment
    return None


def open_snapshot(path: Path) -> Snapshot:
    """Return the newest snapshot of the dataset in the folder `path`; raise as `open_environment` does."""
    return open_environment(path).snapshot()


class Keeper:
    """Keeps the environment of a folder open from one lookup to the next.

    Of all keepers in a process the `KEPT_ENVIRONMENTS` used last do; what views use stays open besides.
    """

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self.environment: Environment | None = None
        self._path = path
        self._used = 0

    def open(self) -> Environment:
        """Return the environment of the files that are there now."""
        environment = open_environment(self._path)
        self._used = next(_uses)
        if self.environment is not environment:
            with lock:
                self.environment = environment
                keepers.add(self)
                keeping = [keeper for keeper in keepers if keeper.environment is not None]
                for keeper in sorted(keeping, key=_last_use)[:-KEPT_ENVIRONMENTS]:
                    keeper.environment = None
            sweep()
        return environment


def _last_use(keeper: Keeper) -> int:
    return keeper._used


def _keep_inherited() -> None:
    # In a forked child: keep the parent's environments as they are, for good, and open our own from now on.
    _inherited.extend(_environments.values())
    _environments.clear()
    leave_inherited()
    lock.release()


# Nobody opens or closes while the process forks: the child would have half of it.
os.register_at_fork(
    before=lock.acquire, after_in_parent=lock.release, after_in_child=_keep_inherited
)
