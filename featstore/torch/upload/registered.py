"""Store maps registered with CUDA, so that the GPU reads records straight out of the page cache.

A map is registered in windows: 21 ms a GB on an H200, and a window's pages are read and stay in memory until the map
goes. So a window is registered when it is asked for a second time and lies in memory: a record that is read once, from
a cold disk, does not wait for its neighbours. Windows are unregistered before the map goes.
"""

from __future__ import annotations

import bisect
import logging
import os
import threading
import weakref
from concurrent.futures import wait
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from featstore.readin import is_resident, is_told, read_in
from featstore.torch.upload.cudart import READ_ONLY, register, unregister

log = logging.getLogger("featstore.torch")

WINDOW_BYTES = 256 << 20
# A map larger than this share of the machine's memory is not registered: its pages could not leave again.
MEMORY_SHARE = 0.5


@dataclass
class _Map:
    """The registered spans of one map, sorted and disjoint, and the windows that were asked for.

    held: where CUDA was asked to register a span and did not refuse. device: the GPU that did.
    """

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    asked: dict[int, int] = field(default_factory=dict)  # window -> how often
    held: set[int] = field(default_factory=set)
    device: int = -1
    refused: str = ""

    def cover(self, at: int) -> int | None:
        """Return where the registered span ends that holds the address `at`, or None."""
        index = bisect.bisect_right(self.starts, at) - 1
        return self.ends[index] if index >= 0 and self.ends[index] > at else None


_lock = threading.Lock()
_maps: weakref.WeakKeyDictionary[object, _Map] = weakref.WeakKeyDictionary()


def outlook(owner: object, address: int, size: int) -> str:
    """Return why the `size` bytes at `address` in the map of `owner` are not registered next, nothing if they are."""
    with _lock:
        known = _maps.get(owner) or _Map(refused=_too_large(_find_mapping(address)))
        return known.refused or _outlook(known, address, address + size)


def _outlook(known: _Map, at: int, stop: int) -> str:
    while at < stop:
        end = known.cover(at)
        if end is None:
            if not is_told(at):
                return "the system tells only who may write the file what of it lies in memory"
            asked = known.asked.get(_window(at), 0)
            if asked == 0:
                return "its part of the map is registered when it is asked for again"
            if not (_is_looked_at(asked + 1) and _in_memory(known, at)):
                return "its part of the map is registered once all of it lies in memory"
            end = _window(at) + WINDOW_BYTES
        at = end
    return ""


def registered_spans(
    owner: object, address: int, size: int, *, at_once: bool = True
) -> list[tuple[int, int]]:
    """Return `(offset, length)` pieces that cover `size` bytes at `address`, each in one registered span.

    Registers what is not yet; unless `at_once`, only windows that were asked for before and lie in memory. Returns
    nothing where something stays unregistered; `outlook` then says why.
    """
    with _lock:
        known = _maps.get(owner)
        if known is None:
            known = _Map(refused=_too_large(_find_mapping(address)))
            weakref.finalize(owner, _unregister, known, os.getpid())
            _maps[owner] = known
        spans = []
        at, end, whole = address, address + size, True
        while at < end and not known.refused:
            stop = known.cover(at)
            if stop is None:
                if at_once or _earned(known, at):
                    _register_window(known, at)
                    continue
                whole = False
                stop = _window(at) + WINDOW_BYTES  # ask for the others too
            stop = min(end, stop)
            spans.append((at - address, stop - at))
            at = stop
        return [] if known.refused or not whole else spans


def uncrossed_spans(owner: object, address: int, size: int) -> list[tuple[int, int]]:
    """Return `(offset, length)` pieces that cover `size` bytes at `address`, each in a registered span or in none.

    CUDA refuses to copy across the edge of a registered span, by whatever way.
    """
    with _lock:
        known = None if owner is None else _maps.get(owner)
        edges = [*known.starts, *known.ends] if known else []
    inside = sorted({edge for edge in edges if address < edge < address + size})
    bounds = [address, *inside, address + size]
    return [(start - address, stop - start) for start, stop in pairwise(bounds)]


def _window(at: int) -> int:
    return at - at % WINDOW_BYTES


def _earned(known: _Map, at: int) -> bool:
    """Return whether the window of `at` was asked for before and lies in memory; it has been asked for now."""
    asked = known.asked[_window(at)] = known.asked.get(_window(at), 0) + 1
    return _is_looked_at(asked) and _in_memory(known, at)


def _is_looked_at(asked: int) -> bool:
    """Return whether it is found out if the window lies in memory, which takes milliseconds: the 2nd, 4th, 8th time."""
    return asked > 1 and asked & (asked - 1) == 0


def _in_memory(known: _Map, at: int) -> bool:
    mapped = _find_mapping(at)
    if mapped is None:
        return True  # registering it will say so
    start, stop = _bounds(known, mapped, at)
    return is_resident(start, stop - start)


def _register_window(known: _Map, at: int) -> None:
    mapped = _find_mapping(at)
    known.refused = _too_large(mapped)
    if mapped is None or known.refused:
        return
    start, stop = _bounds(known, mapped, at)
    if not is_resident(start, stop - start):  # pinning would fault its pages in one by one
        wait(read_in(mapped.path, mapped.offset + start - mapped.start, stop - start))
    if start in known.held:  # and yet not covered: an interrupt came as it was registered
        unregister(start)
    known.device = torch.cuda.current_device()
    known.held.add(start)
    code = register(start, stop - start, READ_ONLY)
    if code != 0:
        known.held.discard(start)
        known.refused = f"CUDA refused to register {stop - start} bytes of it (error {code})"
        log.info("not registering a store's map: %s", known.refused)
        return
    index = bisect.bisect_right(known.starts, at)
    known.starts.insert(index, start)
    known.ends.insert(index, stop)


def _bounds(known: _Map, mapped: _Mapping, at: int) -> tuple[int, int]:
    """Return the part of the window of `at` that the file fills and no registered span covers."""
    index = bisect.bisect_right(known.starts, at)
    start = max(_window(at), mapped.start, known.ends[index - 1] if index else 0)
    following = known.starts[index] if index < len(known.starts) else mapped.stop
    return start, min(_window(at) + WINDOW_BYTES, mapped.stop, following)


def _too_large(mapped: _Mapping | None) -> str:
    if mapped is None:
        return "the map is not in /proc/self/maps"
    size, limit = mapped.stop - mapped.start, MEMORY_SHARE * _memory_bytes()
    if size <= limit:
        return ""
    return f"its {size >> 20} MiB exceed {MEMORY_SHARE:.0%} of memory ({int(limit) >> 20} MiB)"


def _unregister(known: _Map, pid: int) -> None:
    if os.getpid() != pid:  # a forked child holds no registrations of its own
        return
    with torch.cuda.device(known.device):  # or the first GPU would get a context, of some 500 MB
        for start in known.held:
            unregister(start)


@dataclass(frozen=True)
class _Mapping:
    """Where a file is mapped: its bytes, not its address space."""

    start: int
    stop: int
    path: str
    offset: int


def _find_mapping(address: int) -> _Mapping | None:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                span, _, offset, _, _, *name = line.split(maxsplit=5)
                start, stop = (int(bound, 16) for bound in span.split("-"))
                if start <= address < stop and name:
                    path, begin = name[0].rstrip("\n"), int(offset, 16)
                    stop = min(stop, start + os.stat(path).st_size - begin)
                    return _Mapping(start, stop, path, begin)
    except OSError:
        pass
    return None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
