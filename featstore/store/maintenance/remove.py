"""Remove a dataset, a feature set or single videos: gone for all who look, while views already taken stay valid."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreMismatch, StoreNotFound
from featstore.store.catalog import (
    read_entry,
    read_manifest,
    read_sets,
    set_key,
    stored_spec,
    video_key,
)
from featstore.store.describe import write_cache_meta
from featstore.store.engine.environment import open_environment, open_snapshot
from featstore.store.engine.locks import ingest_lock
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.lost import listed_datasets, lost_datasets
from featstore.store.paths import DATA_FILE, because, dataset_path, has_data
from featstore.system.fsync import sync_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from featstore.spec import FeatureSpec
    from featstore.store.engine.snapshot import Snapshot

# Each commit is synced; each holds the page numbers of what it frees in memory, 8 bytes for 4 KiB.
COMMIT_VIDEOS = 256
COMMIT_BYTES = 4 << 30
VIDEO_TABLES = ("catalog", "records", "failures")


@dataclass
class Removed:
    """What was removed: videos with features, failures on record, bytes of records.

    missing: the ids of which nothing was there.
    """

    videos: int = 0
    failures: int = 0
    record_bytes: int = 0
    missing: tuple[str, ...] = ()


def remove_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> int:
    """Remove `dataset` and return the bytes it took on disk; of one that is a link, only the link is removed.

    What is left of one whose file is gone is removed too. Raises StoreNotFound if it never was, StoreLocked while an
    ingest is at work. A run killed halfway leaves a folder whose name begins with a dot, which no one reads and the
    next removal of the dataset clears.
    """
    path = dataset_path(cache_dir, dataset)
    gone = path.with_name(f".removed-{dataset}")
    lost = not has_data(path)
    if lost:
        _clear(gone)
        if dataset not in lost_datasets(cache_dir):
            raise StoreNotFound(
                f"there is no dataset {dataset!r} in {cache_dir}; list them: featstore ls"
            )
        if not path.is_dir():  # the whole folder is gone
            _forget(cache_dir, dataset)
            return 0
    with ingest_lock(path):
        taken = 0 if lost or path.is_symlink() else (path / DATA_FILE).stat().st_blocks * 512
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

    Videos that are not there are named in the result. The file keeps its size: the space is used by later ingests, or
    given back by `compact_dataset`. Raises StoreNotFound, StoreLocked while an ingest is at work, and StoreError if
    the dataset is sealed. A run killed halfway has removed some of the videos, each wholly.
    """
    with _opened(cache_dir, dataset) as (path, snapshot):
        specs = [found.spec for found in read_sets(snapshot).values()]
        if spec is not None:
            specs = [stored_spec(snapshot, spec) or spec]
        keys: list[bytes] = []
        missing = []
        for video in dict.fromkeys(videos):
            there = [
                key
                for key in (video_key(found, dataset, video) for found in specs)
                if any(snapshot.read(table, key) for table in ("catalog", "failures"))
            ]
            keys += there
            if not there:
                missing.append(video)
        removed = _remove_keys(path, snapshot, keys)
    removed.missing = tuple(missing)
    return removed


def remove_set(cache_dir: str | os.PathLike[str], dataset: str, spec: FeatureSpec) -> Removed:
    """Remove the feature set of `spec` with all its videos and failures; otherwise as `remove_videos`.

    A run killed halfway leaves the set with the videos that are not removed yet.
    """
    with _opened(cache_dir, dataset) as (path, snapshot):
        prefix = set_key(spec.digest)
        keys = {key for table in VIDEO_TABLES for key in snapshot.keys(table, prefix)}
        removed = _remove_keys(path, snapshot, sorted(keys))
        with WriteTransaction(path) as txn:
            # Models store what they miss one by one, without the ingest lock: nobody does from here on.
            newest = txn.environment.snapshot()
            late = sorted({key for table in VIDEO_TABLES for key in newest.keys(table, prefix)})
            removed.record_bytes += sum(_record_bytes(newest, key) for key in late)
            _delete(txn, late, removed)
            txn.delete("specs", prefix)
    return removed


@contextlib.contextmanager
def _opened(cache_dir: str | os.PathLike[str], dataset: str) -> Iterator[tuple[Path, Snapshot]]:
    path = dataset_path(cache_dir, dataset)
    open_environment(path)  # makes no folder, nor a lock file, if there is no dataset
    with ingest_lock(path):
        snapshot = open_snapshot(path)
        read_manifest(snapshot, dataset)
        yield path, snapshot


def _remove_keys(path: Path, snapshot: Snapshot, keys: list[bytes]) -> Removed:
    removed = Removed()
    for part in _parts(snapshot, keys):
        with WriteTransaction(path) as txn:
            _delete(txn, part, removed)
        removed.record_bytes += sum(part.values())
    return removed


def _delete(txn: WriteTransaction, keys: Iterable[bytes], removed: Removed) -> None:
    for key in keys:
        entry, record, failure = (txn.delete(table, key) for table in VIDEO_TABLES)
        removed.videos += entry or record
        removed.failures += failure


def _parts(snapshot: Snapshot, keys: list[bytes]) -> Iterator[dict[bytes, int]]:
    """Yield keys with the bytes of their records, a commit's worth at a time."""
    part: dict[bytes, int] = {}
    for key in keys:
        part[key] = _record_bytes(snapshot, key)
        if len(part) >= COMMIT_VIDEOS or sum(part.values()) >= COMMIT_BYTES:
            yield part
            part = {}
    if part:
        yield part


def _record_bytes(snapshot: Snapshot, key: bytes) -> int:
    with contextlib.suppress(StoreMismatch):  # a damaged row goes as well
        entry = read_entry(snapshot, key)
        return entry.record_bytes if entry else 0
    return 0


def _clear(gone: Path) -> None:
    """Remove a folder that no one reads any more, or a link in its place; another removal may be clearing it too."""
    if gone.is_symlink():
        gone.unlink(missing_ok=True)
    else:
        shutil.rmtree(gone, ignore_errors=True)
