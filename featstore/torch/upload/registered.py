"""Records in a store's memory map registered with CUDA, so that the GPU reads them directly from the page cache.

The rule: a record of 64 KiB or more is registered when it is requested again and is in memory, until half of the memory
that the process may use is registered. Registered records stay in memory until the map is closed, so records that are
read once must not be. Registering takes about as long as staging: the second read loses nothing, the third gains. Pages
that are not in memory would be read from disk one by one. If the system does not tell a user which are, records are
staged, unless the caller insists.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import weakref
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field

import torch

from featstore.system.file_map import is_resident, shows_pages
from featstore.system.memory import memory_bytes
from featstore.torch.upload.cudart import READ_ONLY, register, unregister

log = logging.getLogger("featstore.torch")

SMALLEST = 64 << 10  # smaller records are copied as fast, and may share a page
MEMORY_SHARE = 0.5


@dataclass
class _Map:
    """What is registered of one map: disjoint spans of pages, by their start address.

    asked: start addresses of the records that were requested. device: the GPU that registered last. refused: CUDA's
    error.
    """

    starts: list[int] = field(default_factory=list)  # sorted
    sizes: dict[int, int] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    device: int = -1
    refused: str = ""

    def overlapping(self, start: int, size: int) -> list[int]:
        """Return the start addresses of the spans that overlap this one."""
        first = bisect_right(self.starts, start)
        if first and self.starts[first - 1] + self.sizes[self.starts[first - 1]] > start:
            first -= 1
        return self.starts[first : bisect_left(self.starts, start + size)]

    def unregister(self, start: int) -> None:
        with torch.cuda.device(self.device):  # or the first GPU would get a context, of some 500 MB
            unregister(start)
        self.forget(start)

    def forget(self, start: int) -> None:
        self.starts.remove(start)
        del self.sizes[start]


_lock = threading.Lock()
_maps: weakref.WeakKeyDictionary[object, _Map] = weakref.WeakKeyDictionary()


def register_record(owner: object, address: int, size: int, *, at_once: bool = False) -> bool:
    """Register the `size` bytes at `address` in the map of `owner` if the rule allows; return whether they are.

    at_once: also if it is the first request, and if the system does not tell whether they are in memory.
    """
    start, size = _pages(address, size)
    with _lock:
        known = _maps.get(owner)
        if known is None:
            known = _Map()
            weakref.finalize(owner, _unregister_all, known, os.getpid())
            _maps[owner] = known
        if known.sizes.get(start) != size and not _why_not(known, start, size, at_once):
            _register(known, start, size)
        known.asked.add(start)
        return known.sizes.get(start) == size


def why_not_registered(owner: object, address: int, size: int) -> str:
    """Return why the next `register_record` will return False; nothing if it will return True."""
    start, size = _pages(address, size)
    with _lock:
        known = _maps.get(owner) or _Map()
        return "" if known.sizes.get(start) == size else _why_not(known, start, size, False)


def unregister_replaced(owner: object, address: int, size: int) -> None:
    """Undo the registration of replaced records that overlap this one: CUDA does not copy across their edges."""
    start, size = _pages(address, size)
    with _lock:
        known = _maps.get(owner)
        if known is not None and known.sizes.get(start) != size:
            _unregister_replaced(known, start, size)


def _why_not(known: _Map, start: int, size: int, at_once: bool) -> str:
    if known.refused:
        return known.refused
    if size < SMALLEST:
        return f"a record below {SMALLEST >> 10} KiB is copied as fast"
    told = shows_pages(start)
    if not at_once and not told:
        return "the system tells only who may write the file what of it is in memory"
    if not at_once and start not in known.asked:
        return "it is registered when it is asked for again"
    most = int(MEMORY_SHARE * memory_bytes())
    if size + sum(sum(each.sizes.values()) for each in _maps.values()) > most:
        return f"{MEMORY_SHARE:.0%} of memory ({most >> 20} MiB) is registered, or would be"
    if told and not is_resident(start, size):
        return "it is registered once all of it is in memory"
    return ""


def _register(known: _Map, start: int, size: int) -> None:
    _unregister_replaced(known, start, size)
    known.device = torch.cuda.current_device()
    known.sizes[start] = size
    insort(known.starts, start)
    try:
        code = register(start, size, READ_ONLY)
    except BaseException:  # an interrupt: CUDA may have done it
        known.unregister(start)
        raise
    if code:
        known.forget(start)
        known.refused = f"CUDA refused to register {size} bytes of its map (error {code})"
        log.info("not registering a store's map: %s", known.refused)


def _unregister_replaced(known: _Map, start: int, size: int) -> None:
    # Nobody reads them now: a record's pages are not used again while a view of it exists.
    for replaced in known.overlapping(start, size):
        known.unregister(replaced)


def _unregister_all(known: _Map, pid: int) -> None:
    if os.getpid() == pid:  # a forked child holds no registrations of its own
        with torch.cuda.device(known.device):
            for start in known.starts:
                unregister(start)


def _pages(address: int, size: int) -> tuple[int, int]:
    start, end = address - address % mmap.PAGESIZE, address + size
    return start, end + -end % mmap.PAGESIZE - start
