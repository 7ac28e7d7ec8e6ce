"""Move a dataset to another cache or name: it is copied, the copy is read back, and only then the old one is removed.

Killed at any moment, the old one is whole; the same call goes on with the copy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featstore.errors import RecordError, StoreMismatch
from featstore.records.record import parse
from featstore.store.catalog import find_record, open_dataset, read_sets
from featstore.store.engine.locks import ingest_lock
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_held
from featstore.store.paths import dataset_path
from featstore.store.rows import set_key

if TYPE_CHECKING:
    import os

    from featstore.records.record import Record
    from featstore.store.maintenance.merge import MergeSummary
    from featstore.store.shards.base import DatasetSnapshot


def move_dataset(
    source: str | os.PathLike[str],
    source_dataset: str,
    cache_dir: str | os.PathLike[str],
    dataset: str,
    **options: Any,
) -> MergeSummary:
    """Copy a dataset, and remove it once each record of the copy was read back from a file that is synced.

    Nothing is removed if the copy was interrupted, had no room or misses a video that is damaged in the source.

    Args:
        source: The cache directory that it is in.
        source_dataset: Its name there.
        cache_dir: The cache directory that it goes to.
        dataset: Its name there.
        options: Of `merge_dataset`: `min_free`, `max_size`, `lock_wait`, `stop`, `on_progress`.

    Returns:
        What was copied; the dataset was moved if nothing failed, and it was neither interrupted nor out of room.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreMismatch: Source and target are one dataset, or the target has other features of one of the videos.
        StoreLocked: An ingest is at work on either.
        StoreError: The target cannot be written, or the source cannot be removed.
    """
    open_dataset(source, source_dataset)  # one that is no dataset gets no lock file
    with ingest_lock(dataset_path(source, source_dataset)):
        while True:
            snapshot = open_dataset(source, source_dataset)
            done = merge_dataset(
                source, cache_dir, dataset, source_dataset=source_dataset, failures=True, **options
            )
            if done.failures or done.interrupted or done.full:
                return done
            _verify(snapshot, open_dataset(cache_dir, dataset), dataset)
            # A model may have stored what it missed in the meantime: that is copied, too.
            if open_dataset(source, source_dataset).txn_id == snapshot.txn_id:
                break
        remove_held(source, source_dataset)
    return done


def _verify(source: DatasetSnapshot, target: DatasetSnapshot, dataset: str) -> None:
    """Raise StoreMismatch unless the target has each record of the source, whole."""
    for digest in read_sets(source):
        for key in source.keys("records", set_key(digest)):
            value = source.get("records", key)
            assert value is not None
            record = parse(value)
            video = record.header.video_id
            found = _read_back(target, dataset, digest, video)
            same = found and (found.header, found.scales) == (
                replace(record.header, dataset=dataset),
                record.scales,
            )
            if not same:
                raise StoreMismatch(
                    f"{target.path} has not the features of video {video!r} that {source.path} has, which so stays as "
                    "it is",
                    remedy="remove that video there with featstore rm if it is an older one, and run the command again",
                )


def _read_back(target: DatasetSnapshot, dataset: str, digest: str, video: str) -> Record | None:
    """Return the whole record of a video; None if it is missing or damaged."""
    try:
        found = find_record(target, dataset, digest, video)
        if found is not None:
            found.verify()
    except RecordError:
        return None
    return found
