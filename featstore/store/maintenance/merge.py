"""Copy the videos of a dataset from another cache: several machines ingest, one store serves.

Records are put as the other store has them, their checksums verified, so nothing is encoded or quantized again.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featstore import defaults
from featstore.errors import (
    FeatstoreError,
    RecordError,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreMismatch,
)
from featstore.records.record import pack_prefix, parse
from featstore.store.catalog import (
    open_dataset,
    read_entry,
    read_failures,
)
from featstore.store.engine.locks import ingest_lock
from featstore.store.engine.pages import SALVAGE
from featstore.store.maintenance.check import name_other
from featstore.store.maintenance.merge_source import MergeSource
from featstore.store.paths import dataset_path, make_folder
from featstore.store.rows import Entry, video_key
from featstore.store.writer import FeatureWriter
from featstore.system.filesystems import refuse_network

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from featstore.records.record import Record
    from featstore.store.rows import FeatureSet

    _Whole = tuple[memoryview, Record]  # the bytes of a record, and what is in them

AHEAD_BYTES = 256 << 20  # of records that are read from disk while others are written and synced
AHEAD_VIDEOS = 1_000


@dataclass
class MergeSummary:
    """What a merge came to, and how far it is.

    Attributes:
        dataset: The dataset's name.
        total: Videos in the source, feature sets counted apart.
        stored: Videos committed now.
        skipped: Videos that were there before.
        record_bytes: Bytes of the records committed now.
        failures: Id and reason of those that are damaged in the source.
        interrupted: Whether it was stopped by request.
        full: Why there was no room; empty if there was.
    """

    dataset: str
    total: int = 0
    stored: int = 0
    skipped: int = 0
    record_bytes: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    full: str = ""


def merge_dataset(
    source: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str],
    dataset: str,
    *,
    source_dataset: str = "",
    failures: bool = False,
    min_free: int = defaults.MIN_FREE_BYTES,
    max_size: int | None = None,
    lock_wait: float = defaults.LOCK_WAIT,
    stop: threading.Event | None = None,
    on_progress: Callable[[MergeSummary], None] = lambda summary: None,
) -> MergeSummary:
    """Copy into `cache_dir/dataset` the videos that `source/dataset` has and it lacks, feature set by feature set.

    A video that is stored already is left as it is. Records are copied in the storage that they have, and a set that is
    there already keeps its own for what is ingested later; one that is made is the source's, and what is due to be
    stored again there is so here. The source's default set becomes that of a new dataset.
    Whenever a merge ends or is killed, what was committed stays, and the same call goes on.

    Args:
        source: The cache directory to copy from.
        cache_dir: The cache directory to copy to.
        dataset: The dataset's name.
        source_dataset: Its name in the source, if that is another; records hold it, and get the new one.
        failures: Also copy which videos failed and why.
        min_free: Bytes that stay free on the disk.
        max_size: Bytes that `cache_dir` may take, None for no limit.
        lock_wait: Seconds to wait for an ingest into the target.
        stop: Set it to end early.
        on_progress: Called after each commit.

    Returns:
        What was copied, and which videos are damaged in the source.

    Raises:
        StoreNotFound: There is no such source.
        StoreMismatch: It is another dataset or of another format, or source and target are one dataset.
        StoreDamaged: Nothing of the source can be read.
        StoreLocked: An ingest is at work on the target.
        StoreError: The target cannot be written.
    """
    named = source_dataset or dataset
    there, here = dataset_path(source, named), dataset_path(cache_dir, dataset)
    readable = MergeSource(open_dataset(source, named), named)  # raises before anything is made
    refuse_network(here)
    make_folder(here)
    if os.path.samefile(there, here):
        raise StoreMismatch(
            f"{there} and {here} are one dataset; name another cache, or with cp and mv another dataset"
        )
    with (
        ingest_lock(here, wait=lock_wait),
        FeatureWriter(cache_dir, dataset, min_free=min_free, max_size=max_size) as writer,
    ):
        merge = _Merge(readable, writer, MergeSummary(dataset), on_progress)
        try:
            merge.run(stop, failures=failures)
        except StoreFull as exc:
            merge.commit()  # what was put before fits
            merge.summary.full = str(exc)
    return merge.summary


class _Merge:
    def __init__(
        self,
        source: MergeSource,
        writer: FeatureWriter,
        summary: MergeSummary,
        on_progress: Callable[[MergeSummary], None],
    ) -> None:
        self.summary = summary
        self._source = source
        self._snapshot = source.snapshot
        self._writer = writer
        self._on_progress = on_progress
        summary.total = source.total
        summary.failures += source.wrong

    def run(self, stop: threading.Event | None, *, failures: bool) -> None:
        for row in self._source.sets:
            if self._is_stopped(stop):  # or the set would be made and stay empty
                break
            add_set_of(self._writer, row)
            for key, record in self._read_ahead(row.spec.digest):
                if self._is_stopped(stop):
                    break
                self._take(key, record, row.spec.digest)
                if self._writer.due:
                    self.commit()
            for failure in read_failures(self._snapshot, row.spec.digest) if failures else ():
                if not self._writer.has(failure.spec, failure.video_id):
                    self._writer.fail(failure)
        self.commit()

    def commit(self) -> None:
        for row in self._writer.commit():
            if not isinstance(row, Entry):  # a failure
                continue
            self.summary.stored += 1
            self.summary.record_bytes += row.record_bytes
        self._on_progress(self.summary)

    def _is_stopped(self, stop: threading.Event | None) -> bool:
        self.summary.interrupted = stop is not None and stop.is_set()
        return self.summary.interrupted

    def _read_ahead(self, digest: str) -> Iterator[tuple[bytes, Future[_Whole] | None]]:
        """Yield the keys of a feature set, each with its record, which another thread reads and verifies until then."""
        waiting: deque[tuple[bytes, Future[_Whole] | None, int]] = deque()
        size = 0
        reader = ThreadPoolExecutor(1, "featstore-merge")
        try:
            for key in self._source.keys(digest):
                found, record = 0, None
                with contextlib.suppress(FeatstoreError):  # met again when the video is copied
                    entry = read_entry(self._snapshot, key)
                    if entry is not None and not self._writer.has(digest, entry.video_id):
                        found = entry.record_bytes
                        self._snapshot.read_ahead(key)
                        record = reader.submit(self._read, key, digest)
                waiting.append((key, record, found))
                size += found
                while size > AHEAD_BYTES or len(waiting) > AHEAD_VIDEOS:
                    key, record, found = waiting.popleft()
                    size -= found
                    yield key, record
            while waiting:
                yield waiting.popleft()[:2]
        finally:
            reader.shutdown(cancel_futures=True)

    def _take(self, key: bytes, coming: Future[_Whole] | None, digest: str) -> None:
        name, entry = key.decode(errors="replace"), None
        with contextlib.suppress(StoreDamaged):  # a damaged row; the record tells as much
            entry = read_entry(self._snapshot, key)
        if entry is not None:
            name = entry.video_id
            if self._is_there(digest, name):
                return
        try:
            value, record = coming.result() if coming else self._read(key, digest)
        except FeatstoreError as exc:
            # To copy what can be read is what is being done about a damaged page.
            self.summary.failures.append((name, exc.found if SALVAGE in exc.remedy else str(exc)))
            return
        if entry is None and self._is_there(digest, record.header.video_id):
            return
        try:
            self._put(value, record)
        except (RecordError, StoreMismatch, ValueError) as exc:
            self.summary.failures.append((name, str(exc)))

    def _put(self, value: memoryview, record: Record) -> None:
        if self._source.dataset == self._writer.dataset:
            self._writer.put(record.header, value)
            return
        if record.header.dataset != self._source.dataset:
            raise StoreMismatch(f"its record is of dataset {record.header.dataset!r}")
        header = replace(record.header, dataset=self._writer.dataset)
        prefix = pack_prefix(header, bytes(record.scales), len(record.payload))
        self._writer.put(header, memoryview(b"".join((prefix, record.payload))))

    def _is_there(self, digest: str, video: str) -> bool:
        # Outside of what is caught: what the target raises is not damage in the source.
        there = self._writer.has(digest, video)
        self.summary.skipped += there
        return there

    def _read(self, key: bytes, digest: str) -> _Whole:
        value = self._snapshot.get("records", key)
        if value is None:
            raise StoreError("it has a row but no record")
        record = parse(value)
        if record.header.spec != digest or video_key(digest, record.header.video_id) != key:
            raise StoreError(name_other(record.header, key))
        self._snapshot.prefault(value)  # faults read a cold disk at half its speed
        record.verify()
        return value, record


def add_set_of(writer: FeatureWriter, row: FeatureSet) -> None:
    """Add a feature set as another store has it; one that is there already stays as it is."""
    names = "origin", "names", "max_error", "storage_since"
    new: dict[str, Any] = {name: getattr(row, name) for name in names}
    try:
        writer.add_set(row.spec, row.storage, **new)
    except StoreMismatch:  # it is there, and to be stored in another way
        writer.add_set(row.spec)
