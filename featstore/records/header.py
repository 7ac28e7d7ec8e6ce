"""What a record says about its features, checked when it is packed and when it is read."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import RecordError
from featstore.fields import build, to_plain
from featstore.geometry import MAX_FRAMES, RowLayout
from featstore.records.quantization import QuantError
from featstore.records.storage import MAX_PAYLOAD_BYTES, Storage
from featstore.spec import DTYPES

if TYPE_CHECKING:
    from featstore.spec import FeatureSpec


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
        spec: digest of the feature set.
        nframe: number of frames asked for.
        frame_indices: indices of the frames taken, packed as little-endian uint32; `frames` unpacks them.
        total_frames: number of frames of the clip, as its decoder reports it.
        fps: frames per second of the clip, likewise.
        decoder: what decoded it, as `pyav`.
        doubt: why the frames may not be those asked for; empty if they are.
        shape: (rows, width).
        layout: what the rows are.
        dtype: what the encoder computed in, one of featstore.spec.DTYPES.
        storage: how the values are stored.
        source: the file that was encoded.
        error: how far stored values are from the encoder's.
        created: seconds since 1970.
        payload_xxh3: xxh3-64 of the payload as stored.
    """

    video_id: str
    video_path: str
    dataset: str
    spec: str
    nframe: int
    frame_indices: bytes
    total_frames: int
    fps: float
    decoder: str
    doubt: str
    shape: tuple[int, int]
    layout: RowLayout
    dtype: str
    storage: Storage
    source: SourceFingerprint
    error: QuantError
    created: float
    payload_xxh3: int = 0

    @property
    def frames(self) -> list[int]:
        """Return the indices of the encoded frames."""
        return [i for (i,) in struct.iter_unpack("<I", self.frame_indices)]

    @property
    def raw_bytes(self) -> int:
        """Return the bytes of the payload before compression."""
        return self.storage.payload_bytes(self.shape)

    @property
    def scale_bytes(self) -> int:
        """Return the bytes of the float32 scales."""
        return self.storage.scale_bytes(self.shape)

    def misfit(self, spec: FeatureSpec, dataset: str) -> str:
        """Return why a record with this header does not belong to `spec` in `dataset`; nothing if it does.

        The digest is only what the header claims, so what follows from the encoder and the sampling is compared too.
        """
        geometry, layout = spec.encoder.geometry, self.layout
        facts = [
            ("dataset", self.dataset, dataset),
            ("set", self.spec, spec.digest),
            ("nframe", self.nframe, spec.sampling.nframe),
            ("dtype", self.dtype, spec.encoder.dtype),
            ("width", self.shape[1], geometry.row_width),
        ]
        try:
            cells = layout.grid and layout.grid[1:]
            wanted = geometry.layout(len(self.frame_indices) // 4, cells)
            facts += [(name, here, getattr(wanted, name)) for name, here in vars(layout).items()]
        except ValueError as exc:
            return str(exc)
        return ", ".join(
            f"{name} {here!r}, not {there!r}" for name, here, there in facts if here != there
        )


def to_map(header: Header) -> dict[str, Any]:
    """Return the header as a record stores it; RecordError if `from_map` would refuse it."""
    fields: dict[str, Any] = to_plain(header)
    from_map(fields)
    return fields


def from_map(fields: dict[str, Any]) -> Header:
    """Return the header that a record stores as `fields`; RecordError if any of them is invalid."""
    try:
        header = build(Header, fields)
    except (KeyError, TypeError, ValueError) as exc:
        raise RecordError(f"a record's header cannot be read: {exc}") from exc
    _check(header)
    return header


def _check(header: Header) -> None:
    rows, width = header.shape
    layout, frames = header.layout, len(header.frame_indices) // 4
    facts = {
        "dtype": header.dtype in DTYPES,
        "shape": 0 < rows < 1 << 31
        and 0 < width < 1 << 24
        and header.raw_bytes <= MAX_PAYLOAD_BYTES,
        "nframe": 0 < header.nframe <= MAX_FRAMES,
        "frame_indices": len(header.frame_indices) % 4 == 0 and 0 < frames <= header.nframe,
        "total_frames": header.total_frames > 0,
        "error": all(map(math.isfinite, vars(header.error).values())),
        # Each unit begins with a frame that was taken, and the rows are those of the units.
        "layout": (layout.units - 1) * layout.stride < frames
        and layout.rows == rows
        and width % layout.planes == 0,
    }
    for name, holds in facts.items():
        if not holds:
            raise RecordError(
                f"a record's header says {name} = {getattr(header, name)!r}, which is invalid"
            )
