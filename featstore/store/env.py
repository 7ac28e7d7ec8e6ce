"""One LMDB environment per file per process, its snapshots, and views that hold them.

With bare py-lmdb a view outlives its transaction without any error: after an overwrite it shows other bytes, after the
environment is closed it ends the process. Here a view keeps its snapshot alive, a snapshot its environment, and nobody
closes an environment outright: the last reference does.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import lmdb._envid
import numpy as np

from featstore.errors import StoreError, StoreFull, StoreMismatch, StoreNotFound
from featstore.readin import is_resident, read_in
from featstore.store.layout import DATA_FILE
from featstore.store.pages import map_base, overflow_page, value_address
from featstore.store.readers import allocate_table
from featstore.store.room import NO_ROOM, is_full

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

# All keys lie in one database, behind the name of their table: to open a database of its own for each, py-lmdb would
# begin a write transaction, so a reader would wait for whoever is writing, and hold the interpreter lock meanwhile.
TABLES = {
    name: f"{name}/".encode() for name in ("manifest", "specs", "catalog", "failures", "records")
}
# Virtual address space, not disk: the file is as large as its records. Growing a map would kill its views.
MAP_BYTES = 4 << 40
MAX_READERS = 1022

_lock = threading.Lock()
_environments: weakref.WeakValueDictionary[tuple[int, int], Environment] = (
    weakref.WeakValueDictionary()
)
_inherited: list[Environment] = []
_forked = False


class Environment:
    """An open environment; `open_environment` gives the process's own."""

    def __init__(self, path: Path) -> None:
        """Open the environment in folder `path`, for reading alone where the file may not be written."""
        self.path = path
        self.verified: set[tuple[bytes, int]] = set()  # (record key, checksum) proved once
        self.sets: tuple[int, dict[str, Any]] = (
            -1,
            {},
        )  # a snapshot's number, the feature sets as of it
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._snapshot_lock = threading.Lock()
        with translated(path), _beside_inherited():
            self.lmdb = _open(path, readonly=not os.access(path / DATA_FILE, os.W_OK))
            self.page_bytes: int = self.lmdb.stat()["psize"]
            self.base: int | None = None  # where the map begins, known after the first large value
            self.lmdb.reader_check()  # clears the slots of readers that were killed

    def missing_bytes(self) -> int:
        """Return how many bytes the file lacks for the pages it speaks of; more than 0 where a copy was cut short."""
        # The number is asked first: a file being written grows before its number does.
        pages = self.last_page() + 1
        return max(0, pages * self.page_bytes - os.stat(self.path / DATA_FILE).st_size)

    def last_page(self) -> int:
        """Return the number of the last page in use."""
        last: int = self.lmdb.info()["last_pgno"]
        return last

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
        try:
            self._txn = environment.lmdb.begin(buffers=True)
        except lmdb.ReadersFullError:
            environment.lmdb.reader_check()  # readers that were killed hold slots until somebody looks
            self._txn = environment.lmdb.begin(buffers=True)
        self.txn_id: int = self._txn.id()
        self._lock = threading.Lock()  # LMDB allows a read transaction one thread at a time

    def get(self, table: str, key: bytes) -> memoryview | None:
        """Return the value of `key` as a read-only view on the map that keeps this snapshot, or None.

        Touches no page of a large value, once a first one has shown where the map begins.
        """
        with self._lock, translated(self.environment.path):
            place = self._locate(TABLES[table] + key)
        return None if place is None else _View(self, *place).memory()

    def read_in(self, value: memoryview) -> list[Future[None]]:
        """Begin to read the pages of `value`, which `get` gave, from disk; nothing where they are in memory."""
        base, address = self.environment.base, _address(value)
        if base is None or is_resident(address, len(value)):
            return []
        return read_in(self.environment.path / DATA_FILE, address - base, len(value))

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return a copy of the value of `key`, or None; for small rows."""
        with self._lock, translated(self.environment.path):
            value = self._txn.get(TABLES[table] + key)
            return None if value is None else bytes(value)

    def keys(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, in order, touching no value."""
        for key, _ in self._scan(table, prefix, values=False):
            yield key

    def rows(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield copies of the keys and values whose keys begin with `prefix`, in order."""
        yield from self._scan(table, prefix, values=True)

    def count(self, table: str) -> int:
        """Return the number of keys, touching no value."""
        return sum(1 for _ in self.keys(table))

    def _locate(self, name: bytes) -> tuple[int, int] | None:
        """Return address and length of the value of the key `name`, or None."""
        cursor = self._txn.cursor()
        if not cursor.set_key(name):
            return None
        environment = self.environment
        large = overflow_page(_address(cursor.key()), len(name))
        if large and environment.base is not None and large[0] <= environment.last_page():
            address = value_address(environment.base, *large, environment.page_bytes)
            if address is not None:
                return address, large[1]
        value = cursor.value()
        if large:
            environment.base = map_base(_address(value), large[0], environment.page_bytes)
        return _address(value), len(value)

    def _scan(self, table: str, prefix: bytes, *, values: bool) -> Iterator[tuple[bytes, bytes]]:
        name = TABLES[table]
        with self._lock, translated(self.environment.path):
            cursor = self._txn.cursor()
            more = cursor.set_range(name + prefix)
        while more:
            with self._lock, translated(self.environment.path):
                key = bytes(cursor.key())
                if not key.startswith(name + prefix):
                    return
                row = key[len(name) :], bytes(cursor.value()) if values else b""
                more = cursor.next()
            yield row


class _View:
    """Memory inside the map, as numpy's array interface describes it: read-only, and it holds its snapshot."""

    def __init__(self, snapshot: Snapshot, address: int, length: int) -> None:
        self._snapshot = snapshot
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True),
            "shape": (length,),
            "typestr": "|u1",
            "version": 3,
        }

    def memory(self) -> memoryview:
        return np.asarray(self).data


def _address(memory: memoryview) -> int:
    address: int = np.frombuffer(memory, dtype=np.uint8).__array_interface__["data"][0]
    return address


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
        environment = Environment(path)
        if _identity(path) == key:
            _environments[key] = environment
            return environment
    return open_environment(path)  # the file was replaced while it was opened


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
    named = isinstance(exc, lmdb.DiskError) or any(words in str(exc) for words in _FULL)
    if named or is_full(path):
        return StoreFull(
            f"{path}: the disk, the quota or the limit on a file's size is full ({exc}); free some space and run the "
            "command again"
        )
    return StoreError(
        f"{path}: LMDB refused: {exc}; run featstore check, and mend the disk if it fails again"
    )


# ENOSPC, EDQUOT and EFBIG, in libc's words.
_FULL = ("No space left", "quota exceeded", "File too large")
_DAMAGED = "the file is damaged; run featstore check, then remove the dataset and ingest it again"
_MEANINGS: tuple[tuple[tuple[type[lmdb.Error], ...], type[StoreError], str], ...] = (
    (
        (lmdb.MapFullError,),
        StoreFull,
        f"the map of {MAP_BYTES >> 40} TiB is full; ingest into another dataset",
    ),
    (
        (lmdb.ReadersFullError,),
        StoreError,
        f"{MAX_READERS} readers are at work, no more fit; end some of them",
    ),
    (
        (
            lmdb.BadChecksumError,
            lmdb.CorruptedError,
            lmdb.PageFullError,
            lmdb.PageNotFoundError,
            lmdb.PanicError,
        ),
        StoreError,
        _DAMAGED,
    ),
    (
        (
            lmdb.CryptoFailError,
            lmdb.EnvEncryptionError,
            lmdb.IncompatibleError,
            lmdb.InvalidError,
            lmdb.VersionMismatchError,
        ),
        StoreMismatch,
        "the file is not of LMDB engine 0.9 as featstore's are: of engine 1.0, of another program, or damaged; "
        "put a copy of the right one there, or ingest into another --cache-dir",
    ),
    (
        (lmdb.LockError, lmdb.ReadonlyError),
        StoreError,
        "LMDB's readers too must write lock.mdb; get write permission on the folder and what is in it, or, to read "
        "alone, ask its owner to seal it: featstore seal",
    ),
    ((lmdb.MapResizedError,), StoreError, "another program changed the map; start again"),
    ((lmdb.MemoryError,), StoreError, "no memory for the map; lift the limit on address space"),
    (
        (
            lmdb.BadDbiError,
            lmdb.BadRslotError,
            lmdb.BadTxnError,
            lmdb.BadValsizeError,
            lmdb.CursorFullError,
            lmdb.DbsFullError,
            lmdb.InvalidParameterError,
            lmdb.KeyExistsError,
            lmdb.NotFoundError,
            lmdb.ProblemError,
            lmdb.TlsFullError,
            lmdb.TxnFullError,
        ),
        StoreError,
        "featstore asked LMDB for what it cannot do; please report this with the traceback",
    ),
)


def _open(folder: Path, *, readonly: bool) -> lmdb.Environment:
    allocate_table(folder)
    return lmdb.open(
        os.fspath(folder),
        map_size=MAP_BYTES,
        max_readers=MAX_READERS,
        readonly=readonly,
        create=False,
        lib_version=0,
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path / DATA_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise StoreError(f"{path} cannot be looked into: {exc.strerror}") from exc
    return stat.st_dev, stat.st_ino


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
