"""Where things are in a cache directory, and which names may become folders."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import (
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
    command_line,
)
from featstore.records.storage import MAX_ID_BYTES
from featstore.system.file_map import MORE_FILES
from featstore.system.filesystems import DISK_FULL_ERRNOS
from featstore.system.fsync import make_durable_folder, sync_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA_FILE = "data.mdb"
LMDB_LOCK_FILE = "lock.mdb"
INGEST_LOCK_FILE = "ingest.lock"
FLIGHT_LOCK_FILE = "flight.lock"
WRITE_LOCK_FILE = "write.lock"
SEAL_FILE = "sealed"
META_FILE = "cache_meta.json"
STATUS_FILE = "status.json"  # what an ingest without shares says of itself
SHARDS_FOLDER = "shards"
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def dataset_path(cache_dir: str | os.PathLike[str], dataset: str) -> Path:
    """Return the folder of `dataset`; StoreMismatch if its name cannot be a folder's."""
    if not isinstance(dataset, str):
        raise TypeError(f"a dataset is named by text, not {dataset!r:.200}")
    if not is_dataset_name(dataset):
        raise StoreMismatch(
            f"a dataset cannot be called {dataset!r:.200}; use letters, digits, '.', '_' and '-', at most 128 of them, "
            "beginning with a letter or digit"
        )
    return absolute(cache_dir) / dataset


def absolute(cache_dir: str | os.PathLike[str]) -> Path:
    """Return the folder that `cache_dir` names now, whatever becomes the working directory."""
    try:
        return Path(cache_dir).absolute()
    except FileNotFoundError as exc:
        raise StoreNotFound(
            f"{cache_dir} is relative and the working directory is gone; name the cache by its whole path"
        ) from exc


def is_dataset_name(name: str) -> bool:
    """Return whether a dataset can be called `name`."""
    return _DATASET.fullmatch(name) is not None


def because(exc: OSError, remedy: str = "") -> str:
    """Return what the system said and what to do about it: `remedy`, unless too many files are open."""
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        remedy = MORE_FILES
    said = exc.strerror or str(exc)
    return f"{said}; {remedy}" if remedy else said


def refusal(exc: OSError) -> type[StoreError]:
    """Return the kind of error that says that the system refused something: StoreFull if there is no room for it."""
    return StoreFull if exc.errno in DISK_FULL_ERRNOS else StoreError


@contextlib.contextmanager
def explained(what: str, remedy: str = "") -> Iterator[None]:
    """Raise what the system refuses in the block as an error of ours: `what`, what the system said and the remedy."""
    try:
        yield
    except StoreError:
        raise
    except OSError as exc:
        raise refusal(exc)(f"{what}: {because(exc, remedy)}") from exc


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it; raise StoreError if that cannot be."""
    with explained(f"the folder {path} cannot be made", "choose another --cache-dir"):
        make_durable_folder(path)


def identify(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return device and inode of a file, None if there is none; raise StoreError if it cannot be looked at."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        folder = os.path.dirname(path)
        raise StoreError(f"{folder} cannot be looked into: {exc.strerror}") from exc
    return found.st_dev, found.st_ino


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Return whether the dataset in the folder `path` was sealed: no one writes to it, so readers need no lock."""
    return os.path.lexists(os.path.join(path, SEAL_FILE))


def is_sharded(path: str | os.PathLike[str]) -> bool:
    """Return whether the folder `path` is a dataset of sealed shards: it has a list of them."""
    folder = os.path.join(path, SHARDS_FOLDER)
    if not os.path.exists(folder):  # found without a descriptor, of which none may be left
        return False
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.startswith("manifest-") for entry in entries)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return False
        raise StoreError(f"{path} cannot be looked into: {because(exc)}") from exc


def refuse_shards(path: Path) -> None:
    """Raise StoreError if the dataset in the folder `path` is made of sealed shards."""
    if is_sharded(path):
        raise StoreError(
            f"{path} is made of sealed shards, which are never changed",
            remedy="videos are added with featstore ingest --shard 0/1; for all else copy it into another cache and "
            f"change it there: {command_line('merge', cache_dir='OTHER', dataset=path.name)} {path.parent}",
        )


@contextlib.contextmanager
def pinned_name(path: Path) -> Iterator[str]:
    """Give a name for the folder that is `path` now, whatever takes its place.

    Raises StoreNotFound if there is none, and StoreError if it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise StoreNotFound(
            f"there is no folder {path}; make the dataset with featstore ingest"
        ) from exc
    except OSError as exc:
        raise StoreError(f"{path} cannot be opened: {because(exc)}") from exc
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def lmdb_name(path: Path) -> Iterator[str]:
    """Give a name under which py-lmdb can open the folder `path`: it takes no bytes, only UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with pinned_name(path) as name:
            yield name
    else:
        yield str(path)


def compacting_path(path: Path) -> Path:
    """Return the folder in which the dataset in `path`, not a link, is compacted; a killed compaction leaves it."""
    return path.with_name(f".compacting-{path.name}")


def sync_dataset(path: Path) -> None:
    """Make durable that the dataset in the folder `path` exists; raise StoreError if the disk fails."""
    try:
        for folder in (path, path.parent):
            sync_dir(folder)
    except OSError as exc:
        raise StoreError(f"{path} cannot be synced: {because(exc, 'mend the disk')}") from exc


def dataset_names(cache_dir: str | os.PathLike[str]) -> list[str]:
    """Return the datasets in `cache_dir` that this user may enter, sorted; StoreNotFound if it is not there."""
    root = Path(cache_dir)
    try:
        os.stat(os.path.join(root, os.curdir))  # raises if no folder in it may be entered
        return sorted(
            path.name
            for path in root.iterdir()
            if is_dataset_name(path.name) and (_has_data(path) or is_sharded(path))
        )
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise StoreNotFound(
            f"there is no store in {root}: {exc.strerror}; make one with featstore ingest"
        ) from exc
    except OSError as exc:
        raise StoreError(f"the store in {root} cannot be looked into: {because(exc)}") from exc
    except ValueError as exc:  # a null byte in the path
        raise StoreError(f"the store in {root} cannot be looked into: {exc}") from exc


def has_data(path: Path) -> bool:
    """Return whether the folder `path` has a data file; raise StoreError if it may not be looked into."""
    try:
        return (path / DATA_FILE).is_file()
    except OSError as exc:
        raise StoreError(f"{path} cannot be looked into: {because(exc)}") from exc


def _has_data(path: Path) -> bool:
    try:
        return (path / DATA_FILE).is_file()
    except PermissionError:  # another user's own; who opens it by name is told
        return False


def stored_bytes(cache_dir: str | os.PathLike[str]) -> int:
    """Return the bytes that the datasets in `cache_dir` take on disk, without those this user may not enter."""
    return sum(dataset_bytes(Path(cache_dir) / name) for name in dataset_names(cache_dir))


def dataset_bytes(path: Path) -> int:
    """Return the bytes that the files of the dataset in the folder `path` take on disk, 0 if it has none."""
    files = [path / DATA_FILE]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        files += (path / SHARDS_FOLDER).iterdir()
    taken = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            taken += file.stat().st_blocks * 512
    return taken


def check_video_id(video_id: str) -> None:
    """Raise ValueError unless `video_id` can name a video: 1 to 4,096 bytes, no control characters.

    Surrogates are allowed only as Python uses them: for bytes of a file name that are not UTF-8.
    """
    if not isinstance(video_id, str):
        raise ValueError(f"a video id is text, not {video_id!r:.200}")
    size = len(video_id.encode("utf-8", "surrogatepass"))
    control = any(ord(c) < 32 or ord(c) == 127 for c in video_id)
    if not 0 < size <= MAX_ID_BYTES or control or not _survives(video_id):
        raise ValueError(
            f"a video id of {size} bytes, {video_id[:40]!r}, cannot be used; it takes 1 to {MAX_ID_BYTES} bytes, "
            "text or a file name's, without control characters"
        )


def _survives(name: str) -> bool:
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == name
    except UnicodeEncodeError:
        return False
