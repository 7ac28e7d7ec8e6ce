"""Mapped records read from disk before use: by the next who touches them, or ahead, by nobody who waits.

Faults on a cold map read a disk at half its speed or less, as the kernel looks a few pages ahead, or they read
megabytes around a page, of records that nobody asked for. So the system is asked to read what is needed, all of it and
no more: that keeps the disk's queue filled and copies nothing. Of a file whose pages it hides it is asked in any case.

What it is asked for it reads into small pages, and a disk is busier with 16,000 of them than with their 63 MiB: on a
virtual one that took 2.5 times as long as np.memmap, whose faults come to use large pages. So, of large records, only
what is short of a large page at either end is asked for. The rest is read as it is touched, in large pages, and towards
its end one at a time, since what the kernel reads ahead does not end with a record. What is read ahead is touched by
the kernel itself, in a thread.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import sys
import threading
import weakref
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING

from featstore.system import libc
from featstore.system.file_map import is_resident
from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from featstore.system.file_map import MappedFile

    Place = tuple[MappedFile, int, int]  # a map, an address in it and a length

# MADV_...: the first on Linux and macOS, the others on Linux.
_WILLNEED, _NORMAL, _RANDOM, _HUGEPAGE, _POPULATE_READ = 3, 0, 1, 14, 22
_LARGE_PAGE = 2 << 20
_LARGE_PAGE_SIZE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
_LARGE_BYTES = 4 * _LARGE_PAGE  # of fewer, too much is short of a large page
_MAX_ENDS = 64  # each costs two more areas of memory, of 65,530 that a process may have
# Since this Linux, ext4 has large pages, and what faults read ahead is large whatever read_ahead_kb says.
_RELEASE = (6, 16)
# Where the kernel is told not to read ahead: the ends of the last large records; it drops such pages before others.
_ends: deque[tuple[weakref.ref[MappedFile], int, int]] = deque()


def prefault(memory: MappedFile, address: int, length: int) -> None:
    """Have the system read mapped memory from disk, unless it is there: at once, or large records as they are touched.

    Touching a page waits for it. Nothing else is read.
    """
    start, end = address - address % mmap.PAGESIZE, address + length
    resident = is_resident(address, length)
    if not _comes_in_large_pages(memory, length):
        if not resident:
            _ask(memory, start, end)
        return
    first = start + (memory.address - start) % _LARGE_PAGE
    last = end - (end - memory.address) % _LARGE_PAGE
    if not resident:
        _ask(memory, start, first)
        _ask(memory, last, end)
    # The kernel reads two of its steps ahead of what is touched, whose least is two large pages. Also from pages that
    # are there, by marks that it left in them: a second process read 8 MiB more.
    tail = max(first, last - 2 * max(memory.read_ahead_bytes, 2 * _LARGE_PAGE))
    libc.madvise(tail, last - tail, _RANDOM)
    _ends.append((weakref.ref(memory), tail, last - tail))
    while len(_ends) > _MAX_ENDS:
        _forget_end()


def read_ahead(memory: MappedFile, address: int, length: int) -> None:
    """Have the system read mapped memory from disk, unless it is there, for who touches it later; do not wait."""
    if is_resident(address, length):
        return
    # Where the disk's queue is full, it takes until there is room in it to ask for a large record.
    if length < _LARGE_BYTES or not _reader.take((memory, address, length)):
        _ask(memory, address - address % mmap.PAGESIZE, address + length)


class _Reader:
    """A thread that has the system read large records, one after another; one a process, when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: SimpleQueue[Place] | None = None
        tell_of_forks(self)

    def take(self, place: Place) -> bool:
        """Read a record in its turn; return False if no thread can be started."""
        with self._lock:
            if self._places is None:
                places: SimpleQueue[Place] = SimpleQueue()
                thread = threading.Thread(target=_read, args=(places,), daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._places = places
            self._places.put(place)
        return True

    def after_fork(self) -> None:
        """Have no thread: it is the parent's."""
        self._lock = threading.Lock()
        self._places = None


def _read(places: SimpleQueue[Place]) -> None:
    while True:
        memory, address, length = places.get()
        prefault(memory, address, length)
        if _comes_in_large_pages(memory, length):
            start = address - address % mmap.PAGESIZE
            libc.madvise(start, address + length - start, _POPULATE_READ)
        del memory  # it may be the last who holds the map


def _ask(memory: MappedFile, start: int, end: int) -> None:
    """Have the system start to read what is mapped there, in small pages."""
    for at in range(start, end, memory.read_ahead_bytes):
        libc.madvise(at, min(memory.read_ahead_bytes, end - at), _WILLNEED)


def _comes_in_large_pages(memory: MappedFile, length: int) -> bool:
    """Return whether faults read so many bytes of the map in large pages, where its file system has them."""
    return (
        length >= _LARGE_BYTES
        and _has_large_pages
        and libc.madvise(memory.address, memory.length, _HUGEPAGE) == 0
    )


def _forget_end() -> None:
    """Let the kernel read ahead again at the end of the record that was asked for longest ago."""
    with contextlib.suppress(IndexError):  # another thread was faster
        memory, start, length = _ends.popleft()
        if memory() is not None:
            libc.madvise(start, length, _NORMAL)


def _find_large_pages() -> bool:
    """Return whether this Linux is new enough, and its large pages are as large as they are taken for."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if sys.platform != "linux" or release is None or tuple(map(int, release.groups())) < _RELEASE:
        return False
    with contextlib.suppress(OSError, ValueError), open(_LARGE_PAGE_SIZE, "rb") as file:
        return int(file.read()) == _LARGE_PAGE
    return False


_has_large_pages = _find_large_pages()
_reader = _Reader()
