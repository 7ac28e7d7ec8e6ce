"""Records to test with: whole ones, and those that a liar would write."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import xxhash

from featstore.geometry import RowLayout
from featstore.records.header import Header, SourceFingerprint, to_map
from featstore.records.quantization import QuantError, quantize
from featstore.records.record import Record, pack_prefix, pack_record, parse
from featstore.records.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOM = 64 << 10

HEADER = Header(
    video_id="demo/water é",
    video_path="/videos/demo/water é.mp4",
    dataset="demo",
    spec="00112233445566778899aabbccddeeff",
    nframe=3,
    frame_indices=struct.pack("<2I", 0, 70_000),
    total_frames=70_001,
    fps=29.97,
    decoder="pyav",
    doubt="",
    shape=(4, 3),
    layout=RowLayout(units=2, tokens_per_unit=2),
    dtype="bf16",
    storage=Storage("int8", "channel"),
    source=SourceFingerprint(123_456_789, 1_700_000_000_123_456_789, "f" * 32),
    error=QuantError(cosine=0.99, relative_l2=0.01, max_abs=0.5, token_p99=0.02, token_max=0.03),
    created=1_700_000_000.25,
)
VALUES = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)


def pack(header: Header, scales: bytes, payload: bytes) -> bytes:
    return pack_prefix(header, scales, len(payload)) + payload


def whole_record(
    header: Header = HEADER, x: np.ndarray = VALUES, codec: str = "raw"
) -> tuple[Header, bytes]:
    """Return a record of `x` with its header as the writer completes it."""
    stored, scales = quantize(x, header.storage)
    buffer = memoryview(bytearray(ROOM) + stored.tobytes())
    asked = dataclasses.replace(header.storage, codec=codec)
    header = dataclasses.replace(header, storage=asked)
    header, record = pack_record(header, joined(scales), buffer, slice(ROOM, len(buffer)))
    return header, bytes(record)


def joined(scales: Iterable[np.ndarray]) -> bytes:
    return b"".join(scale.tobytes() for scale in scales)


def values_of(header: Header, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=header.shape).astype(np.float32)


def read(record: bytes) -> Record:
    found = parse(memoryview(record))
    found.verify()
    return found


def hostile(fields: Any, scale: bytes = bytes(12), payload: bytes = bytes(12)) -> bytes:
    """A record with a right checksum around any header: what a liar would write."""
    packer = msgpack.Packer(unicode_errors="surrogatepass")
    head = bytearray(b"\x93\xde" + struct.pack(">H", len(fields) + 4))
    for key, value in (("format", 2), ("prefix_bytes", 0xFFFFFFFF), ("prefix_xxh3", bytes(8))):
        head += packer.pack(key) + packer.pack(value)
    for key, value in fields.items():
        head += packer.pack(key) + packer.pack(value)
    head += packer.pack("pad") + b"\xc5\0\0"
    for part in (scale, payload):
        head += b"\xc6" + struct.pack(">I", len(part)) + part
    prefix_bytes = len(head) - len(payload)
    at = head.index(b"prefix_bytes") + len("prefix_bytes") + 1
    head[at : at + 4] = struct.pack(">I", prefix_bytes)
    at = head.index(b"prefix_xxh3") + len("prefix_xxh3") + 2
    head[at : at + 8] = xxhash.xxh3_64_digest(head[:prefix_bytes])
    return bytes(head)


def plain_fields(**changes: Any) -> dict[str, Any]:
    """The header as msgpack has it, with other values; `...` for a field that is missing."""
    fields = to_map(dataclasses.replace(HEADER, payload_xxh3=xxhash.xxh3_64_intdigest(bytes(12))))
    fields |= changes
    return {name: value for name, value in fields.items() if value is not ...}


def changed(part: str, **changes: Any) -> dict[str, Any]:
    """A lie about one field of a part of the header, as its layout."""
    fields = plain_fields()[part] | changes
    return {part: {name: value for name, value in fields.items() if value is not ...}}
