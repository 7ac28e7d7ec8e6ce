"""What one commit holds, and views on it: a view keeps its snapshot, a snapshot its environment.

A bare LMDB view outlives its transaction without any error, and shows other bytes after an overwrite.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featstore.store.engine.pages import damaged
from featstore.store.engine.settings import CACHED_RECORDS, MAX_ROW_BYTES
from featstore.store.engine.tree import Place
from featstore.system.reading_ahead import prefault, read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import lmdb

    from featstore.errors import StoreDamaged
    from featstore.records.header import Header
    from featstore.store.engine.tree import Tree
    from featstore.system.file_map import FileMap

# All keys are in one database, behind the name of their table: to open a database for each, py-lmdb would start a write
# transaction, so a reader would wait for any writer, and hold the interpreter lock while it waits.
TABLES = {
    name: f"{name}/".encode() for name in ("manifest", "specs", "catalog", "failures", "records")
}

_READING = 1e-3  # seconds: less than large records take to read from disk


class CachedRecord(NamedTuple):
    """What a process knows of a record: its header, where it and its parts are, whether its payload was verified."""

    txn_id: int
    header: Header
    place: Place
    scales: slice
    payload: slice
    verified: bool


class Cache:
    """What a process keeps of an environment from one lookup to the next; shared by all its snapshots and threads.

    What it says of a record holds for the commit `txn_id`. At a later one the record is read again, and only its
    verified payload is trusted if the checksum is still the same.

    Attributes:
        manifest: The number of a commit, and the dataset's manifest as of it.
        sets: The number of a commit, and the dataset's feature sets as of it, those that cannot be read too.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.manifest: tuple[int, Any] = (-1, None)
        self.sets: tuple[int, Any] = (-1, None)
        self._records: OrderedDict[bytes, CachedRecord] = OrderedDict()
        self._lock = threading.Lock()
        self._called = 0.0

    def paused(self) -> bool:
        """Return whether the last call is a millisecond ago, so that a large record may have been read since."""
        before, self._called = self._called, time.monotonic()
        return self._called - before > _READING

    def get(self, key: bytes) -> CachedRecord | None:
        """Return what is known of the record under `key`, or None."""
        with self._lock:
            found = self._records.get(key)
            if found is not None:
                self._records.move_to_end(key)
            return found

    def put(self, key: bytes, record: CachedRecord) -> None:
        """Keep `record`; the one used longest ago goes if there are more than `CACHED_RECORDS`."""
        with self._lock:
            self._records[key] = record
            self._records.move_to_end(key)
            if len(self._records) > CACHED_RECORDS:
                self._records.popitem(last=False)


class Snapshot:
    """One read transaction and all views taken from it; it ends when the last of them is gone.

    Attributes:
        path: The dataset's folder.
        txn_id: The number of the commit.
        mapping: The map that the views are in.
        cache: What the process knows of the environment.
    """

    def __init__(
        self,
        owner: object,
        path: Path,
        cache: Cache,
        txn: lmdb.Transaction | None,
        tree: Tree,
    ) -> None:
        """Keep `owner`, the environment, alive; take over its transaction, None if sealed, and the commit's tree."""
        self.path = path
        self.txn_id = tree.txn_id
        self.mapping = tree.mapping
        self.cache = cache
        self._owner = owner  # held, never asked
        self._txn = txn  # held, never asked
        self._tree = tree

    def get(self, table: str, key: bytes) -> memoryview | None:
        """Return the value of `key` as a read-only view on the map that keeps this snapshot, or None.

        Touches no page of a large value but its first.
        """
        place = self._tree.find(TABLES[table] + key)
        return None if place is None else self.view(place)

    def view(self, place: Place) -> memoryview:
        """Return the bytes at `place`, where this commit has a value, as a read-only view that keeps this snapshot."""
        if place.offset + place.length > self.mapping.file_bytes():
            raise damaged(self.path, f"{place.length} bytes at {place.offset} are gone")
        return MappedView(self, self.mapping.address + place.offset, place.length).view()

    def place(self, view: memoryview) -> Place:
        """Return the place of a view, or of a part of one, that `get` or `view` gave."""
        return Place(address_of(view) - self.mapping.address, len(view))

    def memory(self, view: memoryview) -> FileMap:
        """Return the map that a view of this snapshot is in."""
        return self.mapping

    def file_bytes(self) -> int:
        """Return the bytes of the file."""
        return self.mapping.file_bytes()

    def prefault(self, value: memoryview) -> None:
        """Have the pages of `value`, which `get` gave and which are about to be touched, read from disk if need be."""
        prefault(self.mapping, address_of(value), len(value))

    def read_ahead(self, key: bytes) -> None:
        """Start to read the record of `key` from disk, without waiting; nothing if there is none."""
        value = self.get("records", key)
        if value is not None:
            read_ahead(self.mapping, address_of(value), len(value))

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return a copy of the value of `key`, or None; for small rows."""
        place = self._tree.find(TABLES[table] + key)
        return None if place is None else self._row(place)

    def keys(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, in order, touching no value."""
        name = TABLES[table]
        for key in self._tree.keys(name + prefix):
            yield key[len(name) :]

    def rows(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield copies of the keys and values whose keys begin with `prefix`, in order."""
        name = TABLES[table]
        for keys, values in self._tree.rows(name + prefix, self._row):
            yield from zip([key[len(name) :] for key in keys], values, strict=True)

    def values(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield copies of the values whose keys begin with `prefix`, in the order of their keys."""
        pages = self._tree.rows(TABLES[table] + prefix, self._row)
        return chain.from_iterable(values for _, values in pages)

    def salvage(self, table: str) -> tuple[list[bytes], list[StoreDamaged]]:
        """Return the keys of a table on pages that can be read, and what is wrong with the others."""
        name = TABLES[table]
        keys, wrong = self._tree.salvage(name)
        return [key[len(name) :] for key in keys], wrong

    def count(self, table: str) -> int:
        """Return the number of keys, touching no value."""
        return sum(1 for _ in self.keys(table))

    def strays(self) -> Iterator[bytes]:
        """Yield the keys that belong to no table."""
        names = tuple(TABLES.values())
        return (key for key in self._tree.keys(b"") if not key.startswith(names))

    def _row(self, place: Place) -> bytes:
        if place.length > MAX_ROW_BYTES:  # before memory is taken for it
            raise damaged(self.path, f"a row of {place.length} bytes cannot be")
        return self.mapping.read(*place)


class MappedView:
    """Mapped memory, as numpy's array interface describes it: read-only, and it holds the snapshot it is of."""

    def __init__(self, snapshot: object, address: int, length: int) -> None:
        """Describe `length` bytes from `address` on, mapped for as long as `snapshot` lives."""
        self._snapshot = snapshot  # held, never asked
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True),
            "shape": (length,),
            "typestr": "|u1",
            "version": 3,
        }

    def view(self) -> memoryview:
        """Return the memory, which holds this."""
        return np.asarray(self).data


def address_of(memory: memoryview) -> int:
    """Return the address of a view's first byte."""
    address: int = np.frombuffer(memory, dtype=np.uint8).__array_interface__["data"][0]
    return address
