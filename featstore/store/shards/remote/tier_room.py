"""The room that fetched records take: counted, bounded, and made by removing what was used longest ago.

    LOCAL/.fetching/<xxh3-128>.<random>     a record that is being fetched, locked; unlocked, left by a killed process
    LOCAL/.locks/00 ... ff, room            locks, which are never removed; `room` also counts the bytes

The count is never less than what is there: room is taken before a file is made, and given back when it is gone. It is
counted anew when it is not known, or when there seems to be no room.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreFull
from featstore.store.paths import because, explained, make_folder, refusal
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORDS_FOLDER = "records"
_ROOM = "room"
# More room than is asked for is made at once, this part of all, so that the files are not listed for each record.
_SPARE = 20
_COUNT_BYTES = 20  # of the count, as text


class TierRoom:
    """The room in a folder; see the module.

    Attributes:
        folder: The folder.
        max_bytes: What the files in it may take together.
        fetching: Where files are that are being fetched.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make the folders that it needs; raise StoreError if that cannot be."""
        self.folder, self.max_bytes = folder, max_bytes
        self.fetching, self._locks = folder / ".fetching", folder / ".locks"
        self._make_folders()

    def _make_folders(self) -> None:
        for made in (self._locks, self.fetching):
            make_folder(made)

    def used_bytes(self) -> int:
        """Return the bytes of all files in it."""
        with self.locked(_ROOM):
            return self._being_fetched() + sum(size for _, size, _ in self._files())

    def take(self, draft: Path, size: int) -> int:
        """Make the file `draft` of `size` bytes, locked, with room for it taken; return its descriptor."""
        if size > self.max_bytes:
            raise StoreFull(
                f"a record of {format_bytes(size)} is more than {self.folder} may hold, {format_bytes(self.max_bytes)}",
                remedy="allow more (max_size=)",
            )
        with self.locked(_ROOM) as count:
            used = _read_count(count)
            if used is None or used + size > self.max_bytes:
                used = self._evict(size)
            _write_count(count, used + size)
            try:
                fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                fcntl.flock(fd, fcntl.LOCK_EX)  # until it is closed
                try:
                    os.posix_fallocate(fd, 0, size)
                except OSError:
                    os.close(fd)
                    os.unlink(draft)
                    raise
            except OSError as exc:
                _write_count(count, used)
                raise refusal(exc)(
                    f"a record of {format_bytes(size)} cannot be written to {self.folder}: {because(exc)}",
                    remedy="free room on its disk, or allow less (max_size=), which has records removed sooner",
                ) from exc
            return fd

    def give_back(self, draft: Path, size: int) -> None:
        """Remove the file `draft` of `size` bytes."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        with self.locked(_ROOM) as count:
            used = _read_count(count)
            if used is not None:
                _write_count(count, max(0, used - size))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[int]:
        """Hold a lock, between processes and threads; it goes with its process."""
        path = self._locks / name
        self._make_folders()  # if they were removed since
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise StoreError(f"{path} cannot be opened: {because(exc)}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            unlock(fd)

    def _evict(self, size: int) -> int:
        """Remove what was used longest ago until `size` bytes fit, and some more; return the bytes that are left."""
        # First: what gets its name in between counts twice, and not never.
        used = self._being_fetched()
        files = sorted(self._files())
        used += sum(found for _, found, _ in files)
        if used + size <= self.max_bytes:
            return used
        most = max(0, self.max_bytes - size - self.max_bytes // _SPARE)
        for _, found, path in files:
            if used <= most:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= found
        if used + size > self.max_bytes:
            raise StoreFull(
                f"{format_bytes(size)} do not fit beside what is being fetched into {self.folder}, which may hold "
                f"{format_bytes(self.max_bytes)}",
                remedy="allow more (max_size=), or read less at once",
            )
        return used

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Yield when each file was last used, its bytes and its path."""
        for dataset in _folders(self.folder):
            for folder in _folders(f"{dataset}/{RECORDS_FOLDER}"):
                with contextlib.suppress(OSError), os.scandir(folder) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat()
                            yield found.st_mtime_ns, found.st_size, entry.path

    def _being_fetched(self) -> int:
        """Return the bytes of files that are being fetched; those that a killed process left are removed."""
        total = 0
        with explained(f"{self.fetching} cannot be looked into"):
            for entry in [*os.scandir(self.fetching)]:
                with contextlib.suppress(FileNotFoundError), open(entry.path, "rb") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        total += os.fstat(file.fileno()).st_size
                    else:
                        os.unlink(entry.path)
        return total


def unlock(fd: int) -> None:
    """Close a file that is locked; its lock goes also if a child was forked meanwhile, which has the file open too."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _folders(path: Path | str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _read_count(fd: int) -> int | None:
    """Return the count of bytes; None if it is not there, or damaged."""
    text = os.pread(fd, _COUNT_BYTES + 1, 0)
    return int(text) if len(text) == _COUNT_BYTES and text.isdigit() else None


def _write_count(fd: int, count: int) -> None:
    os.pwrite(fd, b"%020d" % count, 0)
