"""What is asked of the file system under a store: whether it is a network's, read-only or full, and its free bytes.

LMDB and shared maps do not belong on file systems that reach over a network. Two machines each have a page cache and,
often, locks of their own: what one writes the other sees late or in part, and a map of a file that is cut short
elsewhere ends the process. So nothing is written to such a store, and it is read with a warning.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from featstore.errors import StoreError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a commit may need beyond its records; a disk that has less is full.
_PROBE_BYTES = 1 << 20
# Set to 1 by users who know that one machine at a time uses the store, and that its locks and maps work.
OVERRIDE = "FEATSTORE_NETWORK_STORE"
MOUNTS = Path("/proc/self/mountinfo")
# As Linux names them in mountinfo.
_CLUSTER = "acfs beegfs ceph gfs gfs2 gpfs lustre ocfs2 orangefs panfs pvfs2 wekafs"
_SHARE = "9p afs cifs coda ncpfs nfs nfs4 smb3 smbfs vboxsf virtiofs"
NETWORK = frozenset(f"{_CLUSTER} {_SHARE}".split())
# File systems in user space may be anything; these are on this machine's disks.
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.mergerfs", "fuse.bindfs"})


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes that this user may still write to the disk under `path`; raise StoreError."""
    try:
        stat = os.statvfs(path)
    except OSError as exc:
        raise StoreError(f"{path} cannot be looked into: {exc.strerror}") from exc
    return stat.f_bavail * stat.f_frsize


def nearest_folder(path: str | os.PathLike[str]) -> Path:
    """Return the absolute `path`, or the nearest above it that exists."""
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    return there


def is_full(file: Path) -> bool:
    """Return whether the disk, a quota or the limit on the size of files keeps `file` from growing.

    LMDB calls a write that was cut short an input/output error, whatever cut it. So this tries to write.
    """
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and os.stat(file).st_size + _PROBE_BYTES > limit:
            return True
        with tempfile.TemporaryFile(dir=file.parent) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as exc:
        return exc.errno in DISK_FULL_ERRNOS
    return False


def format_bytes(size: float) -> str:
    """Return `size` in bytes as messages to people show it: `63.0 MiB`, `1.20 GiB`."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 2)):
        if abs(size) < 1024:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def parse_bytes(size: int | str, least: int = 1) -> int:
    """Return a number of bytes that may be written as text: `200GB`, `200 GiB`.

    >>> parse_bytes("1.5 GB"), parse_bytes("2GiB"), parse_bytes(7)
    (1500000000, 2147483648, 7)

    Raises:
        ValueError: It is no size of `least` bytes or more.
    """
    pattern = r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?))?B?"
    found = re.fullmatch(pattern, str(size).strip(), re.IGNORECASE)
    if found is None or isinstance(size, bool):
        raise ValueError(f"{size!r} is not a size; write 500MB, 2GiB or a number of bytes")
    number, unit, binary = found.groups()
    step = 1024 if binary else 1000
    count = int(float(number) * step ** " KMGT".index((unit or " ").upper()))
    if count < least:
        raise ValueError(f"{size!r} is too few bytes: it must be at least {least}")
    return count


def refuse_network(path: str | os.PathLike[str]) -> None:
    """Raise StoreError if `path`, which need not exist, is on a network file system."""
    kind = unreliable_kind(path)
    if kind is not None:
        raise StoreError(
            f"{path} is on a network file system ({kind}), where LMDB's locks and maps cannot be relied upon, so "
            "nothing is written there; choose a --cache-dir on a local disk, or copy from one with featstore merge. If "
            f"one machine at a time uses this store, {OVERRIDE}=1 allows it at your own risk"
        )


def warn_of_network(path: str | os.PathLike[str]) -> None:
    """Warn, once per process and path, if `path` is on a network file system."""
    kind = unreliable_kind(path)
    if kind is not None:
        _warn(os.path.realpath(path), kind)


def unreliable_kind(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of network file system that holds `path`; None also if the user relies on it, see OVERRIDE."""
    if os.environ.get(OVERRIDE) == "1":
        return None
    return _network_kind(os.path.realpath(path), MOUNTS)


def network_kind(path: str | os.PathLike[str], mounts: Path | None = None) -> str | None:
    """Return the kind of network file system that holds `path`, or None if it is a local one.

    Args:
        path: A file or folder, which need not exist.
        mounts: A file like /proc/self/mountinfo. Without one, as on systems other than Linux, nothing is known.
    """
    found = _mount_of(path, mounts or MOUNTS)
    if found is None:
        return None
    # A file system in user space may be mounted without saying which it is; fuseblk is one on a disk.
    in_user_space = found.kind.partition(".")[0] == "fuse"
    network = found.kind in NETWORK or (in_user_space and found.kind not in LOCAL_FUSE)
    return found.kind if network else None


# Asked for at each commit; a store does not move to another file system while a process uses it.
_network_kind = lru_cache(maxsize=1024)(network_kind)


def is_read_only_disk(path: str | os.PathLike[str], mounts: Path | None = None) -> bool:
    """Return whether nobody on this machine can write at `path`: its file system is mounted read-only.

    If only this mount of it is read-only, others may write through theirs, as the host of a container does.
    """
    found = _mount_of(path, mounts or MOUNTS)
    return found is not None and found.read_only


class _Mount(NamedTuple):
    """A mounted file system: its kind, and whether it is read-only through every mount."""

    kind: str
    read_only: bool


def _mount_of(path: str | os.PathLike[str], mounts: Path) -> _Mount | None:
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    real, best, found = os.path.realpath(path), "", None
    for line in lines:
        # A mount's own options come before the dash; kind, source and the file system's options after it.
        fields, _, rest = line.partition(" - ")
        if len(fields.split(" ")) < 5 or not rest:
            continue
        place = _unescape(fields.split(" ")[4])
        # The last mount on a place hides those before.
        if len(place) >= len(best) and _is_below(real, place):
            kind, *others = rest.split(" ")
            best, found = place, _Mount(kind, "ro" in others[-1].split(",") if others else False)
    return found


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _unescape(name: str) -> str:
    # Space, tab, newline and backslash are written in octal.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


@lru_cache(maxsize=1024)
def _warn(path: str, kind: str) -> None:
    warnings.warn(
        f"{path} is on a network file system ({kind}): reading is slow there, and a file changed on another machine "
        "in the meantime can end this process; copy the dataset to a local disk, or seal it",
        RuntimeWarning,
        stacklevel=2,
    )
