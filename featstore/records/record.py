"""One record and its bytes.

A record is a msgpack array: a header map, the scale and the payload as bin32. Any msgpack reader can open it; ours
proves the prefix (all before the payload) by its checksum, parses the header and slices the payload, so a lookup
copies nothing. The prefix is padded so that the payload begins on a page of the memory map. docs/format.md has it all.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import xxhash

from featstore.errors import RecordError
from featstore.records.codecs import CODECS
from featstore.records.quantization import STORED_DTYPES, QuantError, dequantize, scale_shape
from featstore.spec import DTYPES, GRANULARITIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.spec import FeatureSpec

FORMAT = 1
PAGE = 4096
LMDB_VALUE_OFFSET = 16  # engine 0.9 puts a large value 16 bytes into its first page
MAX_PREFIX_BYTES = 64 << 20  # header, scale and padding: a token scale of 16 million tokens
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = (1 << 32) - 1 - MAX_PREFIX_BYTES  # LMDB takes no value of 4 GiB
MAX_ID_BYTES = 4096

_BIN32 = b"\xc6"
_START = b"\x93\xde"  # array of 3; map16, its count follows
_LENGTH_AT = 4 + 7 + 1 + 13 + 1  # count, "format", 1, "prefix_bytes", uint32 marker
_CHECKSUM_AT = _LENGTH_AT + 4 + 12 + 2  # "prefix_xxh3", bin8 marker and length
_NO_CHECKSUM = bytes(8)


@dataclass(frozen=True)
class SourceFingerprint:
    """Which bytes a video's features were made from: size, modification time, xxh3-128 of the content."""

    size: int
    mtime_ns: int
    xxh3_128: str

    def to_list(self) -> list[Any]:
        """Return plain values for headers and catalog rows."""
        return [self.size, self.mtime_ns, self.xxh3_128]


@dataclass(frozen=True)
class Header:
    """What a record says about its features.

    frame_indices: little-endian uint32, one a frame, packed; `frames` reads them.
    shape: (num_tokens, hidden_dim). dtype: what the encoder computed in, before quantization.
    spec: the feature set's digest. payload_xxh3: xxh3-64 of the payload as stored.
    total_frames, fps: of the clip, as its decoder tells them. created: seconds since 1970.
    """

    video_id: str
    video_path: str
    dataset: str
    nframe: int
    frame_indices: bytes
    total_frames: int
    fps: float
    shape: tuple[int, int]
    tokens_per_frame: int
    quantization: str
    scale: str
    dtype: str
    model_signature: str
    spec: str
    source: SourceFingerprint
    error: QuantError
    created: float
    codec: str = "raw"
    payload_xxh3: int = 0

    @property
    def frames(self) -> list[int]:
        """Return the indices of the frames that were encoded."""
        return [i for (i,) in struct.iter_unpack("<I", self.frame_indices)]

    @property
    def raw_bytes(self) -> int:
        """Return the bytes of the payload before compression."""
        return math.prod(self.shape) * np.dtype(STORED_DTYPES[self.quantization]).itemsize

    @property
    def scale_bytes(self) -> int:
        """Return the bytes of the float32 scale."""
        return 4 * math.prod(scale_shape(self.scale, *self.shape))

    def misfit(self, spec: FeatureSpec, dataset: str) -> str:
        """Return what keeps a record with this header out of the set of `spec` in `dataset`; nothing if it belongs.

        A digest is only what the header says: the encoder, the sampling and the storage behind it must be seen too.
        """
        encoder = spec.encoder
        facts = (
            ("dataset", self.dataset, dataset),
            ("set", self.spec, spec.digest),
            ("nframe", self.nframe, spec.sampling.nframe),
            ("dtype", self.dtype, encoder.dtype),
            ("quantization", self.quantization, spec.quantization),
            ("scale", self.scale, spec.scale),
            ("tokens_per_frame", self.tokens_per_frame, encoder.tokens_per_frame),
            ("hidden_dim", self.shape[1], encoder.hidden_dim),
        )
        return ", ".join(
            f"{name} {here!r}, not {there!r}" for name, here, there in facts if here != there
        )


@dataclass(frozen=True)
class Record:
    """A parsed record: header, and views of scale and stored payload that keep their memory alive."""

    header: Header
    scale: memoryview
    payload: memoryview

    def verify(self) -> None:
        """Raise RecordError unless the stored payload has the checksum its header names."""
        found = xxhash.xxh3_64_intdigest(self.payload)
        if found != self.header.payload_xxh3:
            raise RecordError(
                f"the payload of video {self.header.video_id!r} is damaged: its xxh3 is {found:016x}, the header says "
                f"{self.header.payload_xxh3:016x}; run featstore check --repair, then ingest it again"
            )


@dataclass(frozen=True)
class Features:
    """One video's stored features.

    header: what is known of them. owner: the object whose life is that of the map they lie in, if they lie in one.
    The arrays are read-only and stay valid as long as they are referenced, whatever happens to the store they came
    from.
    """

    header: Header
    _record: Record = field(repr=False)
    owner: object = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (num_tokens, hidden_dim)."""
        return self.header.shape

    @cached_property
    def data(self) -> NDArray[Any]:
        """The stored values, (num_tokens, hidden_dim): int8, float16, float32, or bf16's bits as uint16.

        A view on the memory map for the codec raw; decompressed at the first call for others.
        """
        payload = CODECS[self.header.codec].decompress(self._record.payload, self.header.raw_bytes)
        values = np.frombuffer(payload, dtype=STORED_DTYPES[self.header.quantization])
        return values.reshape(self.header.shape)

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """The float32 scale: (1, hidden_dim), (num_tokens, 1) or (1, 1); (0, 0) where floats are stored."""
        values = np.frombuffer(bytes(self._record.scale), dtype="<f4")
        return values.reshape(scale_shape(self.header.scale, *self.header.shape))

    def dequantize(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return the features as float32 (num_tokens, hidden_dim), in `out` where given."""
        return dequantize(self.data, self.scale, self.header.quantization, out)


def pack_prefix(header: Header, scale: bytes, payload_bytes: int) -> bytes:
    """Return all of a record before its payload, `len % PAGE == PAGE - LMDB_VALUE_OFFSET` bytes long.

    Raises RecordError where `parse` would refuse the header, ValueError where scale or payload have another length
    than it says.
    """
    _check(header)
    if len(scale) != header.scale_bytes:
        raise ValueError(f"the scale holds {len(scale)} bytes, expected {header.scale_bytes}")
    if header.codec == "raw" and payload_bytes != header.raw_bytes:
        raise ValueError(f"the payload holds {payload_bytes} bytes, expected {header.raw_bytes}")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise RecordError(
            f"the payload holds {payload_bytes} bytes; a record takes 4 GiB at most: take fewer frames"
        )
    packer = msgpack.Packer(unicode_errors="surrogatepass")
    fields = _to_map(header)
    head = bytearray(b"\x93" + packer.pack_map_header(len(fields) + 4))
    for key, value in {
        "format": FORMAT,
        "prefix_bytes": 0xFFFFFFFF,
        "prefix_xxh3": _NO_CHECKSUM,
    }.items():
        head += packer.pack(key) + packer.pack(value)
    for key, value in fields.items():
        head += packer.pack(key) + packer.pack(value)
    tail = (
        _BIN32 + struct.pack(">I", len(scale)) + scale + _BIN32 + struct.pack(">I", payload_bytes)
    )
    length = len(head) + len(b"\xa3pad\xc5..") + len(tail)
    pad = -(length + LMDB_VALUE_OFFSET) % PAGE
    head += b"\xa3pad\xc5" + struct.pack(">H", pad) + bytes(pad)
    if len(head) > MAX_HEADER_BYTES or len(head) + len(tail) > MAX_PREFIX_BYTES:
        raise RecordError(
            f"the header holds {len(head)} bytes and the scale {len(scale)}; at most {MAX_HEADER_BYTES} and "
            f"{MAX_PREFIX_BYTES} together fit"
        )
    head += tail
    head[_LENGTH_AT : _LENGTH_AT + 4] = struct.pack(">I", len(head))
    head[_CHECKSUM_AT : _CHECKSUM_AT + 8] = xxhash.xxh3_64_digest(head)
    return bytes(head)


def pack(header: Header, scale: bytes, payload: bytes) -> bytes:
    """Return a whole record; `payload` is stored as it is, `header` says with what codec it was made."""
    return pack_prefix(header, scale, len(payload)) + payload


def parse(record: memoryview) -> Record:
    """Return the record in `record` without touching its payload.

    Raises RecordError where it is truncated, damaged before the payload, of a newer format, or says something that
    cannot be: every length and shape is checked before it is believed.
    """
    prefix_bytes = _checked_prefix(record)
    header, scale_at = _parse_header(record, prefix_bytes)
    scale = _bin32(record, scale_at, "scale")
    payload = _bin32(record, scale_at + 5 + len(scale), "payload")
    whole = scale_at + 5 + len(scale) + 5 == prefix_bytes
    whole = whole and prefix_bytes + len(payload) == len(record)
    _check_sizes(header, scale, payload, whole)
    _check_scale(header, scale)
    return Record(header, scale, payload)


def has_whole_prefix(record: memoryview) -> bool:
    """Return whether all before the payload is as it was packed; `parse` may still refuse a newer release's."""
    try:
        _checked_prefix(record)
    except RecordError:
        return False
    return True


def _parse_header(record: memoryview, prefix_bytes: int) -> tuple[Header, int]:
    """Return the header, checked, and where it ends."""
    unpacker = msgpack.Unpacker(
        strict_map_key=True,
        unicode_errors="surrogatepass",
        max_buffer_size=MAX_PREFIX_BYTES,
        max_str_len=MAX_HEADER_BYTES,
        max_bin_len=MAX_HEADER_BYTES,
        max_array_len=64,
        max_map_len=64,
    )
    unpacker.feed(record[: min(prefix_bytes, MAX_HEADER_BYTES)])
    try:
        unpacker.read_array_header()
        return _from_map(unpacker.unpack()), unpacker.tell()
    except RecordError:
        raise
    except Exception as exc:  # msgpack raises a dozen unrelated types on damaged input
        raise RecordError(
            f"a record's header cannot be read ({exc!r}); ingest the video again"
        ) from exc


def _checked_prefix(record: memoryview) -> int:
    if len(record) < _CHECKSUM_AT + 8:
        raise RecordError(
            f"a record of {len(record)} bytes is too short to be one; ingest the video again"
        )
    head = bytes(record[: _CHECKSUM_AT + 8])
    if head[:2] != _START or head[4:11] != b"\xa6format":
        raise RecordError(
            f"a record begins with {head[:12].hex()}, not as featstore's do; ingest the video again"
        )
    if head[11] != FORMAT:
        raise RecordError(
            f"a record has format {head[11]}, this featstore reads format {FORMAT}; update featstore"
        )
    prefix_bytes: int = struct.unpack_from(">I", head, _LENGTH_AT)[0]
    if not _CHECKSUM_AT + 8 <= prefix_bytes <= min(len(record), MAX_PREFIX_BYTES):
        raise RecordError(
            f"a record of {len(record)} bytes says its payload begins at {prefix_bytes}; ingest the video again"
        )
    checksum = xxhash.xxh3_64(head[:_CHECKSUM_AT] + _NO_CHECKSUM)
    checksum.update(record[_CHECKSUM_AT + 8 : prefix_bytes])
    if checksum.digest() != head[_CHECKSUM_AT:]:
        raise RecordError(
            f"a record's header is damaged: its xxh3 is {checksum.hexdigest()}, it says {head[_CHECKSUM_AT:].hex()}; "
            "ingest the video again"
        )
    return prefix_bytes


def _bin32(record: memoryview, start: int, what: str) -> memoryview:
    if len(record) < start + 5 or record[start : start + 1] != _BIN32:
        raise RecordError(f"a record has no {what} where its header ends; ingest the video again")
    (length,) = struct.unpack_from(">I", record, start + 1)
    if start + 5 + length > len(record):
        raise RecordError(
            f"a record's {what} claims {length} bytes, {len(record) - start - 5} are there; ingest the video again"
        )
    return record[start + 5 : start + 5 + length]


def _check_sizes(header: Header, scale: memoryview, payload: memoryview, whole: bool) -> None:
    if not whole:
        raise RecordError(
            "a record's parts do not end where its prefix and its value end; ingest the video again"
        )
    if len(scale) != header.scale_bytes:
        raise RecordError(
            f"the scale of {header.video_id!r} holds {len(scale)} bytes, its shape needs {header.scale_bytes}"
        )
    if header.codec == "raw" and len(payload) != header.raw_bytes:
        raise RecordError(
            f"the payload of {header.video_id!r} holds {len(payload)} bytes, its shape needs {header.raw_bytes}"
        )


def _check_scale(header: Header, scale: memoryview) -> None:
    values = np.frombuffer(scale, dtype="<f4")
    if not (np.isfinite(values) & (values > 0)).all():
        raise RecordError(f"the scale of {header.video_id!r} holds values that are not above zero")


def _to_map(header: Header) -> dict[str, Any]:
    row = dict(header.__dict__)
    row["shape"] = list(header.shape)
    row["source"] = header.source.to_list()
    row["error"] = header.error.to_dict()
    return row


def _from_map(fields: Any) -> Header:
    if not isinstance(fields, dict):
        raise RecordError(f"a record's header is a {type(fields).__name__}, not a map")
    for name in ("format", "prefix_bytes", "prefix_xxh3", "pad"):
        fields.pop(name)
    header = Header(
        **{
            **fields,
            "shape": tuple(fields["shape"]),
            "source": SourceFingerprint(*fields["source"]),
            "error": QuantError(**fields["error"]),
        }
    )
    _check(header)
    return header


def _check(header: Header) -> None:
    values = {**vars(header), **vars(header.source), **vars(header.error)}
    for name, kind in _KINDS.items():
        if not _is(values[name], kind):
            raise RecordError(
                f"a record's header says {name} = {values[name]!r}, which is no {kind.__name__}; ingest the video again"
            )
    tokens, dim = header.shape if len(header.shape) == 2 else (0, 0)
    frames = len(header.frame_indices) // 4
    facts = {
        "quantization": header.quantization in STORED_DTYPES,
        "scale": header.scale in GRANULARITIES
        and (header.scale == "none") == (header.quantization != "int8"),
        "dtype": header.dtype in DTYPES,
        "codec": header.codec in CODECS,
        "shape": type(tokens) is type(dim) is int and 0 < tokens < 1 << 31 and 0 < dim < 1 << 24,
        "frame_indices": len(header.frame_indices) % 4 == 0 and 0 < frames <= header.nframe,
        "total_frames": header.total_frames > 0,
    }
    facts["tokens_per_frame"] = frames * header.tokens_per_frame == tokens
    if all(facts.values()):
        facts["shape"] = header.raw_bytes <= MAX_PAYLOAD_BYTES
    for name, holds in facts.items():
        if not holds:
            raise RecordError(
                f"a record's header says {name} = {getattr(header, name)!r}, which cannot be; ingest the video again"
            )


def _is(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and -(1 << 63) <= value < 1 << 64  # what msgpack can say
    return isinstance(value, (int, float) if kind is float else kind) and type(value) is not bool


_KINDS: dict[str, type] = {
    "video_id": str,
    "video_path": str,
    "dataset": str,
    "nframe": int,
    "frame_indices": bytes,
    "total_frames": int,
    "fps": float,
    "shape": tuple,
    "tokens_per_frame": int,
    "quantization": str,
    "scale": str,
    "dtype": str,
    "model_signature": str,
    "spec": str,
    "created": float,
    "codec": str,
    "payload_xxh3": int,
    "size": int,
    "mtime_ns": int,
    "xxh3_128": str,
    "cosine": float,
    "relative_l2": float,
    "max_abs": float,
}
