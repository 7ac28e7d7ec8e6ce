"""A read-only map of a store's file that lives as long as anything refers to it."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

from featstore.errors import StoreError
from featstore.system.page_cache import MAP_FAILED, libc, note_map

# Address space, not memory: the file may grow so far before it is mapped anew.
MIN_BYTES = 64 << 30
GROWTH = 4
MORE_FILES = "close some files, or raise the limit on open ones (ulimit -n)"


class Mapping:
    """A map of the open file `fd`, larger than the file, so that it need not move when the file grows.

    address: where it begins. Only bytes within `file_bytes()` may be touched; the system ends a process that touches
    those beyond.
    """

    def __init__(self, fd: int) -> None:
        """Map the file; raise StoreError where the process may not take the address space."""
        try:
            self._fd = os.dup(fd)
        except OSError as exc:
            raise StoreError(f"a store cannot be mapped: {exc.strerror}; {MORE_FILES}") from exc
        weakref.finalize(self, os.close, self._fd).atexit = False  # as the map below
        self.length = max(MIN_BYTES, GROWTH * self.file_bytes())
        address = libc().mmap(None, self.length, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise StoreError(
                f"{self.length >> 30} GiB of address space for a store's map cannot be had: {reason}; lift the limit "
                "(ulimit -v), or have fewer datasets open"
            )
        self.address: int = address
        # Whoever registers the map elsewhere adds a finalizer later, and the latest runs first: the map goes last.
        unmap = weakref.finalize(self, libc().munmap, address, self.length)
        unmap.atexit = False  # views may be read to the very end
        note_map(self, fd, address, self.length)

    def file_bytes(self) -> int:
        """Return how long the file is now."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `offset`, which the caller knows to be within the file."""
        return ctypes.string_at(self.address + offset, length)
