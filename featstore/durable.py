"""Names that outlive a power loss: a file's content is on the disk when it is synced, its name when its folder is."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What file systems answer that cannot sync a folder, and what a folder answers that may be passed but not read.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make durable which names the folder `path` holds: those made, moved and removed before.

    Does nothing where the file system has no such thing. Raises OSError where the disk fails.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise


def sync_file(path: str | os.PathLike[str]) -> None:
    """Make durable what the file `path` holds; raise OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_durable_folder(path: Path) -> None:
    """Make the folder `path` and those above it that are missing, their names durable; raise OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def replace_durably(draft: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give the file `draft` the name `target`: after a power loss that is the old file or the new one, whole."""
    sync_file(draft)
    os.replace(draft, target)
    sync_folder(os.path.dirname(os.path.abspath(target)))
