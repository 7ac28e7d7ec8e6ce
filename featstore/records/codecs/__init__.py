"""Payload bytes to smaller payload bytes and back, losing nothing.

The codec is chosen per record and does not identify features. All but raw work in blocks
(featstore.records.codecs.blocks).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from featstore.records.codecs.lz4 import Lz4
from featstore.records.codecs.planes import Planes
from featstore.records.codecs.raw import Raw
from featstore.records.codecs.zstd import Zstd

if TYPE_CHECKING:
    from featstore.records.storage import Storage


class Codec(Protocol):
    """A lossless compression of payload bytes."""

    def compress(self, payload: memoryview) -> bytes | bytearray | memoryview:
        """Return `payload` (bytes, contiguous) compressed; perhaps not in fewer bytes."""
        ...

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the `raw_bytes` bytes that were compressed; RecordError if `stored` is damaged."""
        ...


CODECS: dict[str, Codec] = {
    "raw": Raw(),
    "lz4": Lz4(),
    "zstd": Zstd(),
    "planes2": Planes(2),
    "planes4": Planes(4),
}


def compress(
    payload: memoryview, storage: Storage
) -> tuple[Storage, bytes | bytearray | memoryview]:
    """Return `(storage, stored bytes)` of a payload: with the codec raw if that of `storage` does not shrink it."""
    stored = _codec(storage).compress(payload)
    if len(stored) < len(payload):
        return storage, stored
    return replace(storage, codec="raw"), payload


def decompress(stored: memoryview, raw_bytes: int, storage: Storage) -> memoryview:
    """Return the `raw_bytes` bytes of the payload; RecordError if `stored` is damaged."""
    return _codec(storage).decompress(stored, raw_bytes)


def _codec(storage: Storage) -> Codec:
    name = storage.codec
    return CODECS[f"{name}{storage.itemsize}" if name == "planes" else name]
