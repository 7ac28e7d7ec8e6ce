"""Reads parts of a mapped file into the page cache, several at once, before somebody touches the map.

Faults on a cold map read a disk at half its speed or less: the kernel looks a few pages ahead, no further. Positioned
reads into a scratch buffer, side by side, keep the disk's queue filled; what they leave behind is the page cache.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

THREADS = 4
PIECE_BYTES = 2 << 20

_RESIDENT = bytes(range(1, 256, 2))  # what mincore says of a page in memory: the lowest bit is set
_scratch = threading.local()


def is_resident(address: int, length: int) -> bool:
    """Return whether every page of the mapped memory is in the page cache; False where the system cannot tell."""
    mincore = _mincore()
    start = address - address % mmap.PAGESIZE
    pages = -(-(address + length - start) // mmap.PAGESIZE)
    found = ctypes.create_string_buffer(pages)
    if mincore is None or mincore(start, address + length - start, found) != 0:
        return False
    return not found.raw.translate(None, _RESIDENT)


def read_in(path: str | os.PathLike[str], offset: int, length: int) -> list[Future[None]]:
    """Begin to read `length` bytes of the file at `offset` into the page cache; wait for the futures to have them.

    What is being read already is not read again: its futures are returned. A file that cannot be read is no error
    here: whoever needs it will say so.
    """
    return _reader(os.getpid()).read(os.fspath(path), offset, length)


class _Reader:
    """A few threads, and the pieces they have not finished; a process has one, for threads do not survive a fork."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "featstore-read")
        self._lock = threading.Lock()
        self._unfinished: dict[tuple[str, int, int], Future[None]] = {}

    def read(self, path: str, offset: int, length: int) -> list[Future[None]]:
        end = offset + length
        return [
            self._submit((path, start, min(PIECE_BYTES, end - start)))
            for start in range(offset, end, PIECE_BYTES)
        ]

    def _submit(self, piece: tuple[str, int, int]) -> Future[None]:
        with self._lock:
            future = self._unfinished.get(piece)
            if future is None:
                future = self._unfinished[piece] = self._pool.submit(self._read, piece)
            return future

    def _read(self, piece: tuple[str, int, int]) -> None:
        try:
            _read_piece(*piece)
        finally:
            with self._lock:
                del self._unfinished[piece]


def _read_piece(path: str, offset: int, length: int) -> None:
    buffer = getattr(_scratch, "buffer", None)
    if buffer is None:
        buffer = _scratch.buffer = memoryview(bytearray(PIECE_BYTES))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.preadv(fd, [buffer[:length]], offset)
    except OSError:
        pass
    finally:
        os.close(fd)


@functools.lru_cache(maxsize=1)
def _reader(pid: int) -> _Reader:
    return _Reader()


@functools.cache
def _mincore() -> Any:
    try:
        function = ctypes.CDLL(None).mincore
    except AttributeError:
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    return function
