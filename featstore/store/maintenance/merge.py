"""Copy the videos of a dataset from another cache: several machines ingest, one store serves.

Records are put as the other store has them, their checksums verified, so nothing is encoded or quantized again.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featstore import defaults
from featstore.errors import (
    FeatstoreError,
    RecordError,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreMismatch,
)
from featstore.records.record import parse
from featstore.store.catalog import open_dataset, read_entry, read_manifest, read_sets
from featstore.store.engine.locks import ingest_lock
from featstore.store.paths import dataset_path, make_folder
from featstore.store.rows import Entry, set_key, video_key
from featstore.store.writer import FeatureWriter
from featstore.system.filesystems import refuse_network

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from featstore.store.engine.snapshot import Snapshot
    from featstore.store.rows import FeatureSet


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
        dataset: The dataset's name, the same in both since records hold it.
        min_free: Bytes that stay free on the disk.
        max_size: Bytes that `cache_dir` may take, None for no limit.
        lock_wait: Seconds to wait for an ingest into the target.
        stop: Set it to end early.
        on_progress: Called after each commit.

    Returns:
        What was copied, and which videos are damaged in the source.

    Raises:
        StoreNotFound: There is no such source.
        StoreMismatch: It is another dataset or of another format, or source and target are one.
        StoreLocked: An ingest is at work on the target.
        StoreError: The target cannot be written.
    """
    there, here = dataset_path(source, dataset), dataset_path(cache_dir, dataset)
    snapshot = open_dataset(source, dataset)
    read_manifest(snapshot, dataset)
    refuse_network(here)
    make_folder(here)
    if os.path.samefile(there, here):
        raise StoreMismatch(f"{source} and {cache_dir} are one cache; merge another one")
    with (
        ingest_lock(here, wait=lock_wait),
        FeatureWriter(cache_dir, dataset, min_free=min_free, max_size=max_size) as writer,
    ):
        merge = _Merge(snapshot, writer, MergeSummary(dataset), on_progress)
        try:
            merge.run(stop)
        except StoreFull as exc:
            merge.commit()  # what was put before fits
            merge.summary.full = str(exc)
    return merge.summary


class _Merge:
    def __init__(
        self,
        snapshot: Snapshot,
        writer: FeatureWriter,
        summary: MergeSummary,
        on_progress: Callable[[MergeSummary], None],
    ) -> None:
        self.summary = summary
        self._default = read_manifest(snapshot).default
        self._snapshot = snapshot
        self._writer = writer
        self._on_progress = on_progress
        summary.total = snapshot.count("catalog")

    def run(self, stop: threading.Event | None) -> None:
        sets = read_sets(self._snapshot)
        for digest in sorted(sets, key=lambda digest: digest != self._default):  # it first
            if self._is_stopped(stop):  # or the set would be made and stay empty
                break
            self._add_set(sets[digest])
            try:
                keys = list(self._snapshot.keys("catalog", set_key(digest)))
            except StoreError as exc:  # damaged pages: what the other sets have is still good
                self.summary.failures.append((f"feature set {digest}", str(exc)))
                continue
            for key in keys:
                if self._is_stopped(stop):
                    break
                self._take(key, digest)
                if self._writer.due:
                    self.commit()
        self.commit()

    def commit(self) -> None:
        for row in self._writer.commit():
            assert isinstance(row, Entry)
            self.summary.stored += 1
            self.summary.record_bytes += row.record_bytes
        self._on_progress(self.summary)

    def _is_stopped(self, stop: threading.Event | None) -> bool:
        self.summary.interrupted = stop is not None and stop.is_set()
        return self.summary.interrupted

    def _add_set(self, row: FeatureSet) -> None:
        try:
            self._writer.add_set(
                row.spec,
                row.storage,
                origin=row.origin,
                names=row.names,
                max_error=row.max_error,
                storage_since=row.storage_since,
            )
        except StoreMismatch:  # it is there, and to be stored in another way
            self._writer.add_set(row.spec)

    def _take(self, key: bytes, digest: str) -> None:
        name, entry = key.decode(errors="replace"), None
        try:
            with contextlib.suppress(StoreDamaged):  # a damaged row; the record tells as much
                entry = read_entry(self._snapshot, key)
        except FeatstoreError as exc:
            self.summary.failures.append((name, str(exc)))
            return
        if entry is not None:
            name = entry.video_id
            if self._writer.has(digest, name):  # what the target raises is not damage in the source
                self.summary.skipped += 1
                return
        try:
            record = self._read(key, digest)
        except FeatstoreError as exc:
            self.summary.failures.append((name, str(exc)))
            return
        try:
            self._writer.put_whole(record)
        except (RecordError, StoreMismatch, ValueError) as exc:
            self.summary.failures.append((name, str(exc)))

    def _read(self, key: bytes, digest: str) -> memoryview:
        record = self._snapshot.get("records", key)
        if record is None:
            raise StoreError("it has a row but no record")
        header = parse(record).header
        if header.spec != digest or video_key(digest, header.video_id) != key:
            raise StoreError(
                f"its record is that of {header.video_id!r} of set {header.spec[:8]}, which has another key"
            )
        wait(self._snapshot.prefault(record))  # faults read a cold disk at half its speed
        return record
