"""A write transaction on a dataset's records and rows, which keeps the manifest's counts in step with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from featstore.errors import StoreMismatch
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.manifest import MANIFEST_KEY, Counts, check_name, unpack_manifest
from featstore.store.rows import (
    DIGEST_DIGITS,
    Entry,
    Failure,
    FeatureSet,
    pack_row,
    set_key,
    unpack_entry,
    unpack_set,
)

if TYPE_CHECKING:
    from pathlib import Path


class CatalogTransaction(WriteTransaction):
    """Puts and removes videos, failures and feature sets; the manifest is written with them, at the commit.

    Attributes:
        default: Digest of the feature set that is meant if none is named; the oldest there is if it is removed.
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

    def get_set(self, digest: str) -> FeatureSet | None:
        """Return a feature set as this transaction sees it, or None."""
        key = set_key(digest)
        data = self.get("specs", key)
        return None if data is None else unpack_set(key, data)

    def put_set(self, row: FeatureSet) -> None:
        """Put a feature set, in place of any of its digest; the first one becomes the default."""
        digest = row.spec.digest
        self.put("specs", set_key(digest), pack_row(row))
        self._sets.setdefault(digest, Counts())

    def delete_set(self, digest: str) -> None:
        """Delete a feature set's row and counts; its videos are the caller's to delete."""
        self.delete("specs", set_key(digest))
        self._sets.pop(digest, None)

    def put_video(self, key: bytes, entry: Entry, record: memoryview | None = None) -> None:
        """Put a video's record, if it is not there already, and row, in place of a failure."""
        self._take_off(key)
        if record is not None:
            self.put("records", key, record)
        self.put("catalog", key, pack_row(entry))
        self._count(key, Counts(1, 0, entry.frames, entry.record_bytes))

    def put_failure(self, key: bytes, failure: Failure) -> None:
        """Put a failure; what is stored of the video stays."""
        if self.delete("failures", key):
            self._count(key, Counts(failures=-1))
        self.put("failures", key, pack_row(failure))
        self._count(key, Counts(failures=1))

    def delete_video(self, key: bytes) -> Counts:
        """Delete a video's record, row and failure; return what there was of them."""
        gone = self._take_off(key)
        record = self.delete("records", key)
        self.delete("catalog", key)
        return replace(gone, videos=max(gone.videos, int(record)))

    def recount(self) -> None:
        """Count what the last commit holds; this transaction must have changed nothing."""
        snapshot = self.environment.snapshot()
        self._sets = {digest: Counts() for digest in self._sets} | {
            key.decode(): Counts() for key in snapshot.keys("specs")
        }
        for key, data in snapshot.rows("catalog"):
            entry = unpack_entry(key, data)
            self._count(key, Counts(1, 0, entry.frames, entry.record_bytes))
        for key in snapshot.keys("failures"):
            self._count(key, Counts(failures=1))

    def commit(self) -> None:
        """Make durable what was put, and the counts; on an error nothing of it is visible."""
        default = self.default if self.default in self._sets else next(iter(self._sets), "")
        manifest = replace(self._manifest, default=default, sets=self._sets)
        if manifest != self._manifest:
            self.put("manifest", MANIFEST_KEY, pack_row(manifest))
        super().commit()

    def _take_off(self, key: bytes) -> Counts:
        """Count off the row and the failure under `key`, deleting the failure; return what they were."""
        gone, data = Counts(), self.get("catalog", key)
        if data is not None:
            gone = Counts(1)
            try:
                entry = unpack_entry(key, data)
                gone = Counts(1, 0, entry.frames, entry.record_bytes)
            except (
                StoreMismatch
            ):  # damaged: a check finds that the counts differ, a repair recounts
                pass
        gone = replace(gone, failures=int(self.delete("failures", key)))
        self._count(key, gone, -1)
        return gone

    def _count(self, key: bytes, found: Counts, sign: int = 1) -> None:
        digest = key[:DIGEST_DIGITS].decode(errors="replace")
        there = self._sets.get(digest)
        if there is not None:
            sums = (a + sign * b for a, b in zip(_numbers(there), _numbers(found), strict=True))
            self._sets[digest] = Counts(*(max(0, number) for number in sums))


def _numbers(counts: Counts) -> tuple[int, ...]:
    return tuple(vars(counts).values())
