"""Remove a dataset, a feature set or single videos: gone for all who look, while views already taken stay valid."""

from __future__ import annotations

import os
import shutil
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.errors import StoreError
from featstore.store.catalog import hold_dataset, read_sets
from featstore.store.changes import CatalogTransaction
from featstore.store.describe import write_cache_meta
from featstore.store.engine.environment import open_snapshot
from featstore.store.engine.locks import ingest_lock
from featstore.store.lost import explain_absent, listed_datasets, lost_datasets
from featstore.store.paths import because, dataset_bytes, dataset_path, has_data, is_sharded
from featstore.store.rows import set_key, video_key
from featstore.system.fsync import sync_dir

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from featstore.spec import FeatureSpec
    from featstore.store.engine.snapshot import Snapshot

# Each commit is synced; each holds the page numbers of what it frees in memory, 8 bytes for 4 KiB.
COMMIT_VIDEOS = 256
COMMIT_BYTES = 4 << 30
VIDEO_TABLES = ("catalog", "records", "failures")


@dataclass
class Removed:
    """What was removed.

    Attributes:
        videos: Videos with features.
        failures: Failures on record.
        record_bytes: Bytes of the videos' records.
        missing: The ids of which nothing was there.
    """

    videos: int = 0
    failures: int = 0
    record_bytes: int = 0
    missing: tuple[str, ...] = ()


def remove_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> int:
    """Remove `dataset`, or what is left of one whose file is gone; of one that is a link, only the link is removed.

    A run killed halfway leaves a folder whose name begins with a dot, which no one reads and the next removal of the
    dataset clears.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.

    Returns:
        The bytes that it took on disk.

    Raises:
        StoreNotFound: There never was such a dataset.
        StoreLocked: An ingest is at work.
        StoreError: Its folder may not be removed.
    """
    path = dataset_path(cache_dir, dataset)
    gone = path.with_name(f".removed-{dataset}")
    lost = not (has_data(path) or is_sharded(path))
    if lost:
        _clear(gone)
        if dataset not in lost_datasets(cache_dir):
            raise explain_absent(cache_dir, dataset)
        if not path.is_dir():  # the whole folder is gone
            _forget(cache_dir, dataset)
            if path.is_symlink():
                _clear(path)
            return 0
    with ingest_lock(path):
        return remove_held(cache_dir, dataset)


def remove_held(cache_dir: str | os.PathLike[str], dataset: str) -> int:
    """Remove `dataset`, whose ingest lock the caller holds; otherwise as `remove_dataset`."""
    path = dataset_path(cache_dir, dataset)
    gone = path.with_name(f".removed-{dataset}")
    taken = 0 if path.is_symlink() else dataset_bytes(path)
    _clear(gone)
    _forget(cache_dir, dataset)
    try:
        os.rename(path, gone)
        sync_dir(path.parent)  # or a power loss could bring back a folder with half its files
    except OSError as exc:
        raise StoreError(f"{path} cannot be removed: {because(exc)}") from exc
    _clear(gone)
    return taken


def _forget(cache_dir: str | os.PathLike[str], dataset: str) -> None:
    # Before it is gone: a kill in between is not to make it a dataset that was lost.
    if dataset in listed_datasets(cache_dir):
        write_cache_meta(cache_dir, forget=dataset)


def remove_videos(
    cache_dir: str | os.PathLike[str],
    dataset: str,
    videos: Iterable[str],
    *,
    spec: FeatureSpec | None = None,
) -> Removed:
    """Remove what is stored of `videos`, failures too, from one feature set, or from all if `spec` is None.

    The file keeps its size: the space is used by later ingests, or given back by `compact_dataset`. A run killed
    halfway has removed some of the videos, each wholly.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        videos: Their ids.
        spec: The feature set; None for all.

    Returns:
        What was removed, and the ids that were not there.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work.
        StoreError: The dataset is sealed or damaged.
    """
    with hold_dataset(cache_dir, dataset) as path:
        snapshot = open_snapshot(path)
        digests = [spec.digest] if spec is not None else list(read_sets(snapshot))
        keys: list[bytes] = []
        missing = []
        for video in dict.fromkeys(videos):
            there = [
                key
                for key in (video_key(digest, video) for digest in digests)
                if any(snapshot.read(table, key) for table in ("catalog", "failures"))
            ]
            keys += there
            if not there:
                missing.append(video)
        removed = _remove_keys(path, dataset, keys)
    removed.missing = tuple(missing)
    return removed


def remove_set(cache_dir: str | os.PathLike[str], dataset: str, spec: FeatureSpec) -> Removed:
    """Remove the feature set of `spec` with all its videos and failures.

    The oldest set that is left becomes the default one if this was. A run killed halfway leaves the set with the videos
    that are not removed yet.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        spec: The feature set's.

    Returns:
        What was removed.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work.
        StoreError: The dataset is sealed or damaged.
    """
    with hold_dataset(cache_dir, dataset) as path:
        removed = _remove_keys(path, dataset, _keys_of(open_snapshot(path), spec.digest))
        with CatalogTransaction(path, dataset) as txn:
            # Models store what they miss one by one, without the ingest lock: nobody does from here on.
            for key in _keys_of(txn.environment.snapshot(), spec.digest):
                _delete(txn, key, removed)
            txn.delete_set(set_key(spec.digest))
    return removed


def _keys_of(snapshot: Snapshot, digest: str) -> list[bytes]:
    keys = {key for table in VIDEO_TABLES for key in snapshot.keys(table, set_key(digest))}
    return sorted(keys)


def _remove_keys(path: Path, dataset: str, keys: list[bytes]) -> Removed:
    """Remove what is under `keys`, a commit's worth at a time."""
    removed, waiting = Removed(), deque(keys)
    while waiting:
        enough = removed.record_bytes + COMMIT_BYTES
        with CatalogTransaction(path, dataset) as txn:
            for _ in range(min(COMMIT_VIDEOS, len(waiting))):
                _delete(txn, waiting.popleft(), removed)
                if removed.record_bytes >= enough:
                    break
    return removed


def _delete(txn: CatalogTransaction, key: bytes, removed: Removed) -> None:
    gone = txn.delete_video(key)
    removed.videos += gone.videos
    removed.failures += gone.failures
    removed.record_bytes += gone.record_bytes


def _clear(gone: Path) -> None:
    """Remove a folder that no one reads any more, or a link in its place; another removal may be clearing it too."""
    if gone.is_symlink():
        gone.unlink(missing_ok=True)
    else:
        shutil.rmtree(gone, ignore_errors=True)
