"""One LMDB environment per file per process.

With bare py-lmdb a view of a closed environment ends the process. Here views keep their snapshot (snapshot.py), a
snapshot its environment, and nobody closes an environment outright: the last reference does.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import stat
import threading
import weakref
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import lmdb

from featstore.errors import StoreError, StoreMismatch, StoreNotFound
from featstore.store.engine.handles import (
    SEALED,
    DataFileReplaced,
    begin_reading,
    close_ended,
    leave_inherited,
    lock,
    mark,
    open_handle,
    sweep,
)
from featstore.store.engine.lmdb_errors import store_error
from featstore.store.engine.pages import read_metas
from featstore.store.engine.reader_table import remove_lock_file
from featstore.store.engine.settings import KEPT_ENVIRONMENTS
from featstore.store.engine.snapshot import Cache, Snapshot
from featstore.store.engine.tree import Tree
from featstore.store.paths import DATA_FILE, LMDB_LOCK_FILE, because, identify, is_sealed
from featstore.system.file_map import FileMap
from featstore.system.filesystems import warn_of_network

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Made = TypeVar("Made")
_Files = tuple[tuple[int, int], "tuple[int, int] | None"]

_BEGINS = 100
# As liblmdb and the system say that no address space or no descriptor is left.
_NO_ROOM = tuple(map(os.strerror, (errno.ENOMEM, errno.EMFILE, errno.ENFILE)))

_uses = count(1)
_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()
_environments: weakref.WeakValueDictionary[_Files, Environment] = weakref.WeakValueDictionary()
_inherited: list[Environment] = []


class Environment:
    """An open environment; `open_environment` gives the process's own.

    liblmdb begins transactions, so that writers leave alone what a snapshot sees; the pages are read by ourselves (see
    tree.py), out of a map of our own.

    Attributes:
        path: The dataset's folder.
        file: The data file's descriptor.
        data_file: Its device and inode.
        lock_file: Those of the lock file, None if it does without.
        name_synced: Whether this process made its name durable.
    """

    def __init__(self, path: Path) -> None:
        """Open the environment in folder `path`, only for reading if the file may not be written."""
        self.path = path
        self.name_synced = False
        self._cache = Cache()
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._snapshot_lock = threading.Lock()
        self.file = _open_data_file(path)
        # Others may still read while the process ends.
        weakref.finalize(self, os.close, self.file).atexit = False
        found = os.fstat(self.file)
        self._mapping: FileMap | None = None
        self._tree: Tree | None = None
        read_metas(self.file, path)  # liblmdb would take them as they are
        if is_sealed(path):
            self._handle = None
            mark(self.file, SEALED)  # for writers, should somebody take the seal away
        else:
            self._handle = open_handle(path, self.file, self)
        self.data_file = found.st_dev, found.st_ino
        self.lock_file = self._handle.lock_file if self._handle else None

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

    def is_current(self, path: Path | str | None = None) -> bool:
        """Return whether the files that it opened are those in the folder `path`, by default its own."""
        path = path or self.path
        if identify(f"{path}/{DATA_FILE}") != self.data_file:
            return False
        if self.reads_alone:
            return is_sealed(path)
        return identify(f"{path}/{LMDB_LOCK_FILE}") == self.lock_file

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
                newest = max(read_metas(self.file, self.path), key=lambda meta: meta.txn_id)
                self._tree = Tree(self._map(), newest, self.path)
            return Snapshot(self, self.path, self._cache, None, self._tree)
        for _ in range(_BEGINS):
            txn = begin_reading(self.lmdb)
            tree = self._tree
            if tree is None or tree.txn_id != txn.id():
                metas = read_metas(self.file, self.path)
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
            self._mapping = with_room(lambda: FileMap(self.file))
        return self._mapping


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
    for keeper in _keepers:  # what is kept of replaced files would be in the way of writers
        if keeper.environment is not None and not keeper.environment.is_current():
            keeper.environment = None
    warn_of_network(path)
    with contextlib.suppress(DataFileReplaced):
        environment = Environment(path)
        if environment.is_current():
            _environments[environment.data_file, environment.lock_file] = environment
            return environment
    return None


def open_snapshot(path: Path) -> Snapshot:
    """Return the newest snapshot of the dataset in the folder `path`; raise as `open_environment` does."""
    return open_environment(path).snapshot()


def with_room(make: Callable[[], Made]) -> Made:
    """Return what `make` returns; once more, if address space or descriptors ran out, without all that is only kept."""
    try:
        return make()
    except StoreError as exc:
        if not any(words in str(exc.__cause__) for words in _NO_ROOM):
            raise
    for keeper in list(_keepers):
        keeper.environment = None
    gc.collect()  # views in cycles, such as those of errors that were caught
    with lock:
        close_ended()
    return make()


class Keeper:
    """Keeps the environment of a folder open from one lookup to the next.

    Of all keepers in a process the `KEPT_ENVIRONMENTS` used last do; what views use stays open besides.
    """

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self.environment: Environment | None = None
        self._path = path
        self._folder = str(path)  # made once, not at each lookup
        self._used = 0

    def open(self) -> Environment:
        """Return the environment of the files that are there now."""
        self._used = next(_uses)
        environment = self.environment
        if environment is None or not environment.is_current(self._folder):
            environment = open_environment(self._path)
            with lock:
                self.environment = environment
                _keepers.add(self)
                keeping = [keeper for keeper in _keepers if keeper.environment is not None]
                keeping.sort(key=lambda keeper: keeper._used)
                for keeper in keeping[:-KEPT_ENVIRONMENTS]:
                    keeper.environment = None
        sweep()
        return environment


def _open_data_file(path: Path) -> int:
    try:
        fd = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise StoreNotFound(
            f"there is no dataset in {path}; make it with featstore ingest"
        ) from exc
    except OSError as exc:
        raise StoreError(f"{path / DATA_FILE} cannot be opened: {because(exc)}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreMismatch(f"{path / DATA_FILE} is not a file; put a dataset's own there")
    return fd


def _keep_inherited() -> None:
    # In a forked child: keep the parent's environments as they are, for good, and open our own from now on.
    _inherited.extend(_environments.values())
    _environments.clear()
    for keeper in _keepers:
        keeper.environment = None
    leave_inherited()
    lock.release()


# Nobody opens or closes while the process forks: the child would have half of it.
os.register_at_fork(
    before=lock.acquire, after_in_parent=lock.release, after_in_child=_keep_inherited
)
