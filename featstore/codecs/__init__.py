"""Payload bytes to smaller payload bytes and back, losing nothing.

A codec is chosen record by record and plays no part in what identifies features. All but raw work in blocks
(featstore.codecs.blocks). raw, lz4 and zstd are read anywhere; ans is made and read by a GPU alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from featstore.codecs.ans import Ans
from featstore.codecs.lz4 import Lz4
from featstore.codecs.raw import Raw
from featstore.codecs.zstd import Zstd

if TYPE_CHECKING:
    from featstore.codecs.blocks import Layout


class Codec(Protocol):
    """Two functions that undo each other."""

    @property
    def fragile(self) -> bool:
        """Return whether only bytes with a proved checksum may be decompressed: others can end more than the call."""
        ...

    @property
    def layout(self) -> Layout | None:
        """Return how the blocks lie, or None where there are none."""
        ...

    def compress(self, payload: memoryview) -> bytes | bytearray | memoryview:
        """Return `payload` (bytes, contiguous) in fewer bytes, if it can be had."""
        ...

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the `raw_bytes` bytes that were compressed; RecordError if they cannot be had."""
        ...


CODECS: dict[str, Codec] = {"raw": Raw(), "lz4": Lz4(), "zstd": Zstd(), "ans": Ans()}


def require(codec: str) -> None:
    """Raise what would hinder `compress` on this machine: ValueError, MissingExtra, StoreError."""
    if codec not in CODECS:
        raise ValueError(f"codec is {codec!r}; use one of {', '.join(CODECS)}")
    CODECS[codec].compress(memoryview(bytes(1 << 12)))


def compress(payload: memoryview, codec: str) -> tuple[str, bytes | bytearray | memoryview]:
    """Return `(codec used, stored bytes)`: raw where `codec` does not shrink the payload."""
    stored = CODECS[codec].compress(payload)
    return (codec, stored) if len(stored) < len(payload) else ("raw", payload)
