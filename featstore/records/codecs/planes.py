"""Floats taken apart into byte planes, each compressed by Zstandard: the exponents shrink, the mantissas hardly.

A group holds the values of `itemsize` blocks: one block of their lowest bytes, one of the next, up to the highest with
sign and exponent. So each block is of one kind, and a group is put together while it is in a core's cache.
"""

from __future__ import annotations

import numpy as np

from featstore.records.codecs.blocks import BLOCK_BYTES, Layout, side_by_side
from featstore.records.codecs.zstd_frames import compress_frame, decompress_frame

LAYOUT = Layout("planes", alignment=16, max_ratio=BLOCK_BYTES // 16)


class Planes:
    """Zstandard frames, one per block of a byte plane.

    Args:
        itemsize: bytes of a value, 2 or 4.
    """

    def __init__(self, itemsize: int) -> None:
        """Take the width of the values."""
        self._itemsize = itemsize
        self._group = BLOCK_BYTES * itemsize

    def compress(self, payload: memoryview) -> bytearray:
        """Return the table and the frames."""
        if len(payload) % self._itemsize:  # of no values of this width, but it is kept
            payload = memoryview(bytes(payload) + bytes(-len(payload) % self._itemsize))
        values = np.frombuffer(payload, np.uint8).reshape(-1, self._itemsize)
        count = -(-len(payload) // self._group)
        frames: list[bytes] = [b""] * (count * self._itemsize)

        def work(number: int) -> None:
            group = values[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            for plane in range(self._itemsize):
                block = np.ascontiguousarray(group[:, plane])
                frames[number * self._itemsize + plane] = compress_frame(block.data)

        side_by_side(work, count, len(payload))
        return LAYOUT.pack(frames)

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the payload; the size of each frame is checked before it is decompressed."""
        count = -(-raw_bytes // self._group)
        spans = LAYOUT.spans(stored, raw_bytes, count * self._itemsize)
        out = np.empty(-(-raw_bytes // self._itemsize), f"<u{self._itemsize}")

        def work(number: int) -> None:
            place = out[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            for plane in reversed(range(self._itemsize)):  # the highest bytes first
                at = number * self._itemsize + plane
                start, length = spans[at]
                name = f"planes block {at} of {len(spans)}"
                block = decompress_frame(stored[start : start + length], len(place), name)
                np.left_shift(place, 8, out=place)  # whatever was there is shifted out
                np.bitwise_or(place, np.frombuffer(block, np.uint8), out=place)

        side_by_side(work, count, raw_bytes)
        return out.data.cast("B")[:raw_bytes].toreadonly()
