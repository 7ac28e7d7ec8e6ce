"""A dataset of sealed shards on a disk of this machine: one reader of it a process, which maps the files.

A shard's file is mapped at the first lookup in it, to its size, and no descriptor is kept: 2,000 shards of 64 GiB fit
into the address space of a process and none of them into its limit on open files.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

import xxhash

from featstore.errors import StoreDamaged, StoreError, StoreNotFound
from featstore.store.engine.environment import with_room
from featstore.store.paths import SHARDS_FOLDER, because
from featstore.store.shards.base import Located
from featstore.store.shards.index import MAX_INDEX_BYTES, unpack_index
from featstore.store.shards.manifest_list import list_name, read_list
from featstore.store.shards.places import GOOD_COPY, LocalPlace, shard_file
from featstore.store.shards.shard_snapshot import ShardSnapshot
from featstore.system.file_map import FixedMap
from featstore.system.filesystems import unreliable_kind
from featstore.system.forks import tell_of_forks
from featstore.system.reading_ahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

    from featstore.store.shards.base import Records
    from featstore.store.shards.index import Index, RecordPlace
    from featstore.store.shards.manifest_list import ShardRow
    from featstore.store.shards.places import FilePlace


class MappedShards:
    """The records in shard files on a local disk, each file mapped once, at the first lookup in it; see Records."""

    def __init__(self, path: Path) -> None:
        """Take the dataset's folder."""
        self.folder = path / SHARDS_FOLDER
        self._maps: dict[str, FixedMap] = {}
        self._lock = threading.Lock()
        tell_of_forks(self)

    def locate(self, shard: ShardRow, record: RecordPlace) -> Located:
        """Return the record in the map of its shard."""
        found = self._maps.get(shard.shard)
        if found is None:
            with self._lock:
                found = self._maps.get(shard.shard) or self._map(shard)
        return Located(found, record.offset)

    def read_ahead(self, shard: ShardRow, record: RecordPlace) -> None:
        """Start to read a record from disk."""
        memory, offset = self.locate(shard, record)
        read_ahead(memory, memory.address + offset, record.length)

    def after_fork(self) -> None:
        """Renew the lock, which a thread of the parent may hold; the maps are a child's too."""
        self._lock = threading.Lock()

    def _map(self, shard: ShardRow) -> FixedMap:
        path = self.folder / shard.data_name
        kind = unreliable_kind(path)
        if kind is not None:
            raise StoreError(
                f"{path} is on a network file system ({kind}), where a map of it cannot be relied upon",
                remedy="have records copied to a local disk as they are read: featstore.open(CACHE_DIR, local=FOLDER), "
                "or copy the dataset with featstore merge",
            )
        try:
            found = with_room(lambda: FixedMap(path))
        except FileNotFoundError as exc:
            raise StoreDamaged(f"the shard {path} is gone", remedy=GOOD_COPY) from exc
        except OSError as exc:
            if isinstance(exc, StoreError):
                raise
            raise StoreError(f"{path} cannot be opened: {because(exc)}") from exc
        if found.length != shard.file_bytes:
            raise StoreDamaged(
                f"{path} has {found.length} bytes, not the {shard.file_bytes} of the shard",
                remedy=GOOD_COPY,
            )
        self._maps[shard.shard] = found
        return found


class ShardReader:
    """The newest commit of a dataset of sealed shards in a folder, and what of it stays open; see Commits.

    Attributes:
        path: The dataset's folder.
    """

    def __init__(self, path: Path, records: Records) -> None:
        """Read nothing yet.

        Args:
            path: The dataset's folder, which has the list and the indices.
            records: Where the records' bytes are.
        """
        self.path = path
        self._folder = path / SHARDS_FOLDER
        self._place = LocalPlace(path.parent)
        self._records = records
        self._indices: dict[str, Index] = {}
        self._lock = threading.Lock()
        self._newest: ShardSnapshot | None = None
        self._newest_list = self._next_list = ""
        self._list_file: tuple[int, ...] = ()
        tell_of_forks(self)

    def snapshot(self) -> ShardSnapshot:
        """Return the newest commit; StoreNotFound if there is none any more."""
        newest = self._newest
        if newest is not None and self._is_newest():
            return newest
        with self._lock:
            return self._read()

    def after_fork(self) -> None:
        """Renew the lock, which a thread of the parent may hold."""
        self._lock = threading.Lock()

    def _is_newest(self) -> bool:
        return not _identify(self._next_list) and _identify(self._newest_list) == self._list_file

    def _read(self) -> ShardSnapshot:
        shards = read_list(self._place, self.path.name)
        if not shards.number:
            self._newest = None
            raise StoreNotFound(
                f"there is no dataset in {self.path}; make it with featstore ingest"
            )
        self._newest_list, self._next_list = (
            f"{self._folder}/{list_name(number)}" for number in (shards.number, shards.number + 1)
        )
        list_file = _identify(self._newest_list)
        for row in shards.shards:
            if row.index_xxh3 not in self._indices:
                _, self._indices[row.index_xxh3] = read_index(self._place, self.path.name, row)
        indices = [self._indices[row.index_xxh3] for row in shards.shards]
        self._newest = ShardSnapshot(self.path, shards, indices, self._records)
        self._list_file = list_file
        return self._newest


def read_index(place: FilePlace, dataset: str, row: ShardRow) -> tuple[bytes, Index]:
    """Return the file of a shard's index, which is verified, and what it says.

    Raises:
        StoreError: It cannot be had.
        StoreDamaged: It is not the one that the list names, or damaged.
        StoreMismatch: It is of another version of featstore.
    """
    name = shard_file(dataset, row.index_name)
    try:
        data = place.read(name, min(row.index_bytes, MAX_INDEX_BYTES))
    except FileNotFoundError as exc:
        raise StoreDamaged(f"{place.where}/{name} is gone", remedy=GOOD_COPY) from exc
    if xxhash.xxh3_128_hexdigest(data) != row.index_xxh3:
        raise StoreDamaged(
            f"{place.where}/{name} is not the index that the list of shards names",
            remedy=GOOD_COPY,
        )
    found = unpack_index(memoryview(data), f"{place.where}/{name}")
    facts = found.shard, found.file_bytes, len(found)
    if facts != (row.shard, row.file_bytes, row.videos):
        raise StoreDamaged(
            f"{place.where}/{name} is of another shard than the list of shards says",
            remedy=GOOD_COPY,
        )
    return data, found


class _Readers:
    """The readers that a process shares, each for as long as anything refers to it; a forked child has them too."""

    def __init__(self) -> None:
        self._there: weakref.WeakValueDictionary[Hashable, ShardReader] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.Lock()
        tell_of_forks(self)

    def get(self, key: Hashable, make: Callable[[], ShardReader]) -> ShardReader:
        with self._lock:
            found = self._there.get(key)
            if found is None:
                found = self._there[key] = make()
            return found

    def after_fork(self) -> None:
        self._lock = threading.Lock()


_readers = _Readers()


def shard_reader(path: Path) -> ShardReader:
    """Return this process's reader of the dataset of shards in the folder `path`."""
    return shared_reader(str(path), lambda: ShardReader(path, MappedShards(path)))


def shared_reader(key: Hashable, make: Callable[[], ShardReader]) -> ShardReader:
    """Return this process's reader under `key`, made by `make` if there is none."""
    return _readers.get(key, make)


def _identify(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
