"""Writing: records and their catalog rows in one transaction, so that a video appears whole or not at all."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from featstore import defaults
from featstore.errors import StoreError, StoreFull, StoreMismatch
from featstore.records.codecs import compress
from featstore.records.record import pack_prefix, parse
from featstore.records.sizes import PAGE
from featstore.store.catalog import (
    MANIFEST_KEY,
    Entry,
    Failure,
    FeatureSet,
    Manifest,
    has_entry,
    pack_row,
    read_manifest,
    set_key,
    stored_spec,
    unpack_manifest,
    unpack_set,
    video_key,
)
from featstore.store.engine.environment import Keeper
from featstore.store.engine.transaction import (
    WriteTransaction,
    make_file,
    refuse_inherited,
    refuse_link,
    refuse_sealed,
)
from featstore.store.paths import (
    check_video_id,
    dataset_path,
    has_data,
    make_folder,
    stored_bytes,
    sync_dataset,
)
from featstore.system.filesystems import format_bytes, free_bytes, refuse_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.records.header import Header
    from featstore.spec import FeatureSpec

# Pages of the tree and of LMDB's free list that a commit may write beside its records.
_SLACK_BYTES = 1 << 20
MAX_REASON_CHARACTERS = 10_000
Done = TypeVar("Done")


def pack_record(
    header: Header, scale: bytes, buffer: memoryview, payload: slice, *, codec: str = defaults.CODEC
) -> tuple[Header, memoryview]:
    """Return the header, completed with codec and checksum, and the record of the payload in `buffer[payload]`.

    Of all that a put takes, this needs no transaction: it may be done in another thread, ahead of time. Raises
    ValueError if too little room precedes the payload for the prefix.
    """
    codec, stored = compress(buffer[payload], codec)
    header = replace(header, codec=codec, payload_xxh3=xxhash.xxh3_64_intdigest(stored))
    prefix = pack_prefix(header, scale, len(stored))
    if codec != "raw":
        return header, memoryview(prefix + stored)
    start = payload.start - len(prefix)
    if start < 0:
        raise ValueError(
            f"{payload.start} bytes precede the payload, the record's prefix needs {len(prefix)}"
        )
    buffer[start : payload.start] = prefix
    return header, buffer[start : payload.stop]


class FeatureWriter:
    """Puts records into one dataset and commits them by bytes; made durable with each commit.

    min_free: bytes that stay free on the disk. max_size: bytes the whole cache directory may take, None for no limit.
    Usable in `with`: leaving commits, an exception inside drops what was not committed. Of the process that made it: a
    forked child is refused, and leaving the block there commits nothing.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        dataset: str,
        *,
        min_free: int = defaults.MIN_FREE_BYTES,
        max_size: int | None = None,
        commit_bytes: int = defaults.COMMIT_BYTES,
    ) -> None:
        """Open the dataset, making it if it is missing; raise StoreError if it may not be written."""
        self._pid = os.getpid()
        self.dataset = dataset
        self.path = dataset_path(cache_dir, dataset)
        refuse_network(self.path)
        make_folder(self.path)
        refuse_sealed(self.path)
        refuse_link(self.path)
        self._cache_dir = self.path.parent
        self._min_free = min_free
        self._max_size = max_size
        self._commit_bytes = commit_bytes
        if not has_data(self.path):
            manifest = pack_row(Manifest(dataset, time.time()))
            make_file(self.path, "manifest", MANIFEST_KEY, manifest)
        self._keeper = Keeper(self.path)
        environment = self._keeper.open()
        if not environment.name_synced:  # also if its maker was killed before that
            sync_dataset(self.path)
            environment.name_synced = True
        self._txn: WriteTransaction | None = None
        self._added: set[str] = set()  # digests of the sets that `add_set` found or made
        self._pending: list[Entry | Failure] = []
        self._pending_bytes = 0
        read_manifest(environment.snapshot(), dataset)

    @property
    def due(self) -> bool:
        """Return whether enough bytes wait to be worth a commit."""
        return self._pending_bytes >= self._commit_bytes

    def add_set(self, spec: FeatureSpec, origin: str) -> None:
        """Make the feature set of `spec`, first ingested from `origin`, unless it is there.

        Visible at once, or with the next commit if something waits for one.
        """
        refuse_inherited(self._pid)
        snapshot = self._keeper.open().snapshot()
        if self._txn is not None or stored_spec(snapshot, spec) is None:
            key, txn = set_key(spec.digest), self._transaction()
            if txn.get("specs", key) is None:
                txn.put("specs", key, pack_row(FeatureSet(spec, origin, time.time())))
            if not self._pending:
                self.commit()
        self._added.add(spec.digest)

    def put(
        self,
        spec: FeatureSpec,
        header: Header,
        scale: bytes,
        buffer: memoryview,
        payload: slice,
        *,
        codec: str = defaults.CODEC,
    ) -> Entry:
        """Put a record whose payload is `buffer[payload]`; visible after the next `commit`.

        The prefix is written before the payload, into the same buffer, so that LMDB's copy is the only one. `header`
        is completed: codec, checksum. Raises StoreFull, leaving what was put before ready to be committed,
        StoreMismatch if the header is not of a record of `spec` in this dataset, and ValueError if header and
        payload do not belong together.
        """
        return self.put_packed(spec, *pack_record(header, scale, buffer, payload, codec=codec))

    def put_packed(self, spec: FeatureSpec, header: Header, record: memoryview) -> Entry:
        """Put what `pack_record` returned, as `put` does."""
        return self._put_record(spec, header, record)

    def has(self, spec: FeatureSpec, video_id: str) -> bool:
        """Return whether the video was stored under `spec` as of the last commit."""
        snapshot = self._keeper.open().snapshot()
        stored = stored_spec(snapshot, spec)
        key = video_key(stored or spec, self.dataset, video_id)
        return stored is not None and has_entry(snapshot, key)

    def put_whole(self, spec: FeatureSpec, record: memoryview) -> Entry:
        """Put a record as it was stored elsewhere; visible after the next `commit`.

        Raises RecordError if it is damaged, StoreMismatch if it is not of this dataset and `spec`, and StoreFull.
        """
        parsed = parse(record)
        parsed.verify()
        return self._put_record(spec, parsed.header, record)

    def fail(self, spec: FeatureSpec, failure: Failure, *, drop: bool = False) -> None:
        """Put the row of a video that could not be ingested; of a very long reason the beginning.

        drop: remove what is stored of the video, for it is of another file than the one that failed.
        """
        failure = replace(failure, reason=failure.reason[:MAX_REASON_CHARACTERS])
        check_video_id(failure.video_id)
        txn, key = self._at(spec, failure.video_id)
        if drop:
            self._do(txn.delete, "catalog", key)
            self._do(txn.delete, "records", key)
        self._do(txn.put, "failures", key, pack_row(failure))
        self._pending.append(failure)

    def commit(self) -> list[Entry | Failure]:
        """Make durable what was put, and return its rows; on an error nothing of it is visible."""
        refuse_inherited(self._pid)
        done = self._pending
        try:
            if self._txn is not None:
                self._txn.commit()
            self._txn, self._pending, self._pending_bytes = None, [], 0
        except BaseException:
            self.abort()
            raise
        return done

    def abort(self) -> None:
        """Drop what was not committed."""
        if self._txn is not None:
            self._txn.abort()
        self._txn, self._pending, self._pending_bytes = None, [], 0
        self._added.clear()

    def __enter__(self) -> FeatureWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Commit, or drop what waits if an exception leaves the block, or a forked child does."""
        try:
            if kind is None and os.getpid() == self._pid:
                self.commit()
        finally:
            self.abort()

    def _put_record(self, spec: FeatureSpec, header: Header, record: memoryview) -> Entry:
        check_video_id(header.video_id)
        misfit = header.misfit(spec, self.dataset)
        if misfit:
            raise StoreMismatch(
                f"the record of {header.video_id!r} is not of the feature set it is put into: {misfit}; it was not put"
            )
        self._check_room(len(record))
        txn, key = self._at(spec, header.video_id)
        entry = Entry.of(header, len(record))
        self._do(txn.put, "records", key, record)
        self._do(txn.put, "catalog", key, pack_row(entry))
        self._do(txn.delete, "failures", key)
        self._pending.append(entry)
        self._pending_bytes += len(record)
        return entry

    def _transaction(self) -> WriteTransaction:
        refuse_inherited(self._pid)
        if self._txn is None:
            self._txn = WriteTransaction(self.path)
            self._keeper.open()  # keeps it, also if its files were replaced since
            found = self._do(self._txn.get, "manifest", MANIFEST_KEY)
            self._do(unpack_manifest, found, self.path, self.dataset)
        return self._txn

    def _at(self, spec: FeatureSpec, video_id: str) -> tuple[WriteTransaction, bytes]:
        """Return the transaction and the video's key in it, as the set's row there has it."""
        txn = self._transaction()
        row = self._do(txn.get, "specs", set_key(spec.digest))
        if row is not None:
            return txn, video_key(
                unpack_set(set_key(spec.digest), row).spec, self.dataset, video_id
            )
        added = spec.digest in self._added
        if not self._pending:
            self.abort()  # others wait for it
        if added:
            raise StoreError(
                f"the feature set {spec.digest[:8]} was removed from {self.path} in the meantime; run the command again"
            )
        raise ValueError(
            f"{self.path} has no feature set {spec.digest[:8]}; call add_set before put and fail"
        )

    def _do(self, action: Callable[..., Done], *arguments: Any) -> Done:
        try:
            return action(*arguments)
        except StoreError:
            self.abort()
            raise

    def _check_room(self, record_bytes: int) -> None:
        need = self._pending_bytes + record_bytes + PAGE + _SLACK_BYTES
        free = free_bytes(self.path)
        if free - need < self._min_free:
            raise StoreFull(
                f"{self.path}: {format_bytes(free)} are free, the next record needs {format_bytes(need)} and "
                f"{format_bytes(self._min_free)} are to stay free; make room, or lower --min-free: "
                "what featstore rm freed inside the file is used first, and does not count here"
            )
        if self._max_size is not None:
            taken = stored_bytes(self._cache_dir)
            if taken + need > self._max_size:
                raise StoreFull(
                    f"{self._cache_dir} takes {format_bytes(taken)}, the next record needs {format_bytes(need)}, "
                    f"the limit is {format_bytes(self._max_size)}; raise --max-size, or give back with featstore "
                    "compact what featstore rm freed"
                )
