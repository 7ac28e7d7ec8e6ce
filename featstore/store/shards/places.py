"""Where shard files lie: in `DATASET/shards` of a cache directory, also on NFS, read and written as plain files."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import xxhash

from featstore.errors import StoreDamaged, StoreError, StoreNotFound
from featstore.store.paths import SHARDS_FOLDER, because, explained, make_folder
from featstore.system.fsync import DRAFT, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS_FOLDER = "status"
PIECE_BYTES = 8 << 20
OLD_SECONDS = 24 * 3600.0  # a copy that is at work writes all the time
MOST_AT_ONCE = 1 << 30  # bytes; the system reads less than 2 GiB
GOOD_COPY = "put a good copy of the file in its place: what a push or pull brought, remove it and run that again"


class FilePlace(Protocol):
    """A cache directory, or a prefix of a bucket, as files: each appears whole or not at all.

    Names are relative to it, with `/`. What cannot be done raises StoreError, which names the place; a file that is not
    there FileNotFoundError.

    Attributes:
        where: What messages call it.
    """

    where: str

    def names(self, folder: str) -> dict[str, int]:
        """Return the names and bytes of the files right in `folder`; none if there is no such folder."""
        ...

    def folders(self) -> list[str]:
        """Return the names of the folders at the top."""
        ...

    def read(self, name: str, most: int) -> bytes:
        """Return a small file whole; StoreDamaged if it has more than `most` bytes."""
        ...

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a file's byte `offset` on; StoreDamaged if it has fewer."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make a small file; return False if there is one of that name, which stays as it is."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Put a small file in place of any of its name."""
        ...

    def upload(self, name: str, path: Path) -> None:
        """Copy the file at `path`, whose content `name` ends in as `<xxh3-128>.mdb`; StoreDamaged if it is not that."""
        ...


class LocalPlace:
    """A cache directory on a disk of this machine, or on a share that it mounts; see FilePlace."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Take the cache directory, which need not exist."""
        self.root = Path(root)
        self.where = str(root)

    def names(self, folder: str) -> dict[str, int]:
        """Return the names and bytes of the files right in `folder`."""
        path, found = self.root / folder, {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # a draft that got its name
                        if entry.is_file():
                            found[entry.name] = entry.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as exc:
            raise StoreError(f"{path} cannot be looked into: {because(exc)}") from exc
        return found

    def folders(self) -> list[str]:
        """Return the names of the folders in it, sorted."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise StoreNotFound(f"there is no store in {self.root}: {exc.strerror}") from exc
        except OSError as exc:
            raise StoreError(f"{self.root} cannot be looked into: {because(exc)}") from exc

    def read(self, name: str, most: int) -> bytes:
        """Return a whole file."""
        with self._opened(name) as fd:
            size = os.fstat(fd).st_size
            if size > most:
                raise StoreDamaged(
                    f"{self.root / name} has {size} bytes, more than such a file can have",
                    remedy=GOOD_COPY,
                )
            found = bytearray(size)
            self._fill(fd, name, 0, memoryview(found))
            return bytes(found)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a part of a file."""
        with self._opened(name) as fd:
            self._fill(fd, name, offset, buffer)

    def create(self, name: str, data: bytes) -> bool:
        """Make a small file if there is none."""
        with self._target(name) as target:
            try:
                with write_atomically(target, replace=False) as file:
                    file.write(data)
            except FileExistsError:
                return False
        return True

    def put(self, name: str, data: bytes) -> None:
        """Put a small file in place of any of its name."""
        with self._target(name) as target, write_atomically(target) as file:
            file.write(data)

    def upload(self, name: str, path: Path) -> None:
        """Copy a file under a temporary name, verify what was read of it, and give it its own."""
        self._clear_drafts((self.root / name).parent)
        with self._target(name) as target, write_atomically(target) as copy:
            for piece in verified_pieces(path, name):
                copy.write(piece)

    def _clear_drafts(self, folder: Path) -> None:
        """Remove what killed copies left in a folder: drafts that nobody has written to for a day."""
        with contextlib.suppress(OSError):
            for draft in folder.glob(f"{DRAFT}*"):
                if time.time() - draft.stat().st_mtime > OLD_SECONDS:
                    draft.unlink()

    @contextlib.contextmanager
    def _target(self, name: str) -> Iterator[Path]:
        """Give the path of a file that is written in the block, its folder made."""
        target = self.root / name
        make_folder(target.parent)
        with explained(f"{target} cannot be written"):
            yield target

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        path = self.root / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as exc:
            raise StoreNotFound(f"there is no file {path}") from exc
        except OSError as exc:
            raise StoreError(f"{path} cannot be opened: {because(exc)}") from exc
        try:
            with explained(f"{path} cannot be read"):
                yield fd
        finally:
            os.close(fd)

    def _fill(self, fd: int, name: str, offset: int, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            count = os.preadv(fd, [buffer[at : at + MOST_AT_ONCE]], offset + at)
            if not count:
                raise StoreDamaged(
                    f"{self.root / name} has no {len(buffer)} bytes at {offset}: it was cut short",
                    remedy=GOOD_COPY,
                )
            at += count


def verified_pieces(path: Path, name: str) -> Iterator[bytes]:
    """Yield the pieces of a file; StoreDamaged at its end if they are not what `name`, `<xxh3-128>.mdb`, says."""
    hasher = xxhash.xxh3_128()
    with explained(f"{path} cannot be read"), open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            hasher.update(piece)
            yield piece
    if not name.endswith(f"{hasher.hexdigest()}.mdb"):
        raise StoreDamaged(
            f"what was read of {path} is not what its name {name} says: it changed, or a disk is damaged",
            remedy="run the command again",
        )


def shard_file(dataset: str, name: str = "") -> str:
    """Return the name, in a place, of a shard file of `dataset`; of their folder without `name`."""
    return f"{dataset}/{SHARDS_FOLDER}/{name}" if name else f"{dataset}/{SHARDS_FOLDER}"
