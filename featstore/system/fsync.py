"""Names that outlive a power loss: a file's content is on the disk when it is synced, its name when its folder is."""

from __future__ import annotations

import errno
import os
import secrets
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


def open_draft(folder: str | os.PathLike[str], prefix: str, suffix: str = "") -> tuple[int, str]:
    """Make a file in `folder` that nobody has, and return its descriptor and path; who may read it is the umask's say.

    tempfile's are their maker's alone, also once they have taken the place of a file that others read.
    """
    path = os.path.join(folder, f"{prefix}{secrets.token_hex(8)}{suffix}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), path


def replace_durably(draft: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give the file `draft` the name `target`: after a power loss that is the old file or the new one, whole."""
    sync_file(draft)
    os.replace(draft, target)
    sync_folder(os.path.dirname(os.path.abspath(target)))
