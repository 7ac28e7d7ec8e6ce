"""A dataset that lies elsewhere, read: its records come one by one, by ranged reads, into the local tier.

What was fetched before is served without the server.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from featstore.defaults import REMOTE_REFRESH
from featstore.errors import FeatstoreError, StoreDamaged
from featstore.records.record import LMDB_VALUE_OFFSET
from featstore.store.shards.base import Located
from featstore.store.shards.places import shard_file
from featstore.store.shards.remote.bucket import READ_BYTES, BucketPlace
from featstore.store.shards.remote.connection import copy_list, place_of
from featstore.store.shards.remote.tier import LocalTier
from featstore.store.shards.union import ShardReader, shared_reader
from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from featstore.store.shards.index import RecordPlace
    from featstore.store.shards.manifest_list import ShardRow
    from featstore.store.shards.remote.connection import Remote
    from featstore.store.shards.shard_snapshot import ShardSnapshot

_FETCHERS = 4  # records that one process fetches ahead at once


class FetchedRecords:
    """The records of a remote dataset, each fetched into the local tier when it is asked for; see Records."""

    def __init__(self, path: Path, remote: Remote) -> None:
        """Take the dataset's folder below the local one, and where it comes from; connect to nothing yet."""
        self._dataset = path.name
        self._tier = _tier(path.parent, remote.max_bytes, os.getpid())
        self._url = remote.url
        tell_of_forks(self)

    def locate(self, shard: ShardRow, record: RecordPlace) -> Located:
        """Return the record in the map of its file, fetched first if it is not there."""
        fetch = partial(self._fetch, shard, record)
        found = self._tier.get(self._dataset, record.digest, record.length, fetch)
        return Located(found, LMDB_VALUE_OFFSET)

    def read_ahead(self, shard: ShardRow, record: RecordPlace) -> None:
        """Start to fetch a record in another thread; what goes wrong there is met by who asks for it."""
        if not self._tier.has(self._dataset, record.digest):
            _fetchers(os.getpid()).submit(self._fetch_ahead, shard, record)

    def after_fork(self) -> None:
        """Take the tier of this process, a forked child; its locks are the system's."""
        self._tier = _tier(self._tier.folder, self._tier.max_bytes, os.getpid())

    def _fetch_ahead(self, shard: ShardRow, record: RecordPlace) -> None:
        with contextlib.suppress(FeatstoreError):
            self.locate(shard, record)

    def _fetch(
        self, shard: ShardRow, record: RecordPlace, take: Callable[[memoryview], None]
    ) -> None:
        place = place_of(self._url)
        name = shard_file(self._dataset, shard.data_name)
        if isinstance(place, BucketPlace):
            place.stream(name, record.offset, record.length, take)
            return
        buffer = memoryview(bytearray(min(READ_BYTES, record.length)))
        for at in range(0, record.length, READ_BYTES):
            piece = buffer[: min(READ_BYTES, record.length - at)]
            place.read_into(name, record.offset + at, piece)
            take(piece)


class RemoteReader(ShardReader):
    """The newest commit of a remote dataset; the server is asked for a newer one now and then. See Commits."""

    def __init__(self, path: Path, remote: Remote) -> None:
        """Read nothing yet."""
        super().__init__(path, FetchedRecords(path, remote))
        self._url = remote.url
        self._asked = time.monotonic()
        self._asking = threading.Lock()

    def snapshot(self) -> ShardSnapshot:
        """Return the newest commit that is known; the server is asked beside, however long it takes to answer."""
        due = time.monotonic() - self._asked > REMOTE_REFRESH
        if due and self._asking.acquire(blocking=False):
            threading.Thread(target=self._ask, name="featstore-list", daemon=True).start()
        return super().snapshot()

    def _ask(self) -> None:
        try:
            with contextlib.suppress(FeatstoreError):
                found = copy_list(place_of(self._url), self.path.name, self.path.parent)
                if found is not None and self._newest is not None:
                    # Not all lists are copied, so the one after this one may never come.
                    self._newest = self._newest if self._newest.shards == found else None
        finally:
            self._asked = time.monotonic()
            self._asking.release()

    def _read(self) -> ShardSnapshot:
        try:
            return super()._read()
        except StoreDamaged:  # a list or an index in the folder
            copy_list(place_of(self._url), self.path.name, self.path.parent, mend=True)
            return super()._read()

    def after_fork(self) -> None:
        """Renew the locks, which a thread of the parent may hold."""
        super().after_fork()
        self._asking = threading.Lock()


def remote_reader(path: Path, remote: Remote) -> ShardReader:
    """Return this process's reader of the dataset in the folder `path` of a local folder."""
    return shared_reader((str(path), remote), lambda: RemoteReader(path, remote))


# For one process each: threads do not survive a fork.
@lru_cache(maxsize=64)
def _tier(folder: Path, max_bytes: int, pid: int) -> LocalTier:
    return LocalTier(folder, max_bytes)


@lru_cache(maxsize=1)
def _fetchers(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_FETCHERS, "featstore-fetch")
