"""Writing: records and their catalog rows in one transaction, so that a video appears whole or not at all."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import lmdb
import xxhash

from featstore.codecs import compress
from featstore.errors import StoreFull
from featstore.record import PAGE, pack_prefix
from featstore.store.catalog import (
    MANIFEST_KEY,
    Entry,
    Failure,
    FeatureSet,
    Manifest,
    pack_row,
    read_manifest,
    set_key,
    video_key,
)
from featstore.store.env import open_environment, store_error
from featstore.store.layout import dataset_path, make_folder, stored_bytes

if TYPE_CHECKING:
    from featstore.record import Header
    from featstore.spec import FeatureSpec

# One 63 MiB record fills a commit; small ones share it, and with it the cost of the sync.
COMMIT_BYTES = 32 << 20
MIN_FREE_BYTES = 1 << 30
# Pages of the tree and of LMDB's free list that a commit may write beside its records.
_SLACK_BYTES = 1 << 20


class FeatureWriter:
    """Puts records into one dataset and commits them by bytes; made durable with each commit.

    min_free: bytes that stay free on the disk. max_size: bytes the whole cache directory may take, None for no limit.
    Usable in `with`: leaving commits, an exception inside drops what was not committed.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        dataset: str,
        *,
        min_free: int = MIN_FREE_BYTES,
        max_size: int | None = None,
        commit_bytes: int = COMMIT_BYTES,
    ) -> None:
        """Open the dataset, making it where it is not there yet."""
        self.dataset = dataset
        self.path = dataset_path(cache_dir, dataset)
        make_folder(self.path)
        self._cache_dir = cache_dir
        self._min_free = min_free
        self._max_size = max_size
        self._commit_bytes = commit_bytes
        self._environment = open_environment(self.path, create=True)
        self._txn: lmdb.Transaction | None = None
        self._pending: list[Entry | Failure] = []
        self._pending_bytes = 0
        if self._environment.snapshot().read("manifest", MANIFEST_KEY) is None:
            self._put("manifest", MANIFEST_KEY, pack_row(Manifest(dataset, time.time())))
            self.commit()
        read_manifest(self._environment.snapshot())

    @property
    def due(self) -> bool:
        """Return whether enough bytes wait to be worth a commit."""
        return self._pending_bytes >= self._commit_bytes

    def add_set(self, spec: FeatureSpec, origin: str) -> None:
        """Make the feature set of `spec`, first ingested from `origin`, unless it is there."""
        key = set_key(spec.digest)
        if self._environment.snapshot().read("specs", key) is None:
            self._put("specs", key, pack_row(FeatureSet(spec, origin, time.time())))
            self.commit()

    def put(
        self,
        spec: FeatureSpec,
        header: Header,
        scale: bytes,
        buffer: memoryview,
        payload: slice,
        *,
        codec: str = "raw",
    ) -> Entry:
        """Put a record whose payload lies in `buffer[payload]`; visible after the next `commit`.

        The prefix is written before the payload, into the same buffer, so that LMDB's copy is the only one. `header`
        is completed: codec, checksum. Raises StoreFull, leaving what was put before ready to be committed.
        """
        codec, stored = compress(buffer[payload], codec)
        header = replace(header, codec=codec, payload_xxh3=xxhash.xxh3_64_intdigest(stored))
        prefix = pack_prefix(header, scale, len(stored))
        if codec == "raw":
            buffer[payload.start - len(prefix) : payload.start] = prefix
            record = buffer[payload.start - len(prefix) : payload.stop]
        else:
            record = memoryview(prefix + stored)
        self._check_room(len(record))
        entry = Entry.of(header, len(record))
        key = video_key(spec, self.dataset, header.video_id)
        self._put("records", key, record)
        self._put("catalog", key, pack_row(entry))
        self._delete("failures", key)
        self._pending.append(entry)
        self._pending_bytes += len(record)
        return entry

    def fail(self, spec: FeatureSpec, failure: Failure) -> None:
        """Put the row of a video that could not be ingested."""
        self._put("failures", video_key(spec, self.dataset, failure.video_id), pack_row(failure))
        self._pending.append(failure)

    def commit(self) -> list[Entry | Failure]:
        """Make durable what was put, and return its rows; on an error nothing of it is visible."""
        txn, self._txn = self._txn, None
        done, self._pending, self._pending_bytes = self._pending, [], 0
        if txn is not None:
            try:
                txn.commit()
            except lmdb.Error as exc:
                raise store_error(exc, self.path) from exc
        return done

    def abort(self) -> None:
        """Drop what was not committed."""
        txn, self._txn = self._txn, None
        self._pending, self._pending_bytes = [], 0
        if txn is not None:
            txn.abort()

    def __enter__(self) -> FeatureWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Commit, or drop what waits where an exception leaves the block."""
        if kind is None:
            self.commit()
        else:
            self.abort()

    def _put(self, database: str, key: bytes, value: bytes | memoryview) -> None:
        try:
            if self._txn is None:
                self._txn = self._environment.lmdb.begin(write=True)
            self._txn.put(key, value, db=self._environment.dbs[database])
        except lmdb.Error as exc:
            self.abort()
            raise store_error(exc, self.path) from exc

    def _delete(self, database: str, key: bytes) -> None:
        try:
            if self._txn is not None:
                self._txn.delete(key, db=self._environment.dbs[database])
        except lmdb.Error as exc:
            self.abort()
            raise store_error(exc, self.path) from exc

    def _check_room(self, record_bytes: int) -> None:
        need = self._pending_bytes + record_bytes + PAGE + _SLACK_BYTES
        stat = os.statvfs(self.path)
        free = stat.f_bavail * stat.f_frsize
        if free - need < self._min_free:
            raise StoreFull(
                errno.ENOSPC,
                f"{self.path}: {free / 2**30:.2f} GiB are free, the next record needs {need / 2**20:.0f} MiB and "
                f"{self._min_free / 2**30:.2f} GiB are to stay free; make room, or lower --min-free",
            )
        if self._max_size is not None:
            taken = stored_bytes(self._cache_dir)
            if taken + need > self._max_size:
                raise StoreFull(
                    errno.ENOSPC,
                    f"{self._cache_dir} takes {taken / 2**30:.2f} GiB, the next record needs "
                    f"{need / 2**20:.0f} MiB, the limit is {self._max_size / 2**30:.2f} GiB; raise --max-size",
                )
