"""Writing: records and their catalog rows in one transaction, so that a video appears whole or not at all."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from featstore import defaults
from featstore.errors import StoreError, StoreFull, StoreMismatch
from featstore.records.record import parse
from featstore.records.storage import PAGE, Storage
from featstore.store.catalog import has_entry, read_manifest, read_set
from featstore.store.changes import CatalogTransaction
from featstore.store.engine.environment import Keeper
from featstore.store.engine.transaction import (
    make_file,
    refuse_inherited,
    refuse_link,
    refuse_sealed,
)
from featstore.store.manifest import MANIFEST_KEY, Manifest
from featstore.store.paths import (
    check_video_id,
    dataset_path,
    has_data,
    make_folder,
    stored_bytes,
    sync_dataset,
)
from featstore.store.rows import Entry, Failure, FeatureSet, pack_row, video_key
from featstore.store.selection import wanted_set
from featstore.system.filesystems import format_bytes, free_bytes, refuse_network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from featstore.records.header import Header
    from featstore.spec import FeatureSpec

# Pages of the tree and of LMDB's free list that a commit may write beside its records.
_SLACK_BYTES = 1 << 20
MAX_REASON_CHARACTERS = 10_000
Done = TypeVar("Done")


class FeatureWriter:
    """Puts records into one dataset and commits them by bytes; made durable with each commit.

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
        """Open the dataset, making it if it is missing.

        Args:
            cache_dir: The cache directory.
            dataset: The dataset's name.
            min_free: Bytes that stay free on the disk.
            max_size: Bytes that the whole cache directory may take, None for no limit.
            commit_bytes: Bytes of records that are `due` to be committed.

        Raises:
            StoreMismatch: What is there is not this dataset, or of another format.
            StoreError: The dataset is sealed or damaged, or may not be written.
        """
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
        self._txn: CatalogTransaction | None = None
        self._added: set[str] = set()  # digests of the sets that `add_set` found or made
        self._pending: list[Entry | Failure] = []
        self._pending_bytes = 0
        read_manifest(environment.snapshot(), dataset)

    @property
    def due(self) -> bool:
        """Return whether enough bytes wait to be worth a commit."""
        return self._pending_bytes >= self._commit_bytes

    def add_set(
        self,
        spec: FeatureSpec,
        storage: Storage | None = None,
        *,
        origin: str = "",
        names: Mapping[str, str] | None = None,
        max_error: float | None = None,
        storage_since: float = 0.0,
        replace_storage: bool = False,
        replace_max_error: bool = False,
    ) -> FeatureSet:
        """Return the feature set of `spec`, made unless it is there; visible at once, or with what waits for a commit.

        Args:
            spec: What determines its features.
            storage: How they are to be stored; None follows the set that is there, or is `Storage()` for a new one.
            origin: The checkpoint that a new set is ingested from.
            names: Further names of the encoder's parts, of a new set.
            max_error: The error budget of a new set.
            storage_since: When the storage of a new set was replaced, in seconds since 1970; 0 if it never was.
            replace_storage: The set that is there is to be stored as `storage` says from now on.
            replace_max_error: It is to have this budget from now on.

        Returns:
            The row of the set, as it is in the dataset now.

        Raises:
            StoreMismatch: The set that is there is stored in another way, and `replace_storage` is not set.
            StoreError: The dataset cannot be written.
        """
        refuse_inherited(self._pid)
        digest = spec.digest
        there = read_set(self._keeper.open().snapshot(), digest)
        budget = (max_error,) if replace_max_error else ()
        as_it_is = there and wanted_set(there, storage, replace_storage, *budget) is there
        if self._txn is not None or not as_it_is:
            txn = self._transaction()
            there = self._do(txn.get_set, digest)
            wanted = wanted_set(there, storage, replace_storage, *budget)
            if wanted is None:
                stored_as, names = storage or Storage(), dict(names or {})
                made = time.time(), storage_since
                wanted = FeatureSet(spec, stored_as, max_error, origin, names, *made)
            if wanted is not there:
                self._do(txn.put_set, wanted)
            there = wanted
            if not self._pending:
                self.commit()
        self._added.add(digest)
        assert there is not None
        return there

    def put(self, header: Header, record: memoryview) -> Entry:
        """Put what `pack_record` returned; visible after the next `commit`.

        Args:
            header: The record's.
            record: Its bytes, which may change once this returns.

        Returns:
            The row of the video.

        Raises:
            StoreFull: There is no room; what was put before is still ready to be committed.
            StoreMismatch: The header is not of a record of its feature set in this dataset.
            StoreError: The feature set was removed, or the dataset cannot be written.
            ValueError: The id cannot be one, or `add_set` was not called.
        """
        check_video_id(header.video_id)
        txn, row = self._at(header.spec)
        misfit = header.misfit(row.spec, self.dataset)
        if misfit:
            raise StoreMismatch(
                f"the record of {header.video_id!r} is not of the feature set it is put into: {misfit}; it was not put"
            )
        self._check_room(len(record))
        entry = Entry.of(header, len(record))
        self._do(txn.put_video, video_key(header.spec, header.video_id), entry, record)
        self._pending.append(entry)
        self._pending_bytes += len(record)
        return entry

    def put_whole(self, record: memoryview) -> Entry:
        """Put a record as it was stored elsewhere, as `put` does; raise RecordError if it is damaged."""
        parsed = parse(record)
        parsed.verify()
        return self.put(parsed.header, record)

    def has(self, digest: str, video_id: str) -> bool:
        """Return whether the video was stored in a feature set as of the last commit."""
        return has_entry(self._keeper.open().snapshot(), video_key(digest, video_id))

    def fail(self, failure: Failure, *, drop: bool = False) -> None:
        """Put the row of a video that could not be ingested; visible after the next `commit`.

        Args:
            failure: The row; of a very long reason the beginning is kept.
            drop: Remove what is stored of the video, for it is of another file than the one that failed.
        """
        failure = replace(failure, reason=failure.reason[:MAX_REASON_CHARACTERS])
        check_video_id(failure.video_id)
        txn, _ = self._at(failure.spec)
        key = video_key(failure.spec, failure.video_id)
        if drop:
            self._do(txn.delete_video, key)
        self._do(txn.put_failure, key, failure)
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

    def _transaction(self) -> CatalogTransaction:
        refuse_inherited(self._pid)
        if self._txn is None:
            self._txn = CatalogTransaction(self.path, self.dataset)
            self._keeper.open()  # keeps it, also if its files were replaced since
        return self._txn

    def _at(self, digest: str) -> tuple[CatalogTransaction, FeatureSet]:
        """Return the transaction and the feature set in it."""
        txn = self._transaction()
        row = self._do(txn.get_set, digest)
        if row is not None:
            return txn, row
        was_added = digest in self._added
        if not self._pending:
            self.abort()  # others wait for it
        if was_added:
            raise StoreError(
                f"the feature set {digest[:8]} was removed from {self.path} in the meantime; run the command again"
            )
        raise ValueError(
            f"{self.path} has no feature set {digest[:8]}; call add_set before put and fail"
        )

    def _do(self, action: Callable[..., Done], *arguments: Any) -> Done:
        try:
            return action(*arguments)
        except StoreError:
            self.abort()
            raise

    def _check_room(self, record_bytes: int) -> None:
        need = self._pending_bytes + record_bytes + PAGE + _SLACK_BYTES
        free, limit = free_bytes(self.path), self._max_size
        taken = 0 if limit is None else stored_bytes(self._cache_dir)
        if free - need >= self._min_free and (limit is None or taken + need <= limit):
            return
        size, room = format_bytes(record_bytes), format_bytes(need)
        needs = f"the next record of {size} needs up to {room}, LMDB's pages included"
        if free - need < self._min_free:
            raise StoreFull(
                f"{self.path}: {format_bytes(free)} are free, {needs} and {format_bytes(self._min_free)} are to stay "
                "free; make room, or ingest with a lower --min-free: what featstore rm freed inside the file is used "
                "first, and does not count here"
            )
        raise StoreFull(
            f"{self._cache_dir} takes {format_bytes(taken)}, {needs}, "
            f"the limit is {format_bytes(limit or 0)}; raise --max-size, or give back with featstore "
            "compact what featstore rm freed"
        )
