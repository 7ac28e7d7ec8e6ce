"""Connect a folder on a local disk with the place of which it has records.

The folder, `LOCAL`, is a cache directory like any other: `remote.json` says where its datasets come from, and each has
there its list of shards and their indices, as in every cache directory, but no shard. So all that reads a cache
directory reads it by its path.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from featstore.defaults import LOCAL_BYTES
from featstore.errors import StoreDamaged, StoreError, StoreMismatch, StoreNotFound
from featstore.store.paths import (
    absolute,
    because,
    dataset_names,
    explained,
    has_data,
    is_dataset_name,
    make_folder,
)
from featstore.store.shards.manifest_list import MAX_LIST_BYTES, list_name, list_number, read_list
from featstore.store.shards.places import LocalPlace, shard_file
from featstore.store.shards.remote.bucket import BucketPlace, is_url
from featstore.store.shards.remote.hub import HubPlace
from featstore.store.shards.union import read_index
from featstore.system.filesystems import refuse_network
from featstore.system.fsync import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.store.shards.manifest_list import ShardList, ShardRow
    from featstore.store.shards.places import FilePlace

REMOTE_FILE = "remote.json"
_MAX_REMOTE_BYTES = 1 << 16


class Remote(NamedTuple):
    """Where the datasets of a local folder come from, and the bytes that their records may take in it."""

    url: str
    max_bytes: int


def open_place(url: str | os.PathLike[str]) -> FilePlace:
    """Return the place that a URL or a folder names; raise as BucketPlace does."""
    if not str(url) or (is_url(url) and not urlsplit(str(url)).netloc):
        raise StoreError(
            f"{str(url)!r} names no place", remedy="write s3://BUCKET/PREFIX, or a folder"
        )
    if str(url).startswith("hf://"):
        return HubPlace(str(url))
    return BucketPlace(str(url)) if is_url(url) else LocalPlace(absolute(url))


def connect(
    url: str | os.PathLike[str], local: str | os.PathLike[str], max_bytes: int | None = None
) -> Path:
    """Make `local` the folder through which the datasets at `url` are read, and return it.

    If the server does not answer, and datasets were read through it before, those are served as they were, with a
    warning.

    Args:
        url: As `s3://bucket/prefix` or `https://host/prefix`, or a cache directory on a network file system.
        local: A folder on a local disk; made if it is not there.
        max_bytes: What the records in it may take; by default as before, or 200 GiB.

    Raises:
        StoreMismatch: The folder is that of another place, or holds a cache of its own.
        StoreNotFound: There is no store at `url`.
        StoreError: It cannot be read, or the folder not written.
    """
    folder = absolute(local)
    where = str(url).rstrip("/") if is_url(url) else str(absolute(url))
    before = read_remote(folder)
    if before is not None and before.url != where:
        raise StoreMismatch(
            f"{folder} has records of {before.url}, not of {where}", remedy="take another local="
        )
    refuse_network(folder)
    place = open_place(where)
    there = read_remote(place.root) if isinstance(place, LocalPlace) else None
    if there is not None:
        raise StoreMismatch(f"{where} has single records of {there.url}", remedy="open that")
    # Another process may have made it in the meantime.
    if before is None and _is_cache(folder) and read_remote(folder) is None:
        raise StoreMismatch(
            f"{folder} is a cache directory of its own", remedy="take an empty folder for local="
        )
    if max_bytes is None:
        max_bytes = before.max_bytes if before else LOCAL_BYTES
    if before != Remote(
        where, max_bytes
    ):  # before any list, which is of a cache of its own without it
        make_folder(folder)
        _write(folder / REMOTE_FILE, json.dumps({"url": where, "max_bytes": max_bytes}) + "\n")
    try:
        _copy_lists(place, folder)
    except StoreError as exc:
        if before is None and not _is_cache(folder):
            (folder / REMOTE_FILE).unlink(missing_ok=True)
        if before is None or isinstance(exc, (StoreNotFound, StoreDamaged)):
            raise
        if "credentials" in exc.found:
            raise
        warnings.warn(
            f"{exc.found}; what was fetched into {folder} before is served as it was",
            RuntimeWarning,
            stacklevel=3,
        )
    return folder


def read_remote(folder: Path) -> Remote | None:
    """Return where the datasets of the cache directory `folder` come from, None if they are its own."""
    try:
        with open(folder / REMOTE_FILE, "rb") as file:
            plain = json.loads(file.read(_MAX_REMOTE_BYTES))
        found = Remote(plain["url"], plain["max_bytes"])
        if isinstance(found.url, str) and type(found.max_bytes) is int and found.max_bytes > 0:
            return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise StoreError(f"{folder / REMOTE_FILE} cannot be read: {because(exc)}") from exc
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise StoreDamaged(
        f"{folder / REMOTE_FILE} does not say where its datasets come from",
        remedy="remove the folder, and open the store again with local=",
    )


def _copy_lists(place: FilePlace, folder: Path) -> None:
    """Copy the newest list of each dataset; of those known before if the place lists none."""
    is_web = isinstance(place, BucketPlace) and place.is_web
    names = LocalPlace(folder).folders() if is_web and folder.is_dir() else []
    names = names if is_web else place.folders()
    for name in filter(is_dataset_name, names):
        copy_list(place, name, folder)


def copy_list(
    place: FilePlace, dataset: str, folder: Path, *, mend: bool = False
) -> ShardList | None:
    """Copy the newest list of a dataset and its indices to the local folder, the list last; None if there is none.

    Args:
        place: Where from.
        dataset: The dataset's name.
        folder: The local folder.
        mend: Also copy what is there and damaged.
    """
    found = read_list(place, dataset)
    if not found.number:
        return None
    here, name = LocalPlace(folder), shard_file(dataset, list_name(found.number))
    there = here.names(shard_file(dataset))
    if not mend:
        before = _list_here(here, dataset)
        if before == found:
            return found
        # Of a dataset that was made anew there the numbers begin anew, too.
        mend = before is None or before.number >= found.number
    for row in found.shards:
        if row.index_name not in there or (mend and not _is_whole(here, dataset, row)):
            data, _ = read_index(place, dataset, row)
            here.put(shard_file(dataset, row.index_name), data)
    here.put(name, place.read(name, MAX_LIST_BYTES))
    for later in there:
        if list_number(later) > found.number:
            (folder / shard_file(dataset, later)).unlink(missing_ok=True)
    return found


def _list_here(here: LocalPlace, dataset: str) -> ShardList | None:
    """Return the newest list in the local folder, None if it is damaged."""
    with contextlib.suppress(StoreDamaged, StoreMismatch):
        return read_list(here, dataset)
    return None


def _is_whole(here: LocalPlace, dataset: str, row: ShardRow) -> bool:
    with contextlib.suppress(StoreDamaged):
        read_index(here, dataset, row)
        return True
    return False


def find_dataset(folder: Path, dataset: str) -> bool:
    """Have a dataset that the place does not list copied; return whether there is one."""
    remote = read_remote(folder)
    if remote is None or not is_dataset_name(dataset):
        return False
    place = place_of(remote.url)
    if isinstance(place, LocalPlace) and has_data(place.root / dataset):
        raise StoreMismatch(
            f"{place.where}/{dataset} is one file, of which no single records are read from elsewhere",
            remedy="make shards of it by featstore push CACHE FOLDER, and open that; or copy it with featstore merge",
        )
    return copy_list(place, dataset, folder) is not None


def _is_cache(folder: Path) -> bool:
    return folder.is_dir() and bool(dataset_names(folder))


def _write(path: Path, text: str) -> None:
    with explained(f"{path} cannot be written"), write_atomically(path) as file:
        file.write(text.encode())


def place_of(url: str) -> FilePlace:
    """Return this process's place of that URL or folder; connections do not survive a fork."""
    return _place(url, os.getpid())


@lru_cache(maxsize=64)
def _place(url: str, pid: int) -> FilePlace:
    return open_place(url)
