"""Features of no dataset as the record that an ingest would store of them, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from featstore.geometry import RowLayout
from featstore.records.features import Features
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.record import pack_record, parse
from featstore.torch import quantize, to_tensor

if TYPE_CHECKING:
    from featstore.records.storage import Storage

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def make_record(video_id: str, features: torch.Tensor, storage: Storage) -> memoryview:
    """Return the record of features: payload and scales bit for bit those of an ingest.

    Args:
        video_id: their id.
        features: (rows, width) of fp16, bf16 or fp32, on any device.
        storage: how they are stored.

    Raises:
        QuantizeError: a value is not finite, or too large to be stored so.
        RecordError: a record cannot hold them.
    """
    stored, scales = quantize(features, storage)
    header = _header(video_id, features, storage)
    room, size = storage.record_room(header.shape, header.nframe)
    buffer = np.empty(room + size, np.uint8).data
    place = torch.frombuffer(buffer, dtype=stored.dtype, offset=room)
    place.reshape(stored.shape).copy_(stored)
    packed = b"".join(scale.cpu().numpy().tobytes() for scale in scales)
    return pack_record(header, packed, buffer, slice(room, len(buffer)))[1]


def read_record(record: memoryview, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the features in a record as a tensor, as a lookup would."""
    stored = parse(record)
    return to_tensor(Features(stored.header, stored), device=device, dtype=dtype)


def _header(video_id: str, features: torch.Tensor, storage: Storage) -> Header:
    rows, width = features.shape
    return Header(
        video_id=video_id,
        video_path="",
        dataset="",
        spec="",
        nframe=1,
        frame_indices=bytes(4),
        total_frames=1,
        fps=0.0,
        decoder="",
        doubt="",
        shape=(rows, width),
        layout=RowLayout(units=1, tokens_per_unit=rows),
        dtype=_DTYPES[features.dtype],
        storage=storage,
        source=SourceFingerprint(0, 0, ""),
        error=QuantError(1.0, 0.0, 0.0, 0.0, 0.0),  # measured later, on what is read back
        created=0.0,
    )
