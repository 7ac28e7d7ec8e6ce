"""Payload bytes to smaller payload bytes and back, losing nothing.

The codec is chosen per record and does not identify features. All but raw work in blocks
(featstore.records.codecs.blocks).
"""

from __future__ import annotations

from typing import Protocol

from featstore.records.codecs.lz4 import Lz4
from featstore.records.codecs.raw import Raw
from featstore.records.codecs.zstd import Zstd


class Codec(Protocol):
    """A lossless compression of payload bytes."""

    def compress(self, payload: memoryview) -> bytes | bytearray | memoryview:
        """Return `payload` (bytes, contiguous) compressed; perhaps not in fewer bytes."""
        ...

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the `raw_bytes` bytes that were compressed; RecordError if `stored` is damaged."""
        ...


CODECS: dict[str, Codec] = {"raw": Raw(), "lz4": Lz4(), "zstd": Zstd()}


def require(codec: str) -> None:
    """Raise ValueError if there is no such codec."""
    if codec not in CODECS:
        raise ValueError(f"codec is {codec!r}; use one of {', '.join(CODECS)}")


def compress(payload: memoryview, codec: str) -> tuple[str, bytes | bytearray | memoryview]:
    """Return `(codec used, stored bytes)`: raw if `codec` does not shrink the payload."""
    stored = CODECS[codec].compress(payload)
    return (codec, stored) if len(stored) < len(payload) else ("raw", payload)
