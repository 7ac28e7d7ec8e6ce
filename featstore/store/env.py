"""One LMDB environment per file per process.

With bare py-lmdb a view of a closed environment ends the process. Here views keep their snapshot (snapshot.py), a
snapshot its environment, and nobody closes an environment outright: the last reference does.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import lmdb._envid

from featstore.errors import StoreError, StoreFull, StoreMismatch, StoreNotFound
from featstore.store.layout import DATA_FILE, LMDB_LOCK_FILE, is_sealed, lmdb_name
from featstore.store.lmdb_errors import MAP_BYTES, MAX_READERS, translated
from featstore.store.mapping import Mapping
from featstore.store.mounts import is_read_only_disk, warn_of_network
from featstore.store.pages import damaged, read_metas
from featstore.store.readers import allocate_table
from featstore.store.room import NO_ROOM
from featstore.store.snapshot import TABLES, Snapshot
from featstore.store.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_BEGINS = 100

_lock = threading.Lock()
_environments: weakref.WeakValueDictionary[tuple[int, int], Environment] = (
    weakref.WeakValueDictionary()
)
_inherited: list[Environment] = []
_forked = False


class Environment:
    """An open environment; `open_environment` gives the process's own.

    liblmdb begins transactions, so that writers leave alone what a snapshot sees; the pages are read by ourselves (see
    tree.py), out of a map of our own.
    """

    def __init__(self, path: Path) -> None:
        """Open the environment in folder `path`, for reading alone where the file may not be written."""
        self.path = path
        self.verified: set[tuple[bytes, int]] = set()  # (record key, checksum) proved once
        self.sets: tuple[int, dict[str, Any]] = (
            -1,
            {},
        )  # a snapshot's number, the feature sets as of it
        self.name_kept = False  # whether its name was made durable by this process
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._snapshot_lock = threading.Lock()
        self._file = _open_file(path)
        # Others may still read while the process ends.
        weakref.finalize(self, os.close, self._file).atexit = False
        self._mapping: Mapping | None = None
        self._tree: Tree | None = None
        read_metas(self._file, path)  # liblmdb would take them as they are
        self._lmdb = None if is_sealed(path) else _open_for_transactions(path)

    @property
    def lmdb(self) -> lmdb.Environment:
        """Return liblmdb's environment; raise StoreError where the dataset is sealed, so that there is none."""
        if self._lmdb is None:
            raise StoreError(
                f"{self.path} is sealed, nothing is written to it; lift the seal with featstore seal --undo"
            )
        return self._lmdb

    @property
    def reads_alone(self) -> bool:
        """Return whether it reads without liblmdb, the dataset being sealed."""
        return self._lmdb is None

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot; the one in use is shared for as long as nothing was committed since."""
        with self._snapshot_lock, translated(self.path):
            shared = self._snapshot() if self._snapshot else None
            if self._lmdb is None and not is_sealed(self.path) and self._is_there():
                self._lmdb, shared = _open_for_transactions(self.path), None
            if shared is None or (
                self._lmdb is not None and shared.txn_id != self._lmdb.info()["last_txnid"]
            ):
                shared = self._begin()
                self._snapshot = weakref.ref(shared)
            return shared

    def _begin(self) -> Snapshot:
        if self._lmdb is None:  # nobody writes: the newest commit stays the newest
            if self._tree is None:
                newest = max(read_metas(self._file, self.path), key=lambda meta: meta.txn_id)
                self._tree = Tree(self._map(), newest, self.path)
            return Snapshot(self, None, self._tree)
        for _ in range(_BEGINS):
            txn = _begin_reading(self._lmdb)
            tree = self._tree
            if tree is None or tree.txn_id != txn.id():
                metas = read_metas(self._file, self.path)
                tree = Tree(self._map(), metas[txn.id() & 1], self.path)
            if tree.txn_id == txn.id():
                self._tree = tree  # what it learns serves until the next commit
                return Snapshot(self, txn, tree)
            txn.abort()  # two commits came in between, and the second wrote over the page
        raise damaged(self.path, "its first pages do not speak of its last commit")

    def _is_there(self) -> bool:
        # To lift a seal puts a copy in the file's place: the sealed file itself is never written again.
        opened = os.fstat(self._file)
        return _identity(self.path) == (opened.st_dev, opened.st_ino)

    def _map(self) -> Mapping:
        if self._mapping is None or self._mapping.file_bytes() > self._mapping.length:
            self._mapping = Mapping(self._file)
        return self._mapping


def make_file(path: Path, table: str, key: bytes, value: bytes) -> None:
    """Make the LMDB file in the folder `path` with one first row, unless a file is there.

    It is made aside and linked into place: whoever looks, whenever the maker is killed, sees it whole or not at all.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path) as aside, translated(path):
            draft = _open(Path(aside), readonly=False)
            with draft.begin(write=True) as txn:
                txn.put(TABLES[table] + key, value)
            draft.close()
            with contextlib.suppress(FileExistsError):
                os.link(os.path.join(aside, DATA_FILE), path / DATA_FILE)
    except StoreError:
        raise
    except OSError as exc:
        raise (StoreFull if exc.errno in NO_ROOM else StoreError)(
            f"no dataset can be made in {path}: {exc}; choose another --cache-dir"
        ) from exc


def open_environment(path: Path) -> Environment:
    """Return this process's environment for the folder `path`, opening it where it is not open yet.

    Follows the file, not its name: after a dataset was removed and made again, the new file is opened beside the old
    one, whose views stay good. Raises StoreNotFound where there is none.
    """
    with _lock:
        key = _identity(path)
        known = _environments.get(key) if key else None
        if known is not None:
            return known
        if key is None:
            raise StoreNotFound(f"there is no dataset in {path}; make it with featstore ingest")
        warn_of_network(path)
        environment = Environment(path)
        if _identity(path) == key:
            _environments[key] = environment
            return environment
        del environment  # it may hold the new file open already, and none is opened twice
    return open_environment(path)  # the file was replaced while it was opened


def _open_for_transactions(path: Path) -> lmdb.Environment:
    if os.path.islink(path / LMDB_LOCK_FILE):  # liblmdb would write over whatever it leads to
        raise StoreError(
            f"{path / LMDB_LOCK_FILE} is a link, and no link is written through; remove it"
        )
    if os.statvfs(path).f_flag & os.ST_RDONLY and not is_read_only_disk(path):
        # liblmdb would read it without a slot in the reader table, and a writer elsewhere use its pages again.
        raise StoreError(
            f"{path} is mounted read-only here: whoever writes to it elsewhere cannot see who reads, and could change "
            "what is being read; mount it writable, or seal it where it may be written: featstore seal --dataset "
            f"{path.name} --cache-dir ..."
        )
    with translated(path), _beside_inherited():
        opened = _open(path, readonly=not os.access(path / DATA_FILE, os.W_OK))
        opened.reader_check()  # clears the slots of readers that were killed
        return opened


def _begin_reading(environment: lmdb.Environment) -> lmdb.Transaction:
    try:
        return environment.begin()
    except lmdb.ReadersFullError:
        environment.reader_check()  # readers that were killed hold slots until somebody looks
        return environment.begin()


def _open(folder: Path, *, readonly: bool) -> lmdb.Environment:
    allocate_table(folder)
    with lmdb_name(folder) as name:
        return lmdb.open(
            name,
            map_size=MAP_BYTES,
            max_readers=MAX_READERS,
            readonly=readonly,
            create=False,
            mode=0o666,  # of what it makes; the umask says who may write it
            lib_version=0,
        )


def _open_file(path: Path) -> int:
    try:
        fd = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise StoreNotFound(
            f"there is no dataset in {path}; make it with featstore ingest"
        ) from exc
    except OSError as exc:
        raise StoreError(f"{path / DATA_FILE} cannot be opened: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreMismatch(f"{path / DATA_FILE} is no file; put a dataset's own there")
    return fd


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(f"{path}/{DATA_FILE}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise StoreError(f"{path} cannot be looked into: {exc.strerror}") from exc
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _beside_inherited() -> Iterator[None]:
    # py-lmdb refuses a file twice in one process and takes an environment inherited through fork for the first time.
    # Closing that one instead was measured: it wipes the parent's reader slots and unmaps views the child still holds.
    if not _forked:
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
    global _forked, _lock
    _forked = True
    _lock = threading.Lock()
    _inherited.extend(_environments.values())
    _environments.clear()


os.register_at_fork(after_in_child=_leave_inherited_alone)
