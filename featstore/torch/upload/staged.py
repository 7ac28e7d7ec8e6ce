"""Copies through a ring of page-locked slots, which torch's threads fill while the GPU empties them.

Large slots, so that few copies share a record between them: with slots of 8 MiB 63 MiB cross in 1.9 ms on an H100, with
ones of 2 MiB in 3.1; threads of our own, which wait for the interpreter lock in between, took 2.8 at best (16 cores).
With torch.set_num_threads(1), as torchrun sets it, one core copies: 7 ms.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

SLOT_BYTES = 8 << 20
SLOTS = 4  # 32 MiB of page-locked memory a process
PIECE_BYTES = 16 << 20
_LAST_PIECE_BYTES = 2 << 20


class Ring:
    """Page-locked slots, each free once the GPU has read it; one upload at a time."""

    def __init__(self, *, slot_bytes: int = SLOT_BYTES, slots: int = SLOTS) -> None:
        """Allocate the memory."""
        self._memory = torch.empty(
            (slots, slot_bytes), dtype=torch.uint8, device="cpu", pin_memory=True
        )
        self._passed: list[torch.cuda.Event | None] = [None] * slots
        self._next = 0
        self._sending: torch.cuda.Stream | None = None  # which reads a slot that has no event yet
        self._lock = threading.Lock()

    def upload(
        self, values: NDArray[np.uint8], out: torch.Tensor
    ) -> Generator[tuple[int, torch.cuda.Event]]:
        """Copy `values`, uint8 of one axis, to `out` on a GPU, in pieces, each on the stream that is current then.

        Yields `(bytes, event)`: so many of the first bytes of `out` are copied once the event passes, and as many of
        `values` have been read.
        """
        with self._lock:
            if self._sending is not None:  # an upload was interrupted
                self._sending.synchronize()
            source, start, slot_bytes = alias(values), 0, self._memory.shape[1]
            for end in piece_ends(len(values), slot_bytes):
                while start < end:
                    stop = min(start + slot_bytes, end)
                    event = self._send(source[start:stop], out[start:stop])
                    start = stop
                yield end, event

    def _send(self, values: torch.Tensor, out: torch.Tensor) -> torch.cuda.Event:
        slot, passed = self._memory[self._next, : len(values)], self._passed[self._next]
        if passed is not None:
            passed.synchronize()
        slot.copy_(values)
        self._sending = torch.cuda.current_stream(out.device)
        out.copy_(slot, non_blocking=True)
        event: torch.cuda.Event = self._sending.record_event()
        self._passed[self._next] = event
        self._sending = None
        self._next = (self._next + 1) % len(self._passed)
        return event


class _Alias:
    """Read-only memory declared writable, because torch accepts no other; nothing in this folder writes to it."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._keep = values
        interface = dict(values.__array_interface__)
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def alias(values: NDArray[Any]) -> torch.Tensor:
    """Return a tensor on the memory of `values`; never return it to a caller, never write to it."""
    return torch.from_numpy(np.asarray(_Alias(values)))


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
        if _ring is None or _ring[0] != os.getpid():
            _ring = os.getpid(), Ring()
        return _ring[1]
