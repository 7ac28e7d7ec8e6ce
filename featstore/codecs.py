"""Payload bytes to smaller payload bytes and back, losing nothing.

A codec is chosen record by record and plays no part in what identifies features. lz4 works in blocks of 1 MiB: a table
of compressed lengths, then the blocks, so that memory stays bounded and blocks decompress side by side.
"""

from __future__ import annotations

import struct
from typing import Protocol

import lz4.block

from featstore.errors import RecordError

BLOCK_BYTES = 1 << 20
LZ4_MAX_RATIO = 255  # no LZ4 block expands further, so a larger claim is a lie about memory


class Codec(Protocol):
    """Two functions that undo each other."""

    def compress(self, payload: memoryview) -> bytes | bytearray | memoryview:
        """Return `payload` (bytes, contiguous) in fewer bytes, if it can be had."""
        ...

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the `raw_bytes` bytes that were compressed; RecordError if they cannot be had."""
        ...


class Raw:
    """The payload as it is: the one codec that can be read without a copy."""

    def compress(self, payload: memoryview) -> memoryview:
        """Return `payload` itself."""
        return payload

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return `stored` itself, which must be `raw_bytes` long."""
        if len(stored) != raw_bytes:
            raise RecordError(f"the payload holds {len(stored)} bytes, its shape needs {raw_bytes}")
        return stored


class Lz4:
    """LZ4 blocks: cheap to read back, small gain on features."""

    def compress(self, payload: memoryview) -> bytearray:
        """Return the table of lengths (uint32, little-endian, one a block) and the blocks."""
        blocks = [
            lz4.block.compress(payload[i : i + BLOCK_BYTES], store_size=False)
            for i in range(0, len(payload), BLOCK_BYTES)
        ]
        out = bytearray(struct.pack(f"<{len(blocks)}I", *map(len, blocks)))
        for block in blocks:
            out += block
        return out

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the payload, each block into its place; every length is checked before it is used."""
        count = -(-raw_bytes // BLOCK_BYTES)
        if len(stored) < 4 * count:
            raise RecordError(
                f"the lz4 payload holds {len(stored)} bytes, its table of {count} blocks needs {4 * count}"
            )
        if raw_bytes > LZ4_MAX_RATIO * len(stored):
            raise RecordError(
                f"the lz4 payload of {len(stored)} bytes cannot expand to the {raw_bytes} its shape needs"
            )
        lengths = struct.unpack_from(f"<{count}I", stored)
        if 4 * count + sum(lengths) != len(stored):
            raise RecordError(
                f"the lz4 payload holds {len(stored)} bytes, its table speaks of {4 * count + sum(lengths)}"
            )
        out = memoryview(bytearray(raw_bytes))
        start = 4 * count
        for i, length in enumerate(lengths):
            place = out[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
            try:
                block = lz4.block.decompress(
                    stored[start : start + length], uncompressed_size=len(place)
                )
            except lz4.block.LZ4BlockError as exc:
                raise RecordError(
                    f"lz4 block {i} of {count} cannot be decompressed: {exc}"
                ) from exc
            if len(block) != len(place):
                raise RecordError(
                    f"lz4 block {i} of {count} holds {len(block)} bytes, expected {len(place)}"
                )
            place[:] = block
            start += length
        return out.toreadonly()


CODECS: dict[str, Codec] = {"raw": Raw(), "lz4": Lz4()}


def compress(payload: memoryview, codec: str) -> tuple[str, bytes | bytearray | memoryview]:
    """Return `(codec used, stored bytes)`: raw where `codec` does not shrink the payload."""
    stored = CODECS[codec].compress(payload)
    return (codec, stored) if len(stored) < len(payload) else ("raw", payload)
