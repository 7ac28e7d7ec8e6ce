"""Single Zstandard frames, one a block, with their content size: what the codecs zstd and planes are made of."""

from __future__ import annotations

import threading

import zstandard

from featstore.errors import RecordError

# Features have hardly any repetitions to search for: the gain is that of the entropy stage, which level 1 has too.
LEVEL = 1
_thread = threading.local()


def compress_frame(block: memoryview | bytes) -> bytes:
    """Return the frame of a block."""
    if not hasattr(_thread, "compressor"):  # one per thread: neither is thread-safe
        _thread.compressor = zstandard.ZstdCompressor(
            LEVEL, write_content_size=True, write_checksum=False
        )
    frame: bytes = _thread.compressor.compress(block)
    return frame


def decompress_frame(frame: memoryview, size: int, name: str) -> bytes:
    """Return the `size` bytes of a frame; RecordError, which calls it `name`, if it is damaged or says another size."""
    if not hasattr(_thread, "decompressor"):
        _thread.decompressor = zstandard.ZstdDecompressor()
    try:
        found = zstandard.get_frame_parameters(frame).content_size
        if found != size:
            raise RecordError(f"{name} says it holds {found} bytes, expected {size}")
        block: bytes = _thread.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise RecordError(f"{name} cannot be decompressed: {exc}") from exc
    return block
