"""What a record says about its features, checked when it is packed and when it is read."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import RecordError
from featstore.fields import build, to_plain
from featstore.records.codecs import CODECS
from featstore.records.quantization import QuantError
from featstore.records.sizes import MAX_PAYLOAD_BYTES, payload_bytes, scale_bytes
from featstore.spec import DTYPES, STORAGES, STORED_DTYPES

if TYPE_CHECKING:
    from featstore.spec import FeatureSpec

_SOURCE = ("size", "mtime_ns", "xxh3_128")  # a record has their values only


@dataclass(frozen=True)
class SourceFingerprint:
    """Identifies the file that a video's features were made from.

    Args:
        size: bytes.
        mtime_ns: modification time, nanoseconds since 1970.
        xxh3_128: checksum of the content, 32 hex digits.
    """

    size: int
    mtime_ns: int
    xxh3_128: str


@dataclass(frozen=True)
class Header:
    """What a record says about its features.

    Args:
        video_id: the video's id in the dataset.
        video_path: path of the file when it was ingested.
        dataset: name of the dataset.
        nframe: number of frames asked for.
        frame_indices: indices of the frames taken, packed as little-endian uint32; `frames` unpacks them.
        total_frames: number of frames of the clip, as its decoder reports it.
        fps: frames per second of the clip, likewise.
        shape: (num_tokens, hidden_dim).
        tokens_per_frame: number of tokens of one frame.
        quantization: how values are stored, one of featstore.spec.STORED_DTYPES.
        scale: granularity of the int8 scale, one of featstore.spec.GRANULARITIES.
        dtype: what the encoder computed in, one of featstore.spec.DTYPES.
        model_signature: as EncoderIdentity.model_signature.
        spec: digest of the feature set.
        source: the file that was encoded.
        error: how far stored values are from the encoder's.
        created: seconds since 1970.
        codec: how the payload is compressed, one of featstore.records.codecs.CODECS.
        payload_xxh3: xxh3-64 of the payload as stored.
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
        """Return the indices of the encoded frames."""
        return [i for (i,) in struct.iter_unpack("<I", self.frame_indices)]

    @property
    def raw_bytes(self) -> int:
        """Return the bytes of the payload before compression."""
        return payload_bytes(self.quantization, self.shape)

    @property
    def scale_bytes(self) -> int:
        """Return the bytes of the float32 scale."""
        return scale_bytes(self.scale, self.shape)

    def misfit(self, spec: FeatureSpec, dataset: str) -> str:
        """Return why a record with this header does not belong to `spec` in `dataset`; nothing if it does.

        The digest is only what the header claims, so encoder, sampling and storage are compared too.
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


def to_map(header: Header) -> dict[str, Any]:
    """Return the header as a record stores it; RecordError if `from_map` would refuse it."""
    fields: dict[str, Any] = to_plain(header)
    fields["source"] = list(fields["source"].values())
    from_map(fields)
    return fields


def from_map(fields: dict[str, Any]) -> Header:
    """Return the header that a record stores as `fields`; RecordError if any of them is invalid."""
    try:
        source = dict(zip(_SOURCE, fields["source"], strict=True))
        header = build(Header, {**fields, "source": source})
    except (KeyError, TypeError, ValueError) as exc:
        raise RecordError(f"a record's header cannot be read: {exc}") from exc
    _check(header)
    return header


def _check(header: Header) -> None:
    tokens, dim = header.shape
    frames = len(header.frame_indices) // 4
    facts = {
        "quantization": header.quantization in STORED_DTYPES,
        "scale": (header.quantization, header.scale) in STORAGES,
        "dtype": header.dtype in DTYPES,
        "codec": header.codec in CODECS,
        "shape": 0 < tokens < 1 << 31 and 0 < dim < 1 << 24,
        "frame_indices": len(header.frame_indices) % 4 == 0 and 0 < frames <= header.nframe,
        "total_frames": header.total_frames > 0,
        "tokens_per_frame": frames * header.tokens_per_frame == tokens,
    }
    if all(facts.values()):
        facts["shape"] = header.raw_bytes <= MAX_PAYLOAD_BYTES
    for name, holds in facts.items():
        if not holds:
            raise RecordError(
                f"a record's header says {name} = {getattr(header, name)!r}, which is invalid"
            )
