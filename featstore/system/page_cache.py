"""Reads parts of a mapped file into the page cache, several at once, before somebody touches the map.

Faults on a cold map read a disk at half its speed or less: the kernel looks a few pages ahead, no further. Positioned
reads into a scratch buffer, side by side, keep the disk's queue filled; what they leave behind is the page cache. Of
some files the system does not tell which pages are there already: it is asked to read those ahead, which costs little
where they are.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

THREADS = 4
PIECE_BYTES = 2 << 20
# Asked for more at once, Linux reads no more than read_ahead_kb, 128 by default, or the disk's largest transfer.
ADVICE_BYTES = 128 << 10

MAP_FAILED = ctypes.c_void_p(-1).value
_PAST_END = 1 << 50  # of any file
_RESIDENT = bytes(range(1, 256, 2))  # what mincore says of a page in memory: the lowest bit is set
_scratch = threading.local()
_untold: dict[int, int] = {}  # maps of files that hide their pages: where each begins and ends


def is_resident(address: int, length: int) -> bool:
    """Return whether every page of the mapped memory is in the page cache; False where the system does not tell."""
    start = address - address % mmap.PAGESIZE
    pages = -(-(address + length - start) // mmap.PAGESIZE)
    found = ctypes.create_string_buffer(pages)
    if not hasattr(libc(), "mincore") or not is_told(address):
        return False
    if libc().mincore(start, address + length - start, found) != 0:
        return False
    return not found.raw.translate(None, _RESIDENT)


def is_told(address: int) -> bool:
    """Return whether the system tells which pages of the map at `address` are there; `note_map` found it out."""
    return not any(start <= address < end for start, end in [*_untold.items()])


def note_map(owner: object, fd: int, address: int, length: int) -> None:
    """Find out whether the system tells which pages of a map of `fd` are there; `owner` lives as long as the map."""
    if hides_pages(fd):
        _untold[address] = address + length
        weakref.finalize(owner, _untold.pop, address, None).atexit = False


def hides_pages(fd: int) -> bool:
    """Return whether the system says of every page of the open file that it is in memory, be it so or not.

    Linux does to whoever neither owns the file nor may write it (can_do_mincore in its mm/mincore.c); another kernel
    may do so to all. A page past the file's end tells, for it cannot be there.
    """
    if not hasattr(libc(), "mincore"):
        return True
    page = libc().mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, _PAST_END)
    if page == MAP_FAILED:
        return True
    found = ctypes.create_string_buffer(1)
    failed = libc().mincore(page, mmap.PAGESIZE, found) != 0
    libc().munmap(page, mmap.PAGESIZE)
    return failed or found.raw in _RESIDENT


def read_in(path: str | os.PathLike[str], offset: int, length: int) -> list[Future[None]]:
    """Begin to read `length` bytes of the file at `offset` into the page cache; wait for the futures to have them.

    Of a file that hides its pages they are on their way then, and whoever touches one waits for it.
    While a part is read that was asked for before, its futures are returned: who waits for it does not wait behind
    what was asked for since. A file that cannot be read is no error here: whoever needs it will say so.
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
        if hides_pages(fd) and hasattr(os, "posix_fadvise"):
            _ask_for(fd, offset, offset + length)
        else:
            os.preadv(fd, [buffer[:length]], offset)
    except OSError:
        pass
    finally:
        os.close(fd)


def _ask_for(fd: int, offset: int, end: int) -> None:
    # 66 MB that are in memory take 3 ms so, 80 to be copied: measured on 2 cores.
    for start in range(offset, end, ADVICE_BYTES):
        os.posix_fadvise(fd, start, min(ADVICE_BYTES, end - start), os.POSIX_FADV_WILLNEED)


@functools.lru_cache(maxsize=1)
def _reader(pid: int) -> _Reader:
    return _Reader()


@functools.cache
def libc() -> Any:
    """Return the C library, with mmap and munmap, and mincore where it has one."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        *[ctypes.c_int] * 3,
        ctypes.c_longlong,
    ]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    if hasattr(library, "mincore"):
        library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    return library
