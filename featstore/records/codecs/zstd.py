"""Zstandard in blocks: close to the entropy of features."""

from __future__ import annotations

import threading

import zstandard

from featstore.errors import RecordError
from featstore.records.codecs.blocks import BLOCK_BYTES, Layout, raw_blocks, side_by_side

# Features have hardly any repetitions to search for: the gain is that of the entropy stage, which level 1 has too.
LEVEL = 1
# A block of one repeated byte takes some 20 bytes, and 4 in the table: no block expands further.
LAYOUT = Layout("zstd", alignment=16, max_ratio=BLOCK_BYTES // 16)

_thread = threading.local()


class Zstd:
    """Zstandard frames, one per block, with their content size."""

    def compress(self, payload: memoryview) -> bytearray:
        """Return the table and the frames."""
        blocks = raw_blocks(payload)
        frames: list[bytes] = [b""] * len(blocks)

        def work(number: int) -> None:
            frames[number] = _compressor().compress(blocks[number])

        side_by_side(work, len(blocks), len(payload))
        return LAYOUT.pack(frames)

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the payload; the size of each frame is checked before it is decompressed."""
        spans = LAYOUT.spans(stored, raw_bytes)
        out = memoryview(bytearray(raw_bytes))

        def work(number: int) -> None:
            start, length = spans[number]
            place = out[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            frame = stored[start : start + length]
            try:
                found = zstandard.get_frame_parameters(frame).content_size
                if found != len(place):
                    raise RecordError(
                        f"zstd block {number} of {len(spans)} says it holds {found} bytes, expected {len(place)}"
                    )
                place[:] = _decompressor().decompress(frame, allow_extra_data=False)
            except zstandard.ZstdError as exc:
                raise RecordError(
                    f"zstd block {number} of {len(spans)} cannot be decompressed: {exc}"
                ) from exc

        side_by_side(work, len(spans), raw_bytes)
        return out.toreadonly()


def _compressor() -> zstandard.ZstdCompressor:
    # One per thread: neither is thread-safe.
    if not hasattr(_thread, "compressor"):
        _thread.compressor = zstandard.ZstdCompressor(
            LEVEL, write_content_size=True, write_checksum=False
        )
    compressor: zstandard.ZstdCompressor = _thread.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_thread, "decompressor"):
        _thread.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _thread.decompressor
    return decompressor
