"""A payload in blocks: a table of compressed lengths, then the blocks.

A block holds 64 KiB of the payload, the last one the rest, so memory stays bounded and threads share the blocks.
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featstore.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BLOCK_BYTES = 64 << 10
# For smaller payloads threads do not pay.
_THREADED_BYTES = 2 << 20


@dataclass(frozen=True)
class Layout:
    """How a codec lays out its blocks.

    Args:
        name: the codec's name.
        alignment: of each block, in bytes from the start of the stored payload.
        max_ratio: bytes that a stored byte expands to at most; a larger claim is refused before memory is allocated.
    """

    name: str
    alignment: int
    max_ratio: int

    def pack(self, blocks: Sequence[bytes | memoryview]) -> bytearray:
        """Return the table of lengths (uint32, little-endian, one a block) and the blocks."""
        out = bytearray(struct.pack(f"<{len(blocks)}I", *map(len, blocks)))
        for block in blocks:
            out += bytes(-len(out) % self.alignment)
            out += block
        return out

    def spans(self, stored: memoryview, raw_bytes: int, count: int) -> list[tuple[int, int]]:
        """Return start and length of each of `count` blocks in `stored`; RecordError if its table is invalid."""
        if len(stored) < 4 * count:
            raise RecordError(
                f"the {self.name} payload holds {len(stored)} bytes, its table of {count} blocks needs {4 * count}"
            )
        if raw_bytes > self.max_ratio * len(stored):
            raise RecordError(
                f"the {self.name} payload of {len(stored)} bytes cannot expand to the {raw_bytes} its shape needs"
            )
        lengths = np.frombuffer(stored, "<u4", count).astype(np.int64)
        first = 4 * count + -4 * count % self.alignment
        rooms = lengths + -lengths % self.alignment
        starts = first + np.cumsum(rooms) - rooms
        end = int(starts[-1] + lengths[-1]) if count else 0
        if end != len(stored):
            raise RecordError(
                f"the {self.name} payload holds {len(stored)} bytes, its table describes {end}"
            )
        return list(zip(starts.tolist(), lengths.tolist(), strict=True))


def raw_blocks(payload: memoryview) -> list[memoryview]:
    """Return `payload` cut into blocks."""
    return [payload[i : i + BLOCK_BYTES] for i in range(0, len(payload), BLOCK_BYTES)]


def side_by_side(work: Callable[[int], None], count: int, raw_bytes: int) -> None:
    """Call `work` with each of `count` numbers, on several threads if `raw_bytes` are enough to pay.

    The work must release the interpreter lock to gain from it. What one call raises is raised here.
    """
    pool = _pool(os.getpid())
    if raw_bytes < _THREADED_BYTES or pool is None:
        for number in range(count):
            work(number)
        return
    numbers = iter(range(count))
    lock = threading.Lock()

    def some() -> None:
        while True:
            with lock:
                few = list(itertools.islice(numbers, 16))
            if not few:
                return
            for number in few:
                work(number)

    for share in [pool.submit(some) for _ in range(_threads())]:
        share.result()


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


@functools.lru_cache(maxsize=1)
def _pool(pid: int) -> ThreadPoolExecutor | None:
    """Return the threads of this process: they do not survive a fork."""
    return ThreadPoolExecutor(_threads(), "featstore-codec") if _threads() > 1 else None
