"""Records fetched from elsewhere, on a local disk: a file each, named by its content, together at most so many bytes.

A file is 16 bytes and the record, so that its payload lies on a page of a map, as in LMDB. It is written under a
temporary name and gets its own when its digest is right; of processes that want the same record one fetches it. The
files used longest ago go first; a view of one stays valid.

    LOCAL/DATASET/records/aa/<xxh3-128>.rec     a record
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import time
import weakref
from typing import TYPE_CHECKING

import xxhash

from featstore.errors import StoreDamaged, StoreError
from featstore.records.record import LMDB_VALUE_OFFSET
from featstore.store.paths import because, explained, make_folder
from featstore.store.shards.remote.tier_room import RECORDS_FOLDER, TierRoom, unlock
from featstore.system.file_map import FixedMap
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

USED_EVERY = 60.0  # seconds between notes that a file was used
_SUFFIX = ".rec"
_MOST_VERIFIED = 100_000  # digests that a process keeps, 100 bytes each


class LocalTier:
    """The records of one folder; see the module.

    Attributes:
        folder: The folder.
        max_bytes: What the files in it may take together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make the folders that it needs; raise StoreError if that cannot be."""
        self.folder, self.max_bytes = folder, max_bytes
        self._room = TierRoom(folder, max_bytes)
        self._maps: weakref.WeakValueDictionary[bytes, FixedMap] = weakref.WeakValueDictionary()
        # Digests of files that this process has read, and when it noted last that they are used.
        self._verified: dict[bytes, float] = {}

    def get(
        self,
        dataset: str,
        digest: bytes,
        length: int,
        fetch: Callable[[Callable[[memoryview], None]], None],
    ) -> FixedMap:
        """Return the map of a record, its first byte at `LMDB_VALUE_OFFSET`; fetched if it is not there.

        Args:
            dataset: The dataset's name.
            digest: xxh3-128 of the record.
            length: Its bytes.
            fetch: Brings it: calls what it is given with each piece, in order.

        Raises:
            StoreError: It cannot be fetched or written.
            StoreFull: There is no room for it.
            StoreDamaged: What came is not what the digest says.
        """
        path = self.path(dataset, digest)
        held = self._maps.get(digest)
        if held is not None:
            self._note(path, digest)
            return held
        found = self._open(path, digest, length)
        if found is None:
            with self._room.locked(digest.hex()[:2]):
                found = self._open(path, digest, length)  # another may have fetched it by now
                if found is None:
                    self._fetch(path, digest, length, fetch)
                    found = self._open(path, digest, length)
        if found is None:
            raise StoreError(
                f"{path} was removed as soon as it was fetched: {format_bytes(self.max_bytes)} are too few for all "
                "that is read at once",
                remedy="allow more (max_size=)",
            )
        self._maps[digest] = found
        return found

    def has(self, dataset: str, digest: bytes) -> bool:
        """Return whether the record is there."""
        return digest in self._maps or self.path(dataset, digest).exists()

    def path(self, dataset: str, digest: bytes) -> Path:
        """Return the file of a record."""
        name = digest.hex()
        return self.folder / dataset / RECORDS_FOLDER / name[:2] / f"{name}{_SUFFIX}"

    def used_bytes(self) -> int:
        """Return the bytes of all files in it."""
        return self._room.used_bytes()

    def _open(self, path: Path, digest: bytes, length: int) -> FixedMap | None:
        """Return the map of a file, None if there is none; one whose content is wrong is removed."""
        try:
            found = FixedMap(path)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StoreError(f"{path} cannot be opened: {because(exc)}") from exc
        if digest not in self._verified:
            right = found.length == LMDB_VALUE_OFFSET + length
            if not right or _digest(found, length) != digest:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                return None
        self._note(path, digest)
        return found

    def _note(self, path: Path, digest: bytes) -> None:
        """Note that a file was used, now and then."""
        now = time.time()
        if now - self._verified.get(digest, 0.0) > USED_EVERY:
            if len(self._verified) >= _MOST_VERIFIED:
                self._verified.clear()
            self._verified[digest] = now
            with contextlib.suppress(OSError):  # it may be gone
                os.utime(path)

    def _fetch(
        self,
        path: Path,
        digest: bytes,
        length: int,
        fetch: Callable[[Callable[[memoryview], None]], None],
    ) -> None:
        size, hasher, at = LMDB_VALUE_OFFSET + length, xxhash.xxh3_128(), LMDB_VALUE_OFFSET
        draft = self._room.fetching / f"{digest.hex()}.{secrets.token_hex(8)}"
        fd = self._room.take(draft, size)

        def take(piece: memoryview) -> None:
            nonlocal at
            if at + len(piece) > size:
                raise StoreDamaged(f"more than {length} bytes came of a record of so many")
            hasher.update(piece)
            at += _write(fd, piece, at, path)

        try:
            fetch(take)
            if at != size or hasher.digest() != digest:
                raise StoreDamaged(
                    f"a record of {length} bytes came as {at - LMDB_VALUE_OFFSET} with xxh3-128 {hasher.hexdigest()}, "
                    f"the index of its shard says {digest.hex()}; what came is not kept",
                    remedy="read it again; if it stays so, its shard is damaged where it came from: remove that file "
                    "there, and push it again",
                )
            make_folder(path.parent)
            self._verified[digest] = time.time()
            with explained(f"{path} cannot be written"):
                os.rename(draft, path)
        except BaseException:
            self._room.give_back(draft, size)
            raise
        finally:
            unlock(fd)


def _digest(memory: FixedMap, length: int) -> bytes:
    view = (ctypes.c_ubyte * length).from_address(memory.address + LMDB_VALUE_OFFSET)
    return xxhash.xxh3_128_digest(memoryview(view).cast("B"))


def _write(fd: int, piece: memoryview, at: int, path: Path) -> int:
    done = 0
    with explained(f"{path} cannot be written"):
        while done < len(piece):
            done += os.pwrite(fd, piece[done:], at + done)
    return done
