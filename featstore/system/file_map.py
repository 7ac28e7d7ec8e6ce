"""A file in memory: its map, and which of the map's pages are in the page cache."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from typing import Protocol

from featstore.errors import StoreError
from featstore.system import libc

# Address space, not memory: the file may grow this far before it is mapped again.
MIN_BYTES = 64 << 30
GROWTH = 4
MORE_FILES = "close some files, or raise the limit on open ones (ulimit -n)"
# Asked for more at once, Linux reads no more than read_ahead_kb, of which this is the default.
READ_AHEAD_BYTES = 128 << 10

_MAP_FAILED = ctypes.c_void_p(-1).value
_PAST_END = 1 << 50  # of any file
_RESIDENT = bytes(range(1, 256, 2))  # what mincore says of a page in memory: the lowest bit is set
_hidden: dict[int, int] = {}  # maps of files that hide their pages: their first and last address


class MappedFile(Protocol):
    """A map of a file; see the two below."""

    address: int
    length: int
    read_ahead_bytes: int


class FileMap:
    """A read-only map of an open file that lives as long as anything refers to it.

    The map is larger than the file, so that it need not move when the file grows. Only bytes within `file_bytes()` may
    be touched: the system ends a process that touches those beyond.

    Attributes:
        address: The address of the file's first byte.
        length: The bytes of address space that the map takes.
        read_ahead_bytes: The most that the system reads ahead at once.
    """

    def __init__(self, fd: int) -> None:
        """Map the file open as `fd`.

        Raises:
            StoreError: The process may not take the address space, or open another file.
        """
        try:
            self._fd = os.dup(fd)
        except OSError as exc:
            raise StoreError(f"a store cannot be mapped: {exc.strerror}; {MORE_FILES}") from exc
        weakref.finalize(self, os.close, self._fd).atexit = False  # as the map below
        self.length = max(MIN_BYTES, GROWTH * self.file_bytes())
        self.read_ahead_bytes = _read_ahead_bytes(fd)
        try:
            self.address = _map(fd, self.length)
        except OSError as exc:
            raise StoreError(
                f"{self.length >> 30} GiB of address space for a store's map are not available: {exc.strerror}; lift "
                "the limit (ulimit -v), or have fewer datasets open"
            ) from exc
        # Code that registers the map elsewhere adds a finalizer later, and the latest runs first: the map goes last.
        unmap = weakref.finalize(self, libc.munmap, self.address, self.length)
        unmap.atexit = False  # views may be read to the very end
        if hides_pages(fd):
            _hidden[self.address] = self.address + self.length
            weakref.finalize(self, _hidden.pop, self.address, None).atexit = False

    def file_bytes(self) -> int:
        """Return the file's current length in bytes."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `offset`, which the caller knows to be within the file.

        For pages of the tree: a fault on the map would read megabytes around one, of records that nobody asked for.

        Raises:
            StoreError: The disk does not give them, or the file was cut short.
        """
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as exc:
            raise StoreError(f"{length} bytes at {offset} cannot be read: {exc.strerror}") from exc
        if len(data) < length:
            raise StoreError(f"the file ends before {length} bytes at {offset}, which were there")
        return data


class FixedMap:
    """A read-only map of a file that never changes, of exactly its size, for which no descriptor is kept.

    A process may have thousands of them: the limits on open files and on address space, each map of FileMap's at least
    64 GiB, would end at some hundreds.

    Attributes:
        address: The address of the file's first byte.
        length: The bytes of the file when it was mapped.
        read_ahead_bytes: The most that the system reads ahead at once.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map the file; raise OSError if it cannot be opened, StoreError if no address space is left."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            self.length = found.st_size
            self.read_ahead_bytes = _read_ahead_bytes(fd)
            self._path, self._file = os.fspath(path), (found.st_dev, found.st_ino)
            try:
                self.address = _map(fd, self.length) if self.length else 0
            except OSError as exc:
                raise StoreError(
                    f"{self.length / 2**30:.1f} GiB of address space for the map of {path} are not available: "
                    f"{exc.strerror}; lift the limit (ulimit -v), or have fewer datasets open"
                ) from exc
            if self.length:
                unmap = weakref.finalize(self, libc.munmap, self.address, self.length)
                unmap.atexit = False  # views may be read to the very end
            if hides_pages(fd):
                _hidden[self.address] = self.address + self.length
                weakref.finalize(self, _hidden.pop, self.address, None).atexit = False
        finally:
            os.close(fd)

    def file_bytes(self) -> int:
        """Return how many bytes may be touched: all, unless somebody cut the file short."""
        try:
            found = os.stat(self._path)
        except OSError:  # its name is gone; the map keeps the file
            return self.length
        same = (found.st_dev, found.st_ino) == self._file
        return min(self.length, found.st_size) if same else self.length


def is_resident(address: int, length: int) -> bool:
    """Return whether every page of the mapped memory is in the page cache; False if the system does not say."""
    if not shows_pages(address):
        return False
    start = address - address % mmap.PAGESIZE
    found = _resident_pages(start, address + length - start)
    return found is not None and not found.translate(None, _RESIDENT)


def is_evicted(address: int) -> bool:
    """Return whether the page at `address` is not in the page cache; False if the system does not say."""
    found = ctypes.c_char(1)
    if libc.mincore is not None and shows_pages(address):
        libc.mincore(address - address % mmap.PAGESIZE, 1, ctypes.byref(found))
    return found.value not in _RESIDENT


def shows_pages(address: int) -> bool:
    """Return whether the system says which pages of the map at `address` are in memory."""
    return not _hidden or not any(start <= address < end for start, end in [*_hidden.items()])


def hides_pages(fd: int) -> bool:
    """Return whether the system calls every page of the open file resident, whether it is or not.

    Linux does for a user who neither owns the file nor may write it (can_do_mincore in its mm/mincore.c); another
    kernel may do so for all. A page past the file's end shows it, since it cannot be in memory.
    """
    try:
        page = _map(fd, mmap.PAGESIZE, _PAST_END)
    except OSError:
        return True
    found = _resident_pages(page, mmap.PAGESIZE)
    libc.munmap(page, mmap.PAGESIZE)
    return found is None or found in _RESIDENT


def _map(fd: int, length: int, offset: int = 0) -> int:
    """Map `length` bytes of a file read-only, also those beyond its end; return the address or raise OSError."""
    address: int | None = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address is None or address == _MAP_FAILED:
        raise libc.error()
    return address


def _resident_pages(address: int, length: int) -> bytes | None:
    """Return a byte per mapped page, its lowest bit set if the page is in memory; None if the system does not say."""
    found = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
    if libc.mincore is None or libc.mincore(address, length, found) != 0:
        return None
    return found.raw


def _read_ahead_bytes(fd: int) -> int:
    """Return how many bytes of the open file Linux reads ahead if it is asked for as many or more."""
    device = os.fstat(fd).st_dev
    name = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with contextlib.suppress(OSError, ValueError), open(name, "rb") as file:
        return max(READ_AHEAD_BYTES, int(file.read()) << 10)
    return READ_AHEAD_BYTES
