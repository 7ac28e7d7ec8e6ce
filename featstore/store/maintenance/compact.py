"""Compact a dataset: its file is written again without the space of what was removed, and takes the old one's place.

The new file is made in a folder aside and the two folders are exchanged in one step of the file system, so a kill at
any moment leaves the old dataset or the new one, whole. A folder, not a file: the new file needs a lock file of its
own, for the readers in the old one's table follow the old file, whose views stay valid.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreFull
from featstore.store.catalog import hold_dataset
from featstore.store.engine.environment import open_environment
from featstore.store.engine.locks import LockFile, clear_leftovers, write_lock
from featstore.store.engine.pages import find_page_problems
from featstore.store.engine.still_file import StillFile, hold_still
from featstore.store.engine.transaction import leave_note
from featstore.store.paths import (
    DATA_FILE,
    FLIGHT_LOCK_FILE,
    LMDB_LOCK_FILE,
    SEAL_FILE,
    WRITE_LOCK_FILE,
    because,
    compacting_path,
    refusal,
)
from featstore.system import libc
from featstore.system.filesystems import free_bytes
from featstore.system.fsync import sync_dir, sync_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OnProgress = Callable[[int, int], None]

# Files that belong to the old data file, or that the new folder has of its own.
_LEFT_BEHIND = {DATA_FILE, LMDB_LOCK_FILE, WRITE_LOCK_FILE, SEAL_FILE}
_SLACK_BYTES = 1 << 20
_LOOK_SECONDS = 0.2  # between two looks at how large the copy is
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Compacted:
    """Bytes that the dataset's file took on disk, before and after."""

    before: int
    after: int


def compact_dataset(
    cache_dir: str | os.PathLike[str], dataset: str, *, on_progress: OnProgress | None = None
) -> Compacted:
    """Give the space of removed and replaced records back to the disk.

    Readers go on undisturbed; writers wait. If it raises, the dataset is as it was.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        on_progress: Called now and then, by another thread, with the bytes of the copy that are written and with all.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work.
        StoreFull: The disk has no room for the second file beside the first.
        StoreError: The dataset is sealed or damaged.
    """
    with hold_dataset(cache_dir, dataset) as path:
        return rewrite(path, on_progress=on_progress)


def rewrite(
    path: Path, *, unseal: bool = False, on_progress: OnProgress | None = None
) -> Compacted:
    """Put a compacted copy, unsealed, in the place of the dataset in `path`, whose ingest lock the caller holds."""
    path = Path(os.path.realpath(path))  # a link is followed: its target is exchanged
    if (path / DATA_FILE).is_symlink():
        raise StoreError(
            f"{path / DATA_FILE} is a link, and its copy would be here; make the folder the link, not the file in it"
        )
    aside = compacting_path(path)
    if aside.exists():
        raise StoreError(
            f"{aside}, left by a compaction that was killed, cannot be removed: it is another user's; have it removed"
        )
    with hold_still(path, sealed=unseal) as source:
        before = _disk_bytes(path)
        _check_room(path, source)
        try:
            _copy(source, path, aside, on_progress)
            after = _disk_bytes(aside)
            exchange(path, aside)
        finally:
            # The unfinished new folder, or the old one once the new one is sure to stay.
            clear_leftovers(path)
    return Compacted(before, after)


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step that nobody sees halfway; durable once their parent is synced."""
    try:
        if libc.renameat2 is None:  # older than glibc 2.28, or not Linux
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        names = os.fsencode(one), os.fsencode(other)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
            raise libc.error()
    except OSError as exc:
        raise StoreError(
            f"{one} cannot be exchanged for another folder: {exc.strerror}; it is as it was: if its file system cannot "
            "do that, or it is a mount point, merge it into another cache with featstore merge"
        ) from exc


def _disk_bytes(path: Path) -> int:
    return (path / DATA_FILE).stat().st_blocks * 512


def _check_room(path: Path, source: StillFile) -> None:
    need, free = source.live_bytes + _SLACK_BYTES, free_bytes(path.parent)
    if free < need:
        raise StoreFull(
            f"{path} needs {need / 2**20:.0f} MiB beside it while it is compacted, {free / 2**20:.0f} MiB are free; "
            "make room"
        )


@contextlib.contextmanager
def _watched(file: Path, total: int, on_progress: OnProgress | None) -> Iterator[None]:
    """Tell how much of `file` is written while the block, one call of LMDB, writes it, and that it is whole."""
    if on_progress is None:
        yield
        return
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                on_progress(min(file.stat().st_size, total), total)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    on_progress(total, total)


def _copy(source: StillFile, path: Path, aside: Path, on_progress: OnProgress | None) -> None:
    try:
        os.mkdir(aside, 0o700)
        os.chmod(aside, _folder_mode(path))
        with _watched(aside / DATA_FILE, source.live_bytes, on_progress):
            source.copy_compacted(aside)
        sync_file(aside / DATA_FILE)
        _finish(source, path, aside)
        sync_dir(aside)
    except OSError as exc:
        if isinstance(exc, StoreError):
            raise
        raise refusal(exc)(f"{path} cannot be compacted: {because(exc)}; it is as it was") from exc


def _finish(source: StillFile, path: Path, aside: Path) -> None:
    """Verify the copy in `aside`, and give its folder all else that the dataset's has."""
    problems = find_page_problems(aside)
    copy = open_environment(aside)  # makes its lock.mdb; let go of before the folder is renamed
    found, wanted = StillFile(copy.lmdb, aside).rows, source.rows
    if problems or found != wanted:
        what = problems[0] if problems else f"{found} of {wanted} rows"
        raise StoreError(
            f"the compacted copy of {path} is not whole ({what}), so the dataset was left as it is; run featstore check"
        )
    for name in (DATA_FILE, LMDB_LOCK_FILE, ""):
        _look_alike(path / name, aside / name)
    _take_along(path, aside)
    lock = write_lock(aside)
    try:
        leave_note(lock, copy)
    finally:
        lock.close()
    _look_alike(path / WRITE_LOCK_FILE, aside / WRITE_LOCK_FILE)


def _take_along(path: Path, aside: Path) -> None:
    """Give the new folder the same lock files, so that who holds them goes on doing so, and whatever else is there."""
    LockFile(path / FLIGHT_LOCK_FILE).close()
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

    Open to the others from the start, or what a kill leaves could be removed by its maker only.
    """
    readers = stat.S_IMODE(os.stat(path / DATA_FILE).st_mode) & 0o044
    return stat.S_IMODE(os.stat(path).st_mode) & (0o7700 | readers | readers >> 1 | readers >> 2)


def _look_alike(old: Path, new: Path) -> None:
    """Give `new` the owner, permissions and access list of `old`, as far as this user may."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        found = os.stat(old)
        for uid in (-1, found.st_uid):  # the group may be given if the owner may not
            with contextlib.suppress(PermissionError):
                os.chown(new, uid, found.st_gid)
        shutil.copystat(old, new)
