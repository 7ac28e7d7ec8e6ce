"""Compact a dataset: its file is written anew without the space of what was removed, and takes the old one's place.

The new file is made in a folder aside and the two folders are exchanged in one step of the file system, so a kill at
any moment leaves the old dataset or the new one, whole. A folder, not a file: the new file needs a lock file of its
own, for the readers in the old one's table follow the old file, whose views stay good.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from featstore.errors import StoreError, StoreFull
from featstore.store.catalog import read_manifest
from featstore.store.engine.environment import open_environment
from featstore.store.engine.file_state import find_page_problems, leave_note, refuse_damaged_pages
from featstore.store.engine.lmdb_errors import translated
from featstore.store.engine.locks import (
    FLIGHT_FILE,
    WRITE_FILE,
    WriteLock,
    ingest_lock,
    make_lock_file,
)
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.paths import (
    DATA_FILE,
    LMDB_LOCK_FILE,
    SEAL_FILE,
    dataset_path,
    free_bytes,
    keep_name,
    lmdb_name,
)
from featstore.store.room import NO_ROOM
from featstore.system.fsync import sync_file, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

# Files that belong to the old data file, or that the new folder has of its own.
_LEFT_BEHIND = {DATA_FILE, LMDB_LOCK_FILE, WRITE_FILE, SEAL_FILE}
_SLACK_BYTES = 1 << 20
_METAS = 2
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Compacted:
    """Bytes that the dataset's file took on disk, before and after."""

    before: int
    after: int


def compact_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> Compacted:
    """Give the space of removed and replaced records back to the disk.

    Readers go on undisturbed; writers wait. Raises StoreNotFound, StoreLocked while an ingest is at work, StoreFull
    where the disk has no room for the second file beside the first, and StoreError where the dataset is sealed or
    damaged. The dataset is then as it was.
    """
    path = dataset_path(cache_dir, dataset)
    read_manifest(open_environment(path).snapshot(), dataset)  # refuses what is no dataset
    with ingest_lock(path):
        return rewrite(path)


def rewrite(path: Path, *, unseal: bool = False) -> Compacted:
    """Put a compacted copy, unsealed, in the place of the dataset in `path`, whose ingest lock the caller holds."""
    path = Path(os.path.realpath(path))  # a link is followed: its target is exchanged
    if (path / DATA_FILE).is_symlink():
        raise StoreError(
            f"{path / DATA_FILE} is a link, and its copy would lie here; make the folder the link, not the file in it"
        )
    clear_leftovers(path)
    aside = _aside(path)
    if aside.exists():
        raise StoreError(
            f"{aside}, left by a compaction that was killed, cannot be removed: it is another user's; have it removed"
        )
    with _no_one_writing(path, unseal) as source:
        before = _disk_bytes(path)
        _check_room(path, source)
        try:
            _copy(source, path, aside)
            after = _disk_bytes(aside)
            exchange(path, aside)
        finally:
            # The unfinished new folder, or the old one once the new one is sure to stay.
            clear_leftovers(path)
    return Compacted(before, after)


def clear_leftovers(path: Path) -> None:
    """Remove what a compaction of the dataset in `path` left, for the holder of its ingest lock.

    Raises StoreError where the disk fails; nothing is removed then.
    """
    path = Path(os.path.realpath(path))
    aside = _aside(path)
    if aside.exists():
        keep_name(path)  # after a power loss the old folder, were it emptied first, could be back
        shutil.rmtree(aside, ignore_errors=True)


def live_bytes(source: lmdb.Environment) -> int:
    """Return the bytes of the pages in use: what the file will take once it is compacted."""
    found = source.stat()
    pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
    return int((pages + _METAS) * found["psize"])


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step that no one sees halfway; durable once their parent is synced."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if not hasattr(libc, "renameat2"):  # older than glibc 2.28, or no Linux
        raise _cannot_exchange(one, errno.ENOSYS)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        raise _cannot_exchange(one, ctypes.get_errno())


def _aside(path: Path) -> Path:
    return path.with_name(f".compacting-{path.name}")


def _disk_bytes(path: Path) -> int:
    return (path / DATA_FILE).stat().st_blocks * 512


@contextlib.contextmanager
def _no_one_writing(path: Path, sealed: bool) -> Iterator[lmdb.Environment]:
    """Keep every writer out, those of older releases by LMDB's own lock, and give what to copy from."""
    if not sealed:
        txn = WriteTransaction(path)
        try:
            yield txn.environment.lmdb
        finally:
            txn.abort()
        return
    lock = WriteLock(path)
    try:
        refuse_damaged_pages(path)
        environment = open_environment(path)
        with translated(path), contextlib.ExitStack() as stack:
            if environment.reads_alone:
                with lmdb_name(path) as name:
                    opened = lmdb.open(name, readonly=True, lock=False, create=False, lib_version=0)
                yield stack.enter_context(opened)
            else:  # opened before it was sealed
                yield environment.lmdb
    finally:
        lock.release()


def _check_room(path: Path, source: lmdb.Environment) -> None:
    need, free = live_bytes(source) + _SLACK_BYTES, free_bytes(path.parent)
    if free < need:
        raise StoreFull(
            f"{path} needs {need / 2**20:.0f} MiB beside it while it is compacted, {free / 2**20:.0f} MiB are free; "
            "make room"
        )


def _copy(source: lmdb.Environment, path: Path, aside: Path) -> None:
    try:
        os.mkdir(aside, 0o700)
        os.chmod(aside, _folder_mode(path))
        with translated(path), lmdb_name(aside) as name:
            source.copy(name, compact=True)
        sync_file(aside / DATA_FILE)
        _finish(source, path, aside)
        sync_folder(aside)
    except OSError as exc:
        if isinstance(exc, StoreError):
            raise
        full = exc.errno in NO_ROOM
        raise (StoreFull if full else StoreError)(
            f"{path} cannot be compacted: {exc.strerror or exc}; it is as it was"
        ) from exc


def _finish(source: lmdb.Environment, path: Path, aside: Path) -> None:
    """Prove the copy in `aside`, and give its folder all else that the dataset's has."""
    problems = find_page_problems(aside)
    copy = open_environment(
        aside
    )  # makes its lock.mdb; gone with this function, for its name is about to change
    with translated(aside):
        found, wanted = copy.lmdb.stat()["entries"], source.stat()["entries"]
    if problems or found != wanted:
        what = problems[0] if problems else f"{found} of {wanted} rows"
        raise StoreError(
            f"the compacted copy of {path} is not whole ({what}), so the dataset was left as it is; run featstore check"
        )
    for name in (DATA_FILE, LMDB_LOCK_FILE, ""):
        _look_alike(path / name, aside / name)
    _take_along(path, aside)
    lock = WriteLock(aside)
    try:
        leave_note(lock, copy)
    finally:
        lock.release()
    _look_alike(path / WRITE_FILE, aside / WRITE_FILE)


def _take_along(path: Path, aside: Path) -> None:
    """Give the new folder the same lock files, so that who holds them goes on doing so, and whatever else is there."""
    make_lock_file(path / FLIGHT_FILE)
    for entry in path.iterdir():
        if entry.name in _LEFT_BEHIND or entry.name.startswith(".making-"):
            continue
        if entry.is_dir() and not entry.is_symlink():
            raise StoreError(
                f"{path} holds a folder {entry.name!r} that is not featstore's; move it elsewhere"
            )
        os.link(entry, aside / entry.name, follow_symlinks=False)


def _folder_mode(path: Path) -> int:
    """Return the mode of the folder `path`, closed to those who may not read its file: a copy has another at first.

    Open to the others from the start, or what a kill leaves could be removed by its maker alone.
    """
    readers = stat.S_IMODE(os.stat(path / DATA_FILE).st_mode) & 0o044
    return stat.S_IMODE(os.stat(path).st_mode) & (0o7700 | readers | readers >> 1 | readers >> 2)


def _look_alike(old: Path, new: Path) -> None:
    """Give `new` the owner, permissions and access list of `old`, as far as this user may."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        found = os.stat(old)
        for uid in (-1, found.st_uid):  # the group may be given where the owner may not
            with contextlib.suppress(PermissionError):
                os.chown(new, uid, found.st_gid)
        shutil.copystat(old, new)


def _cannot_exchange(path: Path, code: int) -> StoreError:
    return StoreError(
        f"{path} cannot be exchanged for another folder: {os.strerror(code)}; it is as it was: where its file system "
        "cannot do that, or it is a mount point, merge it into another cache with featstore merge"
    )
