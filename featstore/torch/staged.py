"""Copies through a ring of page-locked slots: threads fill them while the GPU empties them.

A slot is filled by all threads at once, a share each, so that the first is on its way early and the last is short. The
threads only copy, outside the interpreter lock; the caller sends what is full.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from typing import TYPE_CHECKING, Any

import torch

from featstore.torch.streams import copy_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SLOT_BYTES = 4 << 20
SLOTS = 32  # 128 MiB of page-locked memory a process
SHARE_BYTES = 512 << 10
COPY_THREADS = 8

_copy = ctypes.memmove  # lets go of the interpreter lock


class Ring:
    """Page-locked slots, each free once the GPU has read it; one upload at a time."""

    def __init__(self, *, slot_bytes: int = SLOT_BYTES, threads: int = COPY_THREADS) -> None:
        """Take the memory, as much whatever the size of a slot, and start the threads."""
        count = max(2, SLOTS * SLOT_BYTES // slot_bytes)
        self._memory = torch.empty((count, slot_bytes), dtype=torch.uint8, pin_memory=True)
        self._passed: list[torch.cuda.Event | None] = [None] * count
        self._next = 0
        self._lock = threading.Lock()
        self._shares: queue.SimpleQueue[tuple[int, int, int, int] | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._threads = max(1, min(threads, os.cpu_count() or 1))
        for number in range(self._threads):
            name = f"featstore-copy-{number}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def close(self) -> None:
        """End the threads; no upload may follow."""
        for _ in range(self._threads):
            self._shares.put(None)

    def upload(
        self, values: NDArray[Any], out: torch.Tensor
    ) -> Iterator[tuple[int, torch.cuda.Event]]:
        """Copy `values`, uint8 of one axis, to `out` on a GPU, in pieces.

        Yields `(bytes, event)`: so many of the first bytes of `out` are there once the event passes. When it ends
        `values` is read. Whoever closes it early waits for the copies that were begun.
        """
        with self._lock:
            slot_bytes = self._memory.shape[1]
            bounds = range(0, len(values), slot_bytes)
            unfilled = [0] * len(bounds)
            handed = sent = 0
            try:
                while sent < len(bounds):
                    while handed < len(bounds) and handed - sent < len(self._passed):
                        part = values[bounds[handed] : bounds[handed] + slot_bytes]
                        unfilled[handed] = self._hand_out(handed, part)
                        handed += 1
                    while unfilled[sent]:
                        unfilled[self._filled.get()] -= 1
                    start = bounds[sent]
                    stop = min(start + slot_bytes, len(values))
                    event = self._send(sent, out[start:stop])
                    sent += 1
                    yield stop, event
            finally:
                for _ in range(sum(unfilled)):
                    self._filled.get()
                self._next = (self._next + handed) % len(self._passed)

    def _hand_out(self, number: int, part: NDArray[Any]) -> int:
        """Have the threads fill the slot of the piece `number`, and return how many shares that takes."""
        slot = (self._next + number) % len(self._passed)
        event = self._passed[slot]
        if event is not None:
            event.synchronize()
        source = part.__array_interface__["data"][0]
        target = self._memory.data_ptr() + slot * self._memory.shape[1]
        starts = range(0, len(part), SHARE_BYTES)
        for start in starts:
            length = min(SHARE_BYTES, len(part) - start)
            self._shares.put((number, target + start, source + start, length))
        return len(starts)

    def _send(self, number: int, out: torch.Tensor) -> torch.cuda.Event:
        slot = (self._next + number) % len(self._passed)
        stream = copy_stream(out.device)
        with torch.cuda.stream(stream):
            out.copy_(self._memory[slot, : len(out)], non_blocking=True)
        event: torch.cuda.Event = stream.record_event()
        self._passed[slot] = event
        return event

    def _work(self) -> None:
        while (share := self._shares.get()) is not None:
            number, target, source, length = share
            _copy(target, source, length)
            self._filled.put(number)


_ring: tuple[int, Ring] | None = None
_ring_lock = threading.Lock()


def shared_ring() -> Ring:
    """Return this process's ring."""
    global _ring
    with _ring_lock:
        if _ring is None or _ring[0] != os.getpid():
            _ring = os.getpid(), Ring()
        return _ring[1]
