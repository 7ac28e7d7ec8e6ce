"""Payload bytes to smaller payload bytes and back, losing nothing.

A codec is chosen record by record and plays no part in what identifies features. All but raw work in blocks
(featstore.records.codecs.blocks).
"""

from __future__ import annotations

from typing import Protocol

from featstore.records.codecs.lz4 import Lz4
from featstore.records.codecs.raw import Raw
from featstore.records.codecs.zstd import Zstd


class Codec(Protocol):
    """Two functions that undo each other."""

    def compress(self, payload: memoryview) -> bytes | bytearray | memoryview:
        """Return `payload` (bytes, contiguous) in fewer bytes, if it can be had."""
        ...

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the `raw_bytes` bytes that were compressed; RecordError if they cannot be had."""
        ...


CODECS: dict[str, Codec] = {"raw": Raw(), "lz4": Lz4(), "zstd": Zstd()}


def require(codec: str) -> None:
    """Raise ValueError if there is no such codec."""
    if codec not in CODECS:
        raise ValueError(f"codec is {codec!r}; use one of {', '.join(CODECS)}")


def compress(payload: memoryview, codec: str) -> tuple[str, bytes | bytearray | memoryview]:
    """Return `(codec used, stored bytes)`: raw where `codec` does not shrink the payload."""
    stored = CODECS[codec].compress(payload)
    return (codec, stored) if len(stored) < len(payload) else ("raw", payload)
