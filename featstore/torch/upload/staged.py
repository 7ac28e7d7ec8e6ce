"""Copies through a ring of page-locked slots: threads fill them while the GPU empties them.

A thread fills a slot without the interpreter lock; the caller sends full slots in order. Having all threads fill each
slot together was measured slower: handing out the shares took longer than copying.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from featstore.torch.upload.cudart import copy_stream

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

SLOT_BYTES = 4 << 20
SLOTS = 32  # 128 MiB of page-locked memory a process
COPY_THREADS = 8

_copy = ctypes.memmove  # releases the interpreter lock


class _Piece(NamedTuple):
    """What a thread copies and whom it tells; `source` keeps its memory map open, also after an interrupt."""

    number: int
    target: int
    source: NDArray[Any]
    filled: queue.SimpleQueue[int]


class Ring:
    """Page-locked slots, each free once the GPU has read it; one upload at a time.

    spoiled: an upload was interrupted, and threads may still write to any slot; no other upload may use it.
    """

    def __init__(self, *, slot_bytes: int = SLOT_BYTES, threads: int = COPY_THREADS) -> None:
        """Allocate the memory, the same amount for any slot size, and start the threads."""
        count = max(2, SLOTS * SLOT_BYTES // slot_bytes)
        self.spoiled = False
        self._memory = torch.empty((count, slot_bytes), dtype=torch.uint8, pin_memory=True)
        self._passed: list[torch.cuda.Event | None] = [None] * count
        self._next = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._threads = max(1, min(threads, os.cpu_count() or 1))
        try:
            for number in range(self._threads):
                name = f"featstore-copy-{number}"
                threading.Thread(target=self._fill_slots, name=name, daemon=True).start()
        except BaseException:
            self.close()  # threads that run would keep the memory
            raise

    def close(self) -> None:
        """End the threads; no upload may follow."""
        for _ in range(self._threads):
            self._work.put(None)

    def upload(
        self, values: NDArray[Any], out: torch.Tensor
    ) -> Generator[tuple[int, torch.cuda.Event]]:
        """Copy `values`, uint8 of one axis, to `out` on a GPU, in pieces.

        Yields `(bytes, event)`: so many of the first bytes of `out` are copied once the event passes. After the last
        one `values` has been read. Closing it early waits for the copies that were started.
        """
        with self._lock:
            if not self.spoiled:
                yield from self._upload(values, out)
                return
        yield from shared_ring().upload(values, out)

    def _upload(
        self, values: NDArray[Any], out: torch.Tensor
    ) -> Generator[tuple[int, torch.cuda.Event]]:
        slot_bytes = self._memory.shape[1]
        bounds = range(0, len(values), slot_bytes)
        full: set[int] = set()
        filled: queue.SimpleQueue[int] = queue.SimpleQueue()
        handed = sent = 0
        whole = False
        try:
            while sent < len(bounds):
                while handed < len(bounds) and handed - sent < len(self._passed):
                    start = bounds[handed]
                    self._hand_out(handed, values[start : start + slot_bytes], filled)
                    handed += 1
                while sent not in full:
                    full.add(filled.get())
                start = bounds[sent]
                stop = min(start + slot_bytes, len(values))
                event = self._send(sent, out[start:stop])
                sent += 1
                yield stop, event
            whole = True
        except GeneratorExit:
            while len(full) < handed:
                full.add(filled.get())
            whole = True
            raise
        finally:
            if whole:
                self._next = (self._next + handed) % len(self._passed)
            else:
                self.spoiled = True
                self.close()

    def _hand_out(self, number: int, part: NDArray[Any], filled: queue.SimpleQueue[int]) -> None:
        """Have a thread fill the slot of piece `number`."""
        slot = (self._next + number) % len(self._passed)
        event = self._passed[slot]
        if event is not None:
            event.synchronize()
        target = self._memory.data_ptr() + slot * self._memory.shape[1]
        self._work.put(_Piece(number, target, part, filled))

    def _send(self, number: int, out: torch.Tensor) -> torch.cuda.Event:
        slot = (self._next + number) % len(self._passed)
        stream = copy_stream(out.device)
        with torch.cuda.stream(stream):
            out.copy_(self._memory[slot, : len(out)], non_blocking=True)
        event: torch.cuda.Event = stream.record_event()
        self._passed[slot] = event
        return event

    def _fill_slots(self) -> None:
        while (piece := self._work.get()) is not None:
            _copy(piece.target, piece.source.__array_interface__["data"][0], len(piece.source))
            number, filled = piece.number, piece.filled
            del piece  # a thread that waits for work would keep the map open
            filled.put(number)


_ring: tuple[int, Ring] | None = None
_ring_lock = threading.Lock()


def shared_ring() -> Ring:
    """Return this process's ring."""
    global _ring
    with _ring_lock:
        if _ring is None or _ring[0] != os.getpid() or _ring[1].spoiled:
            _ring = os.getpid(), Ring()
        return _ring[1]
