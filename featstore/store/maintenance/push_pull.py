"""Push datasets to an object store, and pull them from one: what is missing there is copied, the list of shards last.

A transfer that is killed leaves files that no list names, and the same command goes on; of two that push at the same
time none loses anything. Datasets that are pushed are only read.
"""

from __future__ import annotations

import contextlib
import fcntl
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import xxhash

from featstore.errors import StoreDamaged, StoreError, StoreFull, StoreMismatch, StoreNotFound
from featstore.store.catalog import open_dataset, read_manifest
from featstore.store.maintenance.seal_shard import seal_shard
from featstore.store.paths import (
    absolute,
    dataset_names,
    dataset_path,
    explained,
    has_data,
    is_dataset_name,
    make_folder,
)
from featstore.store.shards.manifest_list import add_shards, read_list
from featstore.store.shards.places import GOOD_COPY, PIECE_BYTES, LocalPlace, shard_file
from featstore.store.shards.remote.bucket import BucketPlace
from featstore.store.shards.remote.connection import open_place, read_remote
from featstore.store.shards.union import read_index
from featstore.system.filesystems import format_bytes, free_bytes
from featstore.system.fsync import write_atomically

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from featstore.store.shards.manifest_list import ShardRow
    from featstore.store.shards.places import FilePlace

_PULLING = ".pulling-"


@dataclass(frozen=True)
class Transferred:
    """What a push or a pull did of a dataset: shards copied, their bytes, and the shards that there are now."""

    dataset: str
    copied: int
    copied_bytes: int
    shards: int


def push(
    cache_dir: str | os.PathLike[str],
    url: str,
    datasets: Iterable[str] = (),
    report: Callable[[Transferred], None] = lambda done: None,
) -> list[Transferred]:
    """Copy datasets to an object store.

    One that is a single LMDB file is pushed as one sealed shard, compacted first beside it; one of shards, as those
    that are missing there.

    Args:
        cache_dir: The cache directory.
        url: Where to, as `s3://bucket/prefix`; or a folder, as on a network file system.
        datasets: Their names, by default all.
        report: Called with each when it is done.

    Raises:
        StoreNotFound: There is no such dataset, or no such bucket.
        StoreLocked: An ingest is at work on one.
        StoreError: The server does not answer, refuses, or a file cannot be read.
    """
    place, done = open_place(url), []
    for dataset in [*datasets] or dataset_names(cache_dir):
        path = dataset_path(cache_dir, dataset)
        read_manifest(open_dataset(cache_dir, dataset), dataset)
        if isinstance(place, LocalPlace):
            _refuse_target(place.root, dataset)
        elif isinstance(place, BucketPlace):
            place.refuse_writing()
        if read_remote(path.parent) is not None:
            raise StoreError(
                f"{path} is read from elsewhere and has no shards of its own",
                remedy="push from the cache directory that has them",
            )
        if has_data(path):
            before = read_list(place, dataset).shards
            added = seal_shard(cache_dir, dataset, place)
            copied = [] if added is None or added in before else [added]
        else:
            copied = _push_shards(LocalPlace(path.parent), place, dataset)
        done.append(_summary(place, dataset, copied))
        report(done[-1])
    if not done:
        raise StoreNotFound(f"there is no dataset in {cache_dir}", remedy="correct its name")
    return done


def pull(
    url: str,
    cache_dir: str | os.PathLike[str],
    datasets: Iterable[str] = (),
    report: Callable[[Transferred], None] = lambda done: None,
) -> list[Transferred]:
    """Copy datasets from an object store into a cache directory, as sealed shards.

    Args:
        url: Where from, as `s3://bucket/prefix`, `https://host/prefix`, or a folder.
        cache_dir: The cache directory; made if it is not there.
        datasets: Their names, by default all that the place lists.
        report: Called with each when it is done.

    Raises:
        StoreNotFound: There is no such dataset there.
        StoreMismatch: The cache directory holds a dataset of that name as one file.
        StoreDamaged: What came is not what its name says.
        StoreFull: The disk has no room.
        StoreError: The server does not answer or refuses.
    """
    place, here, done = open_place(url), LocalPlace(absolute(cache_dir)), []
    names = [*datasets] or [*filter(is_dataset_name, place.folders())]
    for dataset in names:
        path = dataset_path(cache_dir, dataset)
        rows = read_list(place, dataset).shards
        if not rows:
            if dataset not in datasets:
                continue  # a folder of something else
            raise StoreNotFound(
                f"there is no dataset {dataset!r} in {place.where}", remedy="correct its name"
            )
        _refuse_target(path.parent, dataset)
        copied = [row for row in rows if _pull_shard(place, here, dataset, row)]
        add_shards(here, dataset, rows)
        done.append(_summary(here, dataset, copied))
        report(done[-1])
    if not done:
        raise StoreNotFound(f"there is no dataset in {place.where}", remedy="correct its name")
    return done


def _refuse_target(folder: Path, dataset: str) -> None:
    """Raise StoreMismatch if the cache directory `folder` can hold no shards of the dataset."""
    if has_data(folder / dataset):
        raise StoreMismatch(
            f"{folder / dataset} holds the dataset as one file, beside which no shards can be",
            remedy="take another cache directory; featstore merge then joins the two",
        )
    remote = read_remote(folder)
    if remote is not None:
        raise StoreMismatch(
            f"{folder} has single records of {remote.url}, and no shards",
            remedy="take another cache directory",
        )


def _summary(place: FilePlace, dataset: str, copied: list[ShardRow]) -> Transferred:
    shards = len(read_list(place, dataset).shards)
    return Transferred(dataset, len(copied), sum(row.file_bytes for row in copied), shards)


def _push_shards(here: LocalPlace, place: FilePlace, dataset: str) -> list[ShardRow]:
    """Copy what is missing there of the shards here; return those whose files were."""
    rows, copied = read_list(here, dataset).shards, []
    there = place.names(shard_file(dataset))
    for row in rows:
        name, index = shard_file(dataset, row.data_name), shard_file(dataset, row.index_name)
        data, _ = read_index(here, dataset, row)
        if there.get(row.data_name) != row.file_bytes:
            place.upload(name, here.root / name)
            copied.append(row)
        if there.get(row.index_name) != row.index_bytes:
            place.put(index, data)
    add_shards(place, dataset, rows)
    return copied


def _pull_shard(place: FilePlace, here: LocalPlace, dataset: str, row: ShardRow) -> bool:
    """Copy a shard's file and index, each verified before it has its name; return whether the file was missing."""
    there = here.names(shard_file(dataset))
    missing = there.get(row.data_name) != row.file_bytes
    if not missing and there.get(row.index_name) == row.index_bytes:
        return False
    name, index = shard_file(dataset, row.data_name), shard_file(dataset, row.index_name)
    data, _ = read_index(place, dataset, row)
    target = here.root / name
    make_folder(target.parent)
    _clear_pulled(target.parent)
    if missing:
        if free_bytes(target.parent) < row.file_bytes:
            raise StoreFull(
                f"{target.parent} has no room for a shard of {format_bytes(row.file_bytes)}",
                remedy="free some, or pull into a --cache-dir on another disk",
            )
        with (
            explained(f"{target} cannot be written"),
            write_atomically(target, draft=_PULLING) as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX)
            _copy_verified(place, name, row, file)
    here.put(index, data)
    return missing


def _copy_verified(place: FilePlace, name: str, row: ShardRow, file: IO[bytes]) -> None:
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(PIECE_BYTES, row.file_bytes)))
    for at in range(0, row.file_bytes, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, row.file_bytes - at)]
        place.read_into(name, at, piece)
        hasher.update(piece)
        file.write(piece)
    if hasher.hexdigest() != row.shard:
        raise StoreDamaged(
            f"{place.where}/{name} is not what its name says: its xxh3-128 is {hasher.hexdigest()}",
            remedy=GOOD_COPY,
        )


def _clear_pulled(folder: Path) -> None:
    """Remove what pulls left that were killed: nobody locks it."""
    for draft in folder.glob(f"{_PULLING}*"):
        with contextlib.suppress(OSError), open(draft, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()
