"""One record and its bytes.

A record is a msgpack array: a header map, the scales and the payload as bin32. Any msgpack reader can open it; ours
verifies the prefix (all before the payload) by its checksum, parses the header and slices the payload, so a lookup
copies nothing. The prefix is padded so that the payload starts on a page of the memory map. docs/format.md has it all.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import NamedTuple

import msgpack
import numpy as np
import xxhash

from featstore.errors import RecordError
from featstore.records.codecs import compress
from featstore.records.header import Header, from_map, to_map
from featstore.records.quantization import INT8_MAX, MAX_FLOAT, MIN_SCALE
from featstore.records.storage import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, MAX_PREFIX_BYTES, PAGE

FORMAT = 2
LMDB_VALUE_OFFSET = 16  # engine 0.9 puts a large value 16 bytes into its first page

_BIN32 = b"\xc6"
_START = b"\x93\xde"  # array of 3; map16, its count follows
_LENGTH_AT = 4 + 7 + 1 + 13 + 1  # count, "format", 2, "prefix_bytes", uint32 marker
_CHECKSUM_AT = _LENGTH_AT + 4 + 12 + 2  # "prefix_xxh3", bin8 marker and length
_NO_CHECKSUM = bytes(8)


class Record(NamedTuple):  # made at each lookup: a dataclass takes three times as long
    """A parsed record: header, and views of scales and stored payload that keep their memory alive."""

    header: Header
    scales: memoryview
    payload: memoryview

    def parts(self, record_bytes: int) -> tuple[slice, slice]:
        """Return where scales and payload are in the `record_bytes` that were parsed."""
        start = record_bytes - len(self.payload)
        end = start - len(_BIN32) - 4
        return slice(end - len(self.scales), end), slice(start, record_bytes)

    def verify(self) -> None:
        """Raise RecordError unless the stored payload has the checksum its header names."""
        found = xxhash.xxh3_64_intdigest(self.payload)
        if found != self.header.payload_xxh3:
            raise RecordError(
                f"the payload of video {self.header.video_id!r} is damaged: its xxh3 is {found:016x}, the header says "
                f"{self.header.payload_xxh3:016x}"
            )


def pack_prefix(header: Header, scales: bytes, payload_bytes: int) -> bytes:
    """Return all of a record before its payload, `len % PAGE == PAGE - LMDB_VALUE_OFFSET` bytes long.

    Raises:
        RecordError: `parse` would refuse the header.
        ValueError: scales or payload have another length than the header says.
    """
    fields = to_map(header)
    if len(scales) != header.scale_bytes:
        raise ValueError(f"the scales hold {len(scales)} bytes, expected {header.scale_bytes}")
    _check_scales(header, scales)
    if header.storage.codec == "raw" and payload_bytes != header.raw_bytes:
        raise ValueError(f"the payload holds {payload_bytes} bytes, expected {header.raw_bytes}")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise RecordError(
            f"the payload holds {payload_bytes} bytes; a record takes 4 GiB at most",
            remedy="take fewer frames",
        )
    packer = msgpack.Packer(unicode_errors="surrogatepass")
    head = bytearray(b"\x93" + packer.pack_map_header(len(fields) + 4))
    first = {"format": FORMAT, "prefix_bytes": 0xFFFFFFFF, "prefix_xxh3": _NO_CHECKSUM}
    for name, value in (first | fields).items():
        try:
            head += packer.pack(name) + packer.pack(value)
        except OverflowError:
            raise RecordError(f"a record's {name} = {value!r} has more than 64 bits") from None
    tail = (
        _BIN32 + struct.pack(">I", len(scales)) + scales + _BIN32 + struct.pack(">I", payload_bytes)
    )
    length = len(head) + len(b"\xa3pad\xc5..") + len(tail)
    pad = -(length + LMDB_VALUE_OFFSET) % PAGE
    head += b"\xa3pad\xc5" + struct.pack(">H", pad) + bytes(pad)
    if len(head) > MAX_HEADER_BYTES or len(head) + len(tail) > MAX_PREFIX_BYTES:
        raise RecordError(
            f"the header holds {len(head)} bytes and the scales {len(scales)}; at most {MAX_HEADER_BYTES} and "
            f"{MAX_PREFIX_BYTES} together fit",
            remedy="",
        )
    head += tail
    head[_LENGTH_AT : _LENGTH_AT + 4] = struct.pack(">I", len(head))
    head[_CHECKSUM_AT : _CHECKSUM_AT + 8] = xxhash.xxh3_64_digest(head)
    return bytes(head)


def pack_record(
    header: Header, scales: bytes, buffer: memoryview, payload: slice
) -> tuple[Header, memoryview]:
    """Return the header, completed with codec and checksum, and the record of the payload in `buffer[payload]`.

    Of all that a put takes, this needs no transaction: it may be done in another thread, ahead of time. The prefix is
    written before the payload, into the same buffer, so that LMDB's copy is the only one. Raises ValueError if too
    little room precedes the payload for the prefix, or if header and payload do not belong together.
    """
    storage = header.storage
    stored: bytes | bytearray | memoryview = buffer[payload]
    if storage.codec != "raw":
        storage, stored = compress(buffer[payload], storage)
    header = replace(header, storage=storage, payload_xxh3=xxhash.xxh3_64_intdigest(stored))
    prefix = pack_prefix(header, scales, len(stored))
    if storage.codec != "raw":
        return header, memoryview(prefix + stored)
    start = payload.start - len(prefix)
    if start < 0:
        raise ValueError(
            f"{payload.start} bytes precede the payload, the record's prefix needs {len(prefix)}"
        )
    buffer[start : payload.start] = prefix
    return header, buffer[start : payload.stop]


def parse(record: memoryview) -> Record:
    """Return the record in `record` without touching its payload.

    Every length and shape is checked before it is used.

    Raises:
        RecordError: it is truncated, damaged before the payload, of a newer format, or has an invalid value.
    """
    prefix_bytes = _checked_prefix(record)
    header, scales_at = _parse_header(record, prefix_bytes)
    scales = _bin32(record, scales_at, "scales")
    payload = _bin32(record, scales_at + 5 + len(scales), "payload")
    whole = scales_at + 5 + len(scales) + 5 == prefix_bytes
    whole = whole and prefix_bytes + len(payload) == len(record)
    _check_sizes(header, scales, payload, whole)
    _check_scales(header, scales)
    return Record(header, scales, payload)


def has_whole_prefix(record: memoryview) -> bool:
    """Return whether all before the payload is undamaged; `parse` may still refuse that of a newer release."""
    try:
        _checked_prefix(record)
    except RecordError:
        return False
    return True


def _parse_header(record: memoryview, prefix_bytes: int) -> tuple[Header, int]:
    """Return the checked header and the offset of its end."""
    unpacker = msgpack.Unpacker(unicode_errors="surrogatepass", max_array_len=64, max_map_len=64)
    unpacker.feed(record[: min(prefix_bytes, MAX_HEADER_BYTES)])
    try:
        unpacker.read_array_header()
        fields = unpacker.unpack()
        for name in ("format", "prefix_bytes", "prefix_xxh3", "pad"):
            del fields[name]
        return from_map(fields), unpacker.tell()
    except RecordError:
        raise
    except Exception as exc:  # msgpack raises a dozen unrelated types on damaged input
        raise RecordError(f"a record's header cannot be read ({exc!r})") from exc


def _checked_prefix(record: memoryview) -> int:
    if len(record) < _CHECKSUM_AT + 8:
        raise RecordError(f"a record of {len(record)} bytes is too short to be one")
    head = bytes(record[: _CHECKSUM_AT + 8])
    if head[:2] != _START or head[4:11] != b"\xa6format":
        raise RecordError(f"a record starts with {head[:12].hex()}, unlike those of featstore")
    if head[11] != FORMAT:
        older = head[11] < FORMAT
        raise RecordError(
            f"a record has format {head[11]}, this featstore reads format {FORMAT}",
            remedy="ingest its video again into another --cache-dir"
            if older
            else "update featstore",
        )
    prefix_bytes: int = struct.unpack_from(">I", head, _LENGTH_AT)[0]
    if not _CHECKSUM_AT + 8 <= prefix_bytes <= min(len(record), MAX_PREFIX_BYTES):
        raise RecordError(
            f"a record of {len(record)} bytes says its payload starts at {prefix_bytes}"
        )
    checksum = xxhash.xxh3_64(head[:_CHECKSUM_AT] + _NO_CHECKSUM)
    checksum.update(record[_CHECKSUM_AT + 8 : prefix_bytes])
    if checksum.digest() != head[_CHECKSUM_AT:]:
        raise RecordError(
            f"a record's header is damaged: its xxh3 is {checksum.hexdigest()}, it says {head[_CHECKSUM_AT:].hex()}"
        )
    return prefix_bytes


def _bin32(record: memoryview, start: int, what: str) -> memoryview:
    if len(record) < start + 5 or record[start : start + 1] != _BIN32:
        raise RecordError(f"a record has no {what} after its header")
    (length,) = struct.unpack_from(">I", record, start + 1)
    if start + 5 + length > len(record):
        raise RecordError(
            f"a record's {what} claims {length} bytes, {len(record) - start - 5} are there"
        )
    return record[start + 5 : start + 5 + length]


def _check_sizes(header: Header, scales: memoryview, payload: memoryview, whole: bool) -> None:
    if not whole:
        raise RecordError("the parts of a record do not end with its prefix and its value")
    if len(scales) != header.scale_bytes:
        raise RecordError(
            f"the scales of {header.video_id!r} hold {len(scales)} bytes, its shape needs {header.scale_bytes}"
        )
    if header.storage.codec == "raw" and len(payload) != header.raw_bytes:
        raise RecordError(
            f"the payload of {header.video_id!r} holds {len(payload)} bytes, its shape needs {header.raw_bytes}"
        )


def _check_scales(header: Header, scales: bytes | memoryview) -> None:
    values = np.frombuffer(scales, dtype="<f4")
    if not values.size:
        return
    parts, smallest, largest = header.storage.scale_shapes(*header.shape), 1.0, float(INT8_MAX)
    for rows, width in parts:
        part, values = values[: rows * width], values[rows * width :]
        smallest, largest = smallest * float(part.min()), largest * float(part.max())
    # Also if one is NaN. A value's scale, the product, is neither 0 nor does it make a value infinite.
    if not (smallest > 0 and (len(parts) < 2 or smallest >= MIN_SCALE) and largest <= MAX_FLOAT):
        raise RecordError(
            f"the scales of {header.video_id!r} hold values that are not above zero, or make values that are not finite"
        )
