"""Writing: records and their catalog rows in one transaction, so that a video appears whole or not at all."""

from __future__ import annotations

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
    stored_spec,
    video_key,
)
from featstore.store.env import TABLES, make_file, open_environment, store_error
from featstore.store.layout import (
    DATA_FILE,
    check_video_id,
    dataset_path,
    free_bytes,
    make_folder,
    stored_bytes,
)

if TYPE_CHECKING:
    import os

    from featstore.record import Header
    from featstore.spec import FeatureSpec

# One 63 MiB record fills a commit; small ones share it, and with it the cost of the sync.
COMMIT_BYTES = 32 << 20
MIN_FREE_BYTES = 1 << 30
# Pages of the tree and of LMDB's free list that a commit may write beside its records.
_SLACK_BYTES = 1 << 20
MAX_REASON_CHARACTERS = 10_000


def pack_record(
    header: Header, scale: bytes, buffer: memoryview, payload: slice, *, codec: str = "raw"
) -> tuple[Header, memoryview]:
    """Return the header, completed with codec and checksum, and the record of the payload in `buffer[payload]`.

    Of all that a put takes, this needs no transaction: it may be done in another thread, ahead of time. Raises
    ValueError where too little room lies before the payload for the prefix.
    """
    codec, stored = compress(buffer[payload], codec)
    header = replace(header, codec=codec, payload_xxh3=xxhash.xxh3_64_intdigest(stored))
    prefix = pack_prefix(header, scale, len(stored))
    if codec != "raw":
        return header, memoryview(prefix + stored)
    start = payload.start - len(prefix)
    if start < 0:
        raise ValueError(
            f"{payload.start} bytes lie before the payload, the record's prefix needs {len(prefix)}"
        )
    buffer[start : payload.start] = prefix
    return header, buffer[start : payload.stop]


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
        if not (self.path / DATA_FILE).exists():
            manifest = pack_row(Manifest(dataset, time.time()))
            make_file(self.path, "manifest", MANIFEST_KEY, manifest)
        self._environment = open_environment(self.path)
        self._txn: lmdb.Transaction | None = None
        self._specs: dict[str, FeatureSpec] = {}  # by digest, as they were first ingested
        self._pending: list[Entry | Failure] = []
        self._pending_bytes = 0
        read_manifest(self._environment.snapshot(), dataset)

    @property
    def due(self) -> bool:
        """Return whether enough bytes wait to be worth a commit."""
        return self._pending_bytes >= self._commit_bytes

    def add_set(self, spec: FeatureSpec, origin: str) -> None:
        """Make the feature set of `spec`, first ingested from `origin`, unless it is there.

        Visible at once, or with the next commit where something waits for one.
        """
        stored = self._specs.get(spec.digest) or stored_spec(self._environment.snapshot(), spec)
        if stored is None:
            row = pack_row(FeatureSet(spec, origin, time.time()))
            self._put("specs", set_key(spec.digest), row)
            if not self._pending:
                self.commit()
        self._specs[spec.digest] = stored or spec

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
        is completed: codec, checksum. Raises StoreFull, leaving what was put before ready to be committed, and
        ValueError where spec, header and payload do not belong together.
        """
        return self.put_packed(spec, *pack_record(header, scale, buffer, payload, codec=codec))

    def put_packed(self, spec: FeatureSpec, header: Header, record: memoryview) -> Entry:
        """Put what `pack_record` returned, as `put` does."""
        key = self._key(spec, header.video_id)
        if (header.dataset, header.spec) != (self.dataset, spec.digest):
            raise ValueError(
                f"the header is of {header.dataset!r}, set {header.spec[:8]}; it is put into {self.dataset!r}, set "
                f"{spec.digest[:8]}"
            )
        self._check_room(len(record))
        entry = Entry.of(header, len(record))
        self._put("records", key, record)
        self._put("catalog", key, pack_row(entry))
        self._delete("failures", key)
        self._pending.append(entry)
        self._pending_bytes += len(record)
        return entry

    def fail(self, spec: FeatureSpec, failure: Failure) -> None:
        """Put the row of a video that could not be ingested; of a very long reason the beginning."""
        failure = replace(failure, reason=failure.reason[:MAX_REASON_CHARACTERS])
        self._put("failures", self._key(spec, failure.video_id), pack_row(failure))
        self._pending.append(failure)

    def commit(self) -> list[Entry | Failure]:
        """Make durable what was put, and return its rows; on an error nothing of it is visible."""
        txn, self._txn = self._txn, None
        done, self._pending, self._pending_bytes = self._pending, [], 0
        if txn is not None:
            try:
                txn.commit()
            except lmdb.Error as exc:
                self._specs = {}
                raise store_error(exc, self.path) from exc
        return done

    def abort(self) -> None:
        """Drop what was not committed."""
        txn, self._txn = self._txn, None
        self._specs, self._pending, self._pending_bytes = {}, [], 0
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

    def _key(self, spec: FeatureSpec, video_id: str) -> bytes:
        check_video_id(video_id)
        stored = self._specs.get(spec.digest) or stored_spec(self._environment.snapshot(), spec)
        if stored is None:
            raise ValueError(
                f"{self.path} has no feature set {spec.digest[:8]}; call add_set before put and fail"
            )
        self._specs[spec.digest] = stored
        return video_key(stored, self.dataset, video_id)

    def _put(self, table: str, key: bytes, value: bytes | memoryview) -> None:
        try:
            if self._txn is None:
                # A reader that was killed would keep the pages it saw from being used again.
                self._environment.lmdb.reader_check()
                self._txn = self._environment.lmdb.begin(write=True)
            self._txn.put(TABLES[table] + key, value)
        except lmdb.Error as exc:
            self.abort()
            raise store_error(exc, self.path) from exc

    def _delete(self, table: str, key: bytes) -> None:
        try:
            if self._txn is not None:
                self._txn.delete(TABLES[table] + key)
        except lmdb.Error as exc:
            self.abort()
            raise store_error(exc, self.path) from exc

    def _check_room(self, record_bytes: int) -> None:
        need = self._pending_bytes + record_bytes + PAGE + _SLACK_BYTES
        free = free_bytes(self.path)
        if free - need < self._min_free:
            raise StoreFull(
                f"{self.path}: {free / 2**30:.2f} GiB are free, the next record needs {need / 2**20:.0f} MiB and "
                f"{self._min_free / 2**30:.2f} GiB are to stay free; make room, or lower --min-free"
            )
        if self._max_size is not None:
            taken = stored_bytes(self._cache_dir)
            if taken + need > self._max_size:
                raise StoreFull(
                    f"{self._cache_dir} takes {taken / 2**30:.2f} GiB, the next record needs "
                    f"{need / 2**20:.0f} MiB, the limit is {self._max_size / 2**30:.2f} GiB; raise --max-size"
                )
