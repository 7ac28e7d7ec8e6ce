"""Copies through a ring of page-locked slots: threads fill them while the GPU empties them.

A thread fills a slot without the interpreter lock; the caller sends full slots in order. Sending is the faster by far,
so threads must not wait: they take piece after piece from a queue that is filled before they are woken. Woken a piece
at a time, they would wait for the interpreter lock of the caller, who holds it while it wakes the others.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

SLOT_BYTES = 2 << 20
SLOTS = 32  # 64 MiB of page-locked memory a process
COPY_THREADS = 8
PIECE_BYTES = 16 << 20
_LAST_PIECE_BYTES = 2 << 20

_copy = ctypes.memmove  # releases the interpreter lock


class _Piece(NamedTuple):
    """What a thread copies; `source` keeps its memory map open, also after an interrupt."""

    number: int
    target: int
    source: NDArray[Any]


class _Job(NamedTuple):
    """The pieces of an upload, None for each thread at the end, and the numbers of those that are filled."""

    pieces: queue.SimpleQueue[_Piece | None]
    filled: queue.SimpleQueue[int]


class Ring:
    """Page-locked slots, each free once the GPU has read it; one upload at a time.

    spoiled: an upload was interrupted, and threads may still write to any slot; no other upload may use it.
    """

    def __init__(
        self, *, slot_bytes: int = SLOT_BYTES, slots: int = SLOTS, threads: int = COPY_THREADS
    ) -> None:
        """Allocate the memory and start the threads."""
        self.spoiled = False
        self._memory = torch.empty(
            (slots, slot_bytes), dtype=torch.uint8, device="cpu", pin_memory=True
        )
        self._passed: list[torch.cuda.Event | None] = [None] * slots
        self._next = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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
        """Copy `values`, uint8 of one axis, to `out` on a GPU, in pieces, each on the stream that is current then.

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
        slots, slot_bytes = self._memory.shape
        job = _Job(queue.SimpleQueue(), queue.SimpleQueue())
        working = min(self._threads, -(-len(values) // slot_bytes))
        # A slot is filled again when the GPU is a quarter of the ring beyond it, so that waiting for it takes no time.
        ahead = slots - slots // 4
        full: set[int] = set()
        handed = sent = 0
        whole = False
        try:
            handed = self._hand_out(values, job, handed, ahead)
            for _ in range(working):
                self._work.put(job)
            for end in piece_ends(len(values), slot_bytes):
                while (start := sent * slot_bytes) < end:
                    while sent not in full:
                        full.add(job.filled.get())
                    event = self._send(sent, out[start : start + slot_bytes])
                    sent += 1
                    handed = self._hand_out(values, job, handed, sent + ahead)
                yield end, event
            whole = True
        except GeneratorExit:
            while len(full) < handed:
                full.add(job.filled.get())
            whole = True
            raise
        finally:
            for _ in range(working):
                job.pieces.put(None)
            if whole:
                self._next = (self._next + handed) % slots
            else:
                self.spoiled = True
                self.close()

    def _hand_out(self, values: NDArray[Any], job: _Job, first: int, stop: int) -> int:
        """Have the threads fill slots with the pieces from number `first` on, before `stop`; return the next one."""
        slots, slot_bytes = self._memory.shape
        stop = min(stop, -(-len(values) // slot_bytes))
        for number in range(first, stop):
            slot = (self._next + number) % slots
            event = self._passed[slot]
            if event is not None:
                event.synchronize()
            part = values[number * slot_bytes : (number + 1) * slot_bytes]
            job.pieces.put(_Piece(number, self._memory.data_ptr() + slot * slot_bytes, part))
        return stop

    def _send(self, number: int, out: torch.Tensor) -> torch.cuda.Event:
        slot = (self._next + number) % len(self._passed)
        out.copy_(self._memory[slot, : len(out)], non_blocking=True)
        event: torch.cuda.Event = torch.cuda.current_stream(out.device).record_event()
        self._passed[slot] = event
        return event

    def _fill_slots(self) -> None:
        while (job := self._work.get()) is not None:
            while (piece := job.pieces.get()) is not None:
                _copy(piece.target, piece.source.__array_interface__["data"][0], len(piece.source))
                number = piece.number
                del piece  # a thread that waits for the next one would keep the map open
                job.filled.put(number)


def piece_ends(count: int, unit: int = 1) -> Iterator[int]:
    """Yield where the pieces of `count` bytes end, of whole `unit`s but the last one.

    They are large, and ever smaller towards the end: after the last one crossed, little is left to dequantize.
    """
    end = 0
    while end < count:
        size = min(PIECE_BYTES, max((count - end) // 2, _LAST_PIECE_BYTES))
        end = min(end + max(size - size % unit, unit), count)
        yield end


_ring: tuple[int, Ring] | None = None
_ring_lock = threading.Lock()


def shared_ring() -> Ring:
    """Return this process's ring."""
    global _ring
    with _ring_lock:
        if _ring is None or _ring[0] != os.getpid() or _ring[1].spoiled:
            _ring = os.getpid(), Ring()
        return _ring[1]
