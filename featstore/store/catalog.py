"""What a dataset holds as of one commit, by key or one after the other; a payload is touched only to verify it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from featstore.errors import RecordError, StoreDamaged, StoreNotFound
from featstore.records.record import Record, parse
from featstore.store.engine.locks import ingest_lock
from featstore.store.engine.settings import LARGE_RECORD_BYTES
from featstore.store.engine.snapshot import CachedRecord, address_of
from featstore.store.lost import explain_absent
from featstore.store.manifest import MANIFEST_KEY, Manifest, check_name, unpack_manifest
from featstore.store.paths import dataset_path, refuse_shards
from featstore.store.rows import (
    Entry,
    Failure,
    FeatureSet,
    entries_of,
    set_key,
    unpack_entry,
    unpack_failure,
    unpack_set,
    video_key,
)
from featstore.store.shards.opening import open_snapshot
from featstore.system.file_map import is_evicted

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from featstore.store.shards.base import DatasetSnapshot

VERIFY = ("first", "always", "never")  # when a payload is


def open_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> DatasetSnapshot:
    """Return the newest snapshot of a dataset; DatasetNotFound, which names those there are, if it is not one."""
    try:
        return open_snapshot(dataset_path(cache_dir, dataset))
    except StoreNotFound as exc:
        raise explain_absent(cache_dir, dataset) from exc


@contextlib.contextmanager
def hold_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> Iterator[Path]:
    """Hold the ingest lock of a dataset, and give its folder; one that is no dataset gets no lock file.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreMismatch: It is another dataset, or of another format.
        StoreLocked: An ingest is at work.
        StoreError: The dataset is damaged or of sealed shards, or its lock file cannot be written.
    """
    path = dataset_path(cache_dir, dataset)
    read_manifest(open_dataset(cache_dir, dataset), dataset)
    refuse_shards(path)
    with ingest_lock(path):
        yield path


def read_manifest(snapshot: DatasetSnapshot, dataset: str | None = None) -> Manifest:
    """Return the manifest, read once per commit; StoreMismatch if it is missing, of another format or dataset."""
    known: Manifest | None
    as_of, known = snapshot.cache.manifest
    if known is None or as_of != snapshot.txn_id:
        known = unpack_manifest(snapshot.read("manifest", MANIFEST_KEY), snapshot.path)
        snapshot.cache.manifest = snapshot.txn_id, known
    check_name(known, snapshot.path, dataset)
    return known


def read_set(snapshot: DatasetSnapshot, digest: str) -> FeatureSet | None:
    """Return a feature set, or None if there is none of that digest."""
    key = set_key(digest)
    data = snapshot.read("specs", key)
    return None if data is None else unpack_set(key, data)


def read_sets(snapshot: DatasetSnapshot, prefix: str = "") -> dict[str, FeatureSet]:
    """Return the feature sets by digest, oldest first; StoreDamaged if one's row cannot be read, see `prefix`.

    Args:
        snapshot: Of the dataset.
        prefix: Only rows of sets whose digests begin with it matter.
    """
    sets, damaged = read_whole_sets(snapshot)
    for digest, exc in damaged.items():
        if digest.startswith(prefix):
            raise StoreDamaged(
                f"feature set {digest[:8]} of {snapshot.path}: {exc.found}", remedy=exc.remedy
            ) from exc
    return sets


def read_whole_sets(
    snapshot: DatasetSnapshot,
) -> tuple[dict[str, FeatureSet], dict[str, StoreDamaged]]:
    """Return the feature sets whose rows can be read, oldest first, and why the others cannot; read once per commit."""
    as_of, known = snapshot.cache.sets
    if as_of != snapshot.txn_id:
        rows = dict(snapshot.rows("specs"))
        known = unpack_whole_sets(rows, rows.__getitem__)
        snapshot.cache.sets = snapshot.txn_id, known
    sets, damaged = known
    return sets, damaged


def unpack_whole_sets(
    keys: Iterable[bytes], read: Callable[[bytes], bytes]
) -> tuple[dict[str, FeatureSet], dict[str, StoreDamaged]]:
    """Return the feature sets whose rows can be read, oldest first, and why the others cannot, by digest.

    Args:
        keys: Of the rows.
        read: Returns the row of a key; what it raises as StoreDamaged is why that cannot be read.
    """
    found: list[FeatureSet] = []
    damaged: dict[str, StoreDamaged] = {}
    for key in keys:
        try:
            found.append(unpack_set(key, read(key)))
        except StoreDamaged as exc:
            damaged[key.decode(errors="replace")] = exc
    found.sort(key=lambda row: row.created)
    return {row.spec.digest: row for row in found}, damaged


def has_entry(snapshot: DatasetSnapshot, key: bytes) -> bool:
    """Return whether there is a row of a finished video with `key`, perhaps a damaged one."""
    return snapshot.read("catalog", key) is not None


def read_entry(snapshot: DatasetSnapshot, key: bytes) -> Entry | None:
    """Return the row of the finished video with `key`, or None."""
    data = snapshot.read("catalog", key)
    return None if data is None else unpack_entry(key, data)


def read_entries(snapshot: DatasetSnapshot, digest: str) -> Iterator[Entry]:
    """Yield the rows of the finished videos of a feature set, whose digest is in the keys and not in the rows."""
    return entries_of(digest, snapshot.values("catalog", set_key(digest)))


def read_failures(snapshot: DatasetSnapshot, digest: str) -> Iterator[Failure]:
    """Yield the rows of the videos that failed in a feature set."""
    return map(unpack_failure, snapshot.values("failures", set_key(digest)))


def salvage_rows(snapshot: DatasetSnapshot, table: str, digest: str) -> tuple[list[Any], list[str]]:
    """Return the rows of a feature set that can be read, of a table in which some cannot, and what is wrong with those.

    Args:
        snapshot: Of the dataset.
        table: `catalog` or `failures`.
        digest: The feature set's.
    """
    keys, wrong = snapshot.salvage(table)
    found: list[Any] = []
    problems = [exc.found for exc in wrong]
    for key in keys:
        if key.startswith(set_key(digest)):
            try:
                data = snapshot.read(table, key)
                if data is not None:
                    is_entry = table == "catalog"
                    found.append(unpack_entry(key, data) if is_entry else unpack_failure(data))
            except StoreDamaged as exc:
                problems.append(exc.found)
    return found, problems


def read_failure(snapshot: DatasetSnapshot, key: bytes) -> Failure | None:
    """Return the row of the failed video with `key`, or None."""
    data = snapshot.read("failures", key)
    return None if data is None else unpack_failure(data)


def find_record(snapshot: DatasetSnapshot, dataset: str, digest: str, video: str) -> Record | None:
    """Return the record of `video` in the feature set `digest`, None if it, or the set, is not there.

    Raises:
        StoreDamaged: The row of the feature set, or a page, cannot be read.
        RecordError: The record is damaged before its payload, missing beside its row, or another video's.
    """
    found = _find_record(snapshot, dataset, digest, video)
    return None if found is None else found[1]


def _find_record(
    snapshot: DatasetSnapshot, dataset: str, digest: str, video: str
) -> tuple[memoryview, Record] | None:
    """Return the bytes and the record that `find_record` is asked for; what of it is on disk alone is on its way."""
    key = video_key(digest, video)
    row, value = read_sets(snapshot, digest).get(digest), snapshot.get("records", key)
    if row is None or value is None:
        if row is not None and has_entry(snapshot, key):
            raise RecordError(
                f"video {video!r} has a row in the catalog of {snapshot.path} and no record; the store is damaged"
            )
        return None
    snapshot.prefault(value)
    try:
        record = parse(value)
    except RecordError as exc:
        raise RecordError(
            f"video {video!r} of {snapshot.path}: {exc.found}", remedy=exc.remedy
        ) from exc
    wrong = record.header.misfit(row.spec, dataset)
    if record.header.video_id != video:
        wrong = f"video {record.header.video_id!r}, not {video!r}"
    if wrong:
        raise RecordError(
            f"the record of {video!r} in {snapshot.path} is of another: {wrong}; the store is damaged"
        )
    return value, record


def check_verify(verify: str) -> None:
    """Raise ValueError if there is no such way to verify."""
    if verify not in VERIFY:
        raise ValueError(f"verify is {verify!r}; use one of {', '.join(VERIFY)}")


def find_verified(
    snapshot: DatasetSnapshot, dataset: str, digest: str, videos: Sequence[str], verify: str
) -> list[Record]:
    """Return the records of `videos` up to the first that is not there, as `find_record` does, verified if that is due.

    What is known of a record is not parsed again.

    Args:
        snapshot: Of the dataset.
        dataset: Its name.
        digest: The feature set's.
        videos: The videos' ids.
        verify: One of VERIFY, see `FeatureStore`.

    Raises:
        StoreDamaged: As `find_record`.
        RecordError: As `find_record`, or a payload is damaged.
    """
    cache, txn_id, always = snapshot.cache, snapshot.txn_id, verify == "always"
    keys = [video_key(digest, video) for video in videos]
    known = [cache.get(key) for key in keys]
    if len(keys) > 1:  # the disk or the server is asked for all, before the first is waited for
        for key, cached in zip(keys, known, strict=True):
            if cached is None or cached.txn_id != txn_id:
                snapshot.read_ahead(key)
    records: list[Record] = []
    due = []
    for video, key, cached in zip(videos, keys, known, strict=True):
        if cached is not None and cached.txn_id == txn_id and not always:
            # Nothing of it is read again, so its scales are not verified again.
            value = snapshot.view(cached.place)
            record = Record(cached.header, value[cached.scales], value[cached.payload])
            is_large = len(value) > LARGE_RECORD_BYTES
            # Not at each of many lookups in a row: asking takes as long as looking up.
            if is_large and cache.paused() and is_evicted(address_of(record.payload)):
                snapshot.prefault(value)
        else:
            found = _find_record(snapshot, dataset, digest, video)
            if found is None:
                return records
            value, record = found
            place, parts = snapshot.place(value), record.parts(len(value))
            verified = cached is not None and (
                cached.verified
                and (cached.place, cached.payload) == (place, parts[1])
                and cached.header.payload_xxh3 == record.header.payload_xxh3
            )
            cached = CachedRecord(txn_id, record.header, place, *parts, verified)
            cache.put(key, cached)
        records.append(record)
        if always or (verify == "first" and not cached.verified):
            due.append((key, cached, record))
    for key, cached, record in due:
        record.verify()
        cache.put(key, cached._replace(verified=True))
    return records
