"""A write transaction on a dataset's records and rows, which keeps the manifest's counts in step with them."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from featstore.errors import RecordError, StoreDamaged, StoreError
from featstore.records.record import parse
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.manifest import MANIFEST_KEY, Counts, Manifest, check_name, unpack_manifest
from featstore.store.rows import (
    DIGEST_DIGITS,
    Entry,
    Failure,
    FeatureSet,
    pack_row,
    set_key,
    unpack_entry,
    unpack_row,
    unpack_set,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from featstore.store.shards.base import DatasetSnapshot


class CatalogTransaction(WriteTransaction):
    """Puts and removes videos, failures and feature sets; the manifest is written with them, at the commit.

    Attributes:
        default: Digest of the feature set that is meant if none is named; the oldest there is if it is removed. Another
            set that gets its first video takes its place while it has none, as after an ingest that failed.
    """

    def __init__(self, path: Path, dataset: str) -> None:
        """Begin, and read the manifest; raise as WriteTransaction, and StoreMismatch if it is not of `dataset`."""
        super().__init__(path)
        try:
            self._manifest = unpack_manifest(self.get("manifest", MANIFEST_KEY), path)
            check_name(self._manifest, path, dataset)
        except BaseException:
            self.abort()
            raise
        self.default = self._manifest.default
        self._sets = dict(self._manifest.sets)

    def __enter__(self) -> CatalogTransaction:
        """Return the transaction itself."""
        return self

    def get_set(self, digest: str) -> FeatureSet | None:
        """Return a feature set as this transaction sees it, or None."""
        key = set_key(digest)
        data = self.get("specs", key)
        return None if data is None else unpack_set(key, data)

    def put_set(self, row: FeatureSet) -> None:
        """Put a feature set, in place of any of its digest; the first one becomes the default."""
        digest = row.spec.digest
        key, packed = set_key(digest), pack_row(row)
        unpack_set(key, packed)  # a row that nobody can read would lock all sets out
        self.put("specs", key, packed)
        if digest not in self._sets:  # a repair that removed the set left failures of it
            self._sets[digest] = count_rows(self.environment.snapshot(), digest)

    def delete_set(self, key: bytes) -> None:
        """Delete the row under `key` of a feature set, and its counts; its videos are the caller's to delete."""
        self.delete("specs", key)
        self._sets.pop(key.decode(errors="replace"), None)

    def put_video(self, key: bytes, entry: Entry, record: memoryview) -> None:
        """Put a video's record and row, in place of a failure."""
        self.delete_failure(key)
        self.put("records", key, record)
        self.put_entry(key, entry)

    def put_entry(self, key: bytes, entry: Entry) -> None:
        """Put the row of a video whose record is there."""
        self._count(key, self._counted(key), -1)
        self.put("catalog", key, pack_row(entry))
        self._count(key, Counts(1, 0, entry.frames, entry.record_bytes))

    def put_failure(self, key: bytes, failure: Failure) -> None:
        """Put a failure; what is stored of the video stays."""
        self.delete_failure(key)
        self.put("failures", key, pack_row(failure))
        self._count(key, Counts(failures=1))

    def delete_failure(self, key: bytes) -> bool:
        """Delete a failure; return whether it was there."""
        there = self.delete("failures", key)
        self._count(key, Counts(failures=int(there)), -1)
        return there

    def delete_video(self, key: bytes) -> Counts:
        """Delete a video's record, row and failure; return what there was of them."""
        gone = self._counted(key)
        self._count(key, gone, -1)
        self.delete("catalog", key)
        videos = max(gone.videos, int(self.delete("records", key)))
        return replace(gone, videos=videos, failures=int(self.delete_failure(key)))

    def recount(self) -> None:
        """Count what the last commit holds; this transaction must have changed nothing."""
        snapshot = self.environment.snapshot()
        there = [key.decode(errors="replace") for key in snapshot.keys("specs")]
        oldest_first = [digest for digest in self._sets if digest in there]
        self._sets = {
            digest: count_rows(snapshot, digest)
            for digest in dict.fromkeys([*oldest_first, *there])
        }

    def commit(self) -> None:
        """Make durable what was put, and the counts; on an error nothing of it is visible."""
        default = self.default if self.default in self._sets else next(iter(self._sets), "")
        if default and not self._sets[default].videos:
            default = next(filter(self._began, self._sets), default)
        manifest = replace(self._manifest, default=default, sets=self._sets)
        if manifest != self._manifest:
            self.put("manifest", MANIFEST_KEY, pack_row(manifest))
        super().commit()

    def _began(self, digest: str) -> bool:
        """Return whether a feature set got its first video in this transaction."""
        before = self._manifest.sets.get(digest, Counts())
        return bool(self._sets[digest].videos) and not before.videos

    def _counted(self, key: bytes) -> Counts:
        """Return what a video's row counts, nothing if there is none."""
        data = self.get("catalog", key)
        return Counts() if data is None else _count_video(self.environment.snapshot, key, data)

    def _count(self, key: bytes, found: Counts, sign: int = 1) -> None:
        digest = key[:DIGEST_DIGITS].decode(errors="replace")
        there = self._sets.get(digest)
        if there is not None:
            self._sets[digest] = _add(there, found, sign)


def is_manifest_lost(snapshot: DatasetSnapshot) -> bool:
    """Return whether the manifest of what is a dataset is damaged or missing."""
    data = snapshot.read("manifest", MANIFEST_KEY)
    if data is None:
        return any(snapshot.keys("specs"))
    try:
        unpack_row(data)
    except StoreDamaged:
        return True
    return False


def rebuild_manifest(snapshot: DatasetSnapshot, dataset: str) -> Manifest:
    """Return the manifest that the rows call for; its default set is the oldest, for no row tells.

    Raises:
        StoreMismatch: The records are of another dataset.
        StoreError: There are records, and no feature set whose row can be read.
    """
    made: dict[str, float] = {}
    for key, data in snapshot.rows("specs"):
        digest = key.decode(errors="replace")
        try:
            made[digest] = unpack_set(key, data).created
        except StoreDamaged:
            made[digest] = math.inf
    if all(map(math.isinf, made.values())) and any(snapshot.keys("records")):
        raise StoreError(
            f"the manifest and the rows of the feature sets of {snapshot.path} cannot be read, and nothing else tells "
            "what the records are",
            remedy="put a good copy of the file in its place, or remove the dataset and ingest its videos again",
        )
    sets = {digest: count_rows(snapshot, digest) for digest in sorted(made, key=made.__getitem__)}
    created = min(made.values(), default=time.time())
    manifest = Manifest(_name_in_records(snapshot) or dataset, created, next(iter(sets), ""), sets)
    check_name(manifest, snapshot.path, dataset)
    return manifest


def _name_in_records(snapshot: DatasetSnapshot) -> str:
    """Return the dataset's name in the first record that can be read, empty if there is none."""
    for key in snapshot.keys("records"):
        with contextlib.suppress(RecordError):
            return parse(snapshot.get("records", key) or memoryview(b"")).header.dataset
    return ""


def count_rows(snapshot: DatasetSnapshot, digest: str) -> Counts:
    """Return what the rows of a feature set come to."""
    prefix = set_key(digest)
    found = Counts(failures=sum(1 for _ in snapshot.keys("failures", prefix)))
    for key, data in snapshot.rows("catalog", prefix):
        found = _add(found, _count_video(lambda: snapshot, key, data))
    return found


def _count_video(snapshot: Callable[[], DatasetSnapshot], key: bytes, data: bytes) -> Counts:
    """Return what a video's row says; if it is damaged, what its record says; if both are, that it is a video."""
    try:
        entry = unpack_entry(key, data)
    except StoreDamaged:
        record = snapshot().get("records", key)
        try:
            entry = Entry.of(parse(record or memoryview(b"")).header, len(record or b""))
        except RecordError:
            return Counts(1)
    return Counts(1, 0, entry.frames, entry.record_bytes)


def _add(one: Counts, other: Counts, sign: int = 1) -> Counts:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return Counts(*(max(0, a + sign * b) for a, b in pairs))
