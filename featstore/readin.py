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

    While a part is read that was asked for before, its futures are returned: who waits for it does not wait behind
    what was asked for since. A file that cannot be read is no error
    here: whoever needs it will say so.
    """
    return _reader(os.getpid()).read(os.fspath(path), offset, length)


class _Reader:
    """A few threads, and what they have not finished; a process has one, for threads do not survive a fork."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "featstore-read")
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, int, int], list[Future[None]]] = {}

    def read(self, path: str, offset: int, length: int) -> list[Future[None]]:
        asked, end = (path, offset, length), offset + length
        with self._lock:
            self._asked = {
                key: pieces
                for key, pieces in self._asked.items()
                if not all(piece.done() for piece in pieces)
            }
            if asked not in self._asked:
                self._asked[asked] = [
                    self._pool.submit(_read_piece, path, start, min(PIECE_BYTES, end - start))
                    for start in range(offset, end, PIECE_BYTES)
                ]
            return self._asked[asked]


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
