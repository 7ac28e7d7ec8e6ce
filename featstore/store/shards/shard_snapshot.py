"""A dataset of sealed shards as of one list of them: their indices say what there is, and each record proves itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from featstore.store.engine.pages import damaged
from featstore.store.engine.snapshot import Cache, MappedView, address_of
from featstore.store.manifest import MANIFEST_KEY
from featstore.store.rows import pack_row, unpack_entry
from featstore.store.shards.table import (
    Owner,
    Table,
    explain_differing,
    merge_failures,
    merge_manifests,
    merge_sets,
)
from featstore.system.reading_ahead import prefault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from featstore.errors import StoreDamaged
    from featstore.store.shards.base import MappedBytes, Records
    from featstore.store.shards.index import Index, RecordPlace
    from featstore.store.shards.manifest_list import ShardList


class PartPlace(NamedTuple):
    """Where a part of a record is: whose record, where in that shard, and which of its bytes."""

    owner: Owner
    record: RecordPlace
    start: int
    length: int


class ShardSnapshot:
    """What a dataset of sealed shards holds as one list of them says; nothing in it ever changes.

    A view keeps the memory that it is in and this snapshot. A key under which two shards hold different records is
    refused, by an error that names both, also if it is only one of many that are asked for.

    Attributes:
        path: The dataset's folder, or what messages call it by.
        shards: The list.
        cache: What the process knows of the records.
    """

    def __init__(
        self, path: Path, shards: ShardList, indices: Sequence[Index], records: Records
    ) -> None:
        """Merge the catalogs.

        Args:
            path: The dataset's folder, whose name is the dataset's.
            shards: The list.
            indices: Of each shard in it.
            records: Where the records' bytes are.

        Raises:
            StoreMismatch: A shard is of another dataset, or of another version of featstore.
            StoreDamaged: A row that all depend on is damaged.
        """
        self.path = path
        self.shards = shards
        self.cache = Cache()
        self._records = records
        self._indices = indices
        self._table = Table(indices)
        self._failures = merge_failures(indices, self._table)
        manifest = merge_manifests(indices, self._table, self._failures, path)
        self._small = {
            "manifest": {MANIFEST_KEY: pack_row(manifest)},
            "specs": merge_sets(indices),
            "failures": self._failures,
        }

    @property
    def txn_id(self) -> int:
        """Return the number of the list."""
        return self.shards.number

    def file_bytes(self) -> int:
        """Return the bytes of the shards' files."""
        return sum(row.file_bytes for row in self.shards.shards)

    def get(self, table: str, key: bytes) -> memoryview | None:
        """Return the record of `key` as a read-only view, or None; a small row as a copy."""
        if table != "records":
            row = self.read(table, key)
            return None if row is None else memoryview(row)
        owner = self._find(key)
        if owner is None:
            return None
        return self._view(self._whole(owner))

    def place(self, view: memoryview) -> PartPlace:
        """Return where a view is, or a part of one, that `get` or `view` gave."""
        part = _part_of(view)
        at = address_of(view) - part.address
        return PartPlace(part.place.owner, part.place.record, part.place.start + at, len(view))

    def view(self, place: Any) -> memoryview:
        """Return what is at `place`."""
        return self._view(place)

    def memory(self, view: memoryview) -> MappedBytes:
        """Return the map that a view is in."""
        return _part_of(view).memory

    def prefault(self, value: memoryview) -> None:
        """Have a view's pages, which are about to be touched, read from disk if need be."""
        prefault(self.memory(value), address_of(value), len(value))

    def read_ahead(self, key: bytes) -> None:
        """Start to bring the record of `key` into memory, without waiting; nothing if there is none."""
        owner = self._find(key)
        if owner is not None:
            found = self._indices[owner.shard].place(owner.at)
            self._records.read_ahead(self.shards.shards[owner.shard], found)

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return a copy of the row of `key`, or None."""
        if table == "catalog":
            owner = self._table.find(key)  # whose shards differ is known by name, too
            return None if owner is None else self._table.row(owner)
        if table == "records":
            value = self.get(table, key)
            return None if value is None else bytes(value)
        return self._small[table].get(key)

    def keys(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, in order."""
        if table in self._small:
            return (key for key in self._small[table] if key.startswith(prefix))
        return (key for key, _ in self._table.owners(prefix))

    def rows(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield copies of the keys and rows whose keys begin with `prefix`, in order."""
        if table in self._small:
            return (pair for pair in self._small[table].items() if pair[0].startswith(prefix))
        return ((key, self._table.row(owner)) for key, owner in self._table.owners(prefix))

    def values(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield copies of the rows whose keys begin with `prefix`, in the order of their keys."""
        return (row for _, row in self.rows(table, prefix))

    def salvage(self, table: str) -> tuple[list[bytes], list[StoreDamaged]]:
        """Return the keys of a table; an index that cannot be read has refused the whole before."""
        return list(self.keys(table)), []

    def count(self, table: str) -> int:
        """Return the number of keys."""
        return len(self._small[table]) if table in self._small else self._table.count

    def strays(self) -> Iterator[bytes]:
        """Yield nothing: an index has no keys but those of its tables."""
        return iter(())

    def _find(self, key: bytes) -> Owner | None:
        if key in self._table.differing:
            raise self._differing(key)
        return self._table.find(key)

    def _differing(self, key: bytes) -> StoreDamaged:
        owner, shards = self._table.find(key), self._table.differing[key]
        assert owner is not None
        video = unpack_entry(key, self._table.row(owner)).video_id
        names = [self.shards.shards[number].data_name for number in shards]
        return explain_differing(video, names, self.path)

    def _whole(self, owner: Owner) -> PartPlace:
        record = self._indices[owner.shard].place(owner.at)
        return PartPlace(owner, record, 0, record.length)

    def _view(self, place: PartPlace) -> memoryview:
        memory, offset = self._records.locate(self.shards.shards[place.owner.shard], place.record)
        start = offset + place.start
        if place.start + place.length > place.record.length or (
            start + place.length > memory.file_bytes()
        ):
            raise damaged(self.path, f"{place.length} bytes of a record are gone")
        return _Part(self, memory, memory.address + start, place).view()


class _Part(MappedView):
    """Memory of a record, which also holds its map."""

    def __init__(
        self, snapshot: ShardSnapshot, memory: MappedBytes, address: int, place: PartPlace
    ) -> None:
        super().__init__(snapshot, address, place.length)
        self.memory = memory
        self.address = address
        self.place = place


def _part_of(view: memoryview) -> _Part:
    """Return what a view was made of: slices of a view have its object."""
    array: Any = view.obj
    while not isinstance(array, _Part):
        array = array.base
    return array
