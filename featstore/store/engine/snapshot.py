"""What one commit holds, and views on it: a view keeps its snapshot, a snapshot its environment.

A bare LMDB view outlives its transaction without any error, and shows other bytes after an overwrite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.store.engine.pages import damaged
from featstore.store.engine.tree import Place
from featstore.store.paths import DATA_FILE
from featstore.system.page_cache import is_resident, read_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    import lmdb

    from featstore.store.engine.environment import Environment
    from featstore.store.engine.tree import Tree

# All keys lie in one database, behind the name of their table: to open a database of its own for each, py-lmdb would
# begin a write transaction, so a reader would wait for whoever is writing, and hold the interpreter lock meanwhile.
TABLES = {
    name: f"{name}/".encode() for name in ("manifest", "specs", "catalog", "failures", "records")
}
MAX_ROW_BYTES = 1 << 20


class Snapshot:
    """One read transaction and all views taken from it; it ends when the last of them is gone.

    mapping: the map that the views lie in. learnt: what readers note of this commit's values, by key; kept until the
    next one.
    """

    def __init__(self, environment: Environment, txn: lmdb.Transaction | None, tree: Tree) -> None:
        """Take over the transaction, None where nobody writes, and the tree of its commit."""
        self.environment = environment
        self.mapping = tree.mapping
        self.txn_id = tree.txn_id
        self.learnt = tree.learnt
        self._txn = txn  # held, never asked
        self._tree = tree

    def get(self, table: str, key: bytes) -> memoryview | None:
        """Return the value of `key` as a read-only view on the map that keeps this snapshot, or None.

        Touches no page of a large value but its first.
        """
        place = self._tree.find(TABLES[table] + key)
        return None if place is None else self.view(place)

    def view(self, place: Place) -> memoryview:
        """Return what lies at `place`, where this commit has a value, as a read-only view that keeps this snapshot."""
        if place.offset + place.length > self.mapping.file_bytes():
            raise damaged(self.environment.path, f"{place.length} bytes at {place.offset} are gone")
        return _View(self, place).memory()

    def place(self, view: memoryview) -> Place:
        """Return where a view lies, or a part of one, that `get` or `view` gave."""
        return Place(_address(view) - self.mapping.address, len(view))

    def read_in(self, value: memoryview) -> list[Future[None]]:
        """Begin to read the pages of `value`, which `get` gave, from disk; nothing where they are in memory."""
        if is_resident(_address(value), len(value)):
            return []
        return read_in(self.environment.path / DATA_FILE, *self.place(value))

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
        for key, place in self._tree.scan(name + prefix):
            yield key[len(name) :], self._row(place)

    def count(self, table: str) -> int:
        """Return the number of keys, touching no value."""
        return sum(1 for _ in self.keys(table))

    def strays(self) -> Iterator[bytes]:
        """Yield the keys that belong to no table."""
        names = tuple(TABLES.values())
        return (key for key in self._tree.keys(b"") if not key.startswith(names))

    def _row(self, place: Place) -> bytes:
        if place.length > MAX_ROW_BYTES:  # before memory is taken for it
            raise damaged(self.environment.path, f"a row of {place.length} bytes cannot be")
        return self.mapping.read(*place)


class _View:
    """Memory inside the map, as numpy's array interface describes it: read-only, and it holds its snapshot."""

    def __init__(self, snapshot: Snapshot, place: Place) -> None:
        self._snapshot = snapshot
        self.__array_interface__: dict[str, Any] = {
            "data": (snapshot.mapping.address + place.offset, True),
            "shape": (place.length,),
            "typestr": "|u1",
            "version": 3,
        }

    def memory(self) -> memoryview:
        return np.asarray(self).data


def _address(memory: memoryview) -> int:
    address: int = np.frombuffer(memory, dtype=np.uint8).__array_interface__["data"][0]
    return address
