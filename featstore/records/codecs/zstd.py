"""Zstandard in blocks: close to the entropy of int8 features."""

from __future__ import annotations

from featstore.records.codecs.blocks import BLOCK_BYTES, Layout, raw_blocks, side_by_side
from featstore.records.codecs.zstd_frames import compress_frame, decompress_frame

# A block of one repeated byte takes some 20 bytes, and 4 in the table: no block expands further.
LAYOUT = Layout("zstd", alignment=16, max_ratio=BLOCK_BYTES // 16)


class Zstd:
    """Zstandard frames, one per block."""

    def compress(self, payload: memoryview) -> bytearray:
        """Return the table and the frames."""
        blocks = raw_blocks(payload)
        frames: list[bytes] = [b""] * len(blocks)

        def work(number: int) -> None:
            frames[number] = compress_frame(blocks[number])

        side_by_side(work, len(blocks), len(payload))
        return LAYOUT.pack(frames)

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the payload; the size of each frame is checked before it is decompressed."""
        spans = LAYOUT.spans(stored, raw_bytes, -(-raw_bytes // BLOCK_BYTES))
        out = memoryview(bytearray(raw_bytes))

        def work(number: int) -> None:
            start, length = spans[number]
            place = out[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            name = f"zstd block {number} of {len(spans)}"
            place[:] = decompress_frame(stored[start : start + length], len(place), name)

        side_by_side(work, len(spans), raw_bytes)
        return out.toreadonly()
