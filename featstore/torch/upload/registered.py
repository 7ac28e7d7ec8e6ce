"""Records in a store's map registered with CUDA, so that the GPU reads them straight out of the page cache.

The rule: a record of 64 KiB or more is registered when it is asked for again and is in memory, until half of the memory
that the process may use is registered. What is registered stays in memory until the map goes, so what is read once must
not be. To register a record takes about as long as to stage it: the second reading loses nothing, the third gains.
Pages that are not in memory would be read from disk one by one. A user whom the system does not tell which are gets
staging, unless the caller insists.
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
    """What is registered of one map: disjoint spans of pages, by where they begin.

    asked: where the records begin that were asked for. device: the GPU that registered last. refused: what CUDA said.
    """

    starts: list[int] = field(default_factory=list)  # sorted
    sizes: dict[int, int] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    device: int = -1
    refused: str = ""

    def overlapping(self, start: int, size: int) -> list[int]:
        """Return where the spans begin that have bytes of this one."""
        first = bisect_right(self.starts, start)
        if first and self.starts[first - 1] + self.sizes[self.starts[first - 1]] > start:
            first -= 1
        return self.starts[first : bisect_left(self.starts, start + size)]

    def let_go(self, start: int) -> None:
        with torch.cuda.device(self.device):  # or the first GPU would get a context, of some 500 MB
            unregister(start)
        self.forget(start)

    def forget(self, start: int) -> None:
        self.starts.remove(start)
        del self.sizes[start]


_lock = threading.Lock()
_maps: weakref.WeakKeyDictionary[object, _Map] = weakref.WeakKeyDictionary()


def register_record(owner: object, address: int, size: int, *, at_once: bool = False) -> bool:
    """Return whether the GPU can read the `size` bytes at `address` in the map of `owner`; registers them by the rule.

    at_once: also if it is the first time, and if the system does not tell whether they are in memory.
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
    """Return why the next `register_record` will say no; nothing if it will say yes."""
    start, size = _pages(address, size)
    with _lock:
        known = _maps.get(owner) or _Map()
        return "" if known.sizes.get(start) == size else _why_not(known, start, size, False)


def let_go_of_replaced(owner: object, address: int, size: int) -> None:
    """Undo the registration of records that were once in a part of this one: CUDA copies across no edge of them."""
    start, size = _pages(address, size)
    with _lock:
        known = _maps.get(owner)
        if known is not None and known.sizes.get(start) != size:
            _let_go_of_replaced(known, start, size)


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
    _let_go_of_replaced(known, start, size)
    known.device = torch.cuda.current_device()
    known.sizes[start] = size
    insort(known.starts, start)
    try:
        code = register(start, size, READ_ONLY)
    except BaseException:  # an interrupt: CUDA may have done it
        known.let_go(start)
        raise
    if code:
        known.forget(start)
        known.refused = f"CUDA refused to register {size} bytes of its map (error {code})"
        log.info("not registering a store's map: %s", known.refused)


def _let_go_of_replaced(known: _Map, start: int, size: int) -> None:
    # Nobody reads them any more: a record's pages are not used again while anyone holds a view of it.
    for replaced in known.overlapping(start, size):
        known.let_go(replaced)


def _unregister_all(known: _Map, pid: int) -> None:
    if os.getpid() == pid:  # a forked child holds no registrations of its own
        with torch.cuda.device(known.device):
            for start in known.starts:
                unregister(start)


def _pages(address: int, size: int) -> tuple[int, int]:
    start, end = address - address % mmap.PAGESIZE, address + size
    return start, end + -end % mmap.PAGESIZE - start
