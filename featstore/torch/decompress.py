"""Compressed payloads on a GPU to the values they hold, by nvCOMP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from featstore.codecs import CODECS, nvcomp
from featstore.codecs.blocks import BLOCK_BYTES
from featstore.errors import RecordError

if TYPE_CHECKING:
    from featstore.record import Features


def refusal(codec: str) -> str:
    """Return why a GPU does not decompress `codec`; nothing where it does."""
    return "it has no blocks" if CODECS[codec].layout is None else nvcomp.refusal()


def check_blocks(features: Features) -> None:
    """Raise RecordError where the payload cannot hold what its header says."""
    layout = CODECS[features.header.codec].layout
    if layout is not None:
        layout.table(features.payload, features.header.raw_bytes)


def decompress_into(out: torch.Tensor, stored: torch.Tensor, features: Features) -> None:
    """Fill `out`, uint8 of one axis, with what `stored` holds, the payload of `features` in blocks; both on one GPU.

    Works on the current stream, and waits for it. Raises RecordError where a block does not hold what it must.
    """
    codec = features.header.codec
    layout = CODECS[codec].layout
    if layout is None:
        raise ValueError(f"{codec} has no blocks")
    starts, lengths = layout.table(features.payload, features.header.raw_bytes)
    places = np.arange(len(starts), dtype=np.int64) * BLOCK_BYTES
    rooms = np.minimum(len(out) - places, BLOCK_BYTES)
    host = np.stack([starts + stored.data_ptr(), lengths, places + out.data_ptr(), rooms])
    tables = torch.from_numpy(host).to(out.device, non_blocking=True)
    found = torch.empty(len(starts), dtype=torch.int64, device=out.device)
    statuses = torch.empty(len(starts), dtype=torch.int32, device=out.device)
    with torch.cuda.device(out.device):
        stream = torch.cuda.current_stream().cuda_stream
        temp_bytes = nvcomp.decompress_temp_bytes(codec, len(starts), BLOCK_BYTES, stream)
        temp = torch.empty(temp_bytes, dtype=torch.uint8, device=out.device)
        nvcomp.decompress(
            codec,
            sources=tables[0].data_ptr(),
            lengths=tables[1].data_ptr(),
            targets=tables[2].data_ptr(),
            rooms=tables[3].data_ptr(),
            found=found.data_ptr(),
            statuses=statuses.data_ptr(),
            count=len(starts),
            temp=temp.data_ptr(),
            temp_bytes=temp_bytes,
            stream=stream,
        )
    damaged = int(((statuses != 0) | (found != tables[3])).sum())
    if damaged:
        raise RecordError(
            f"{damaged} of {len(starts)} {codec} blocks of video {features.header.video_id!r} cannot be decompressed "
            "on the GPU; run featstore check --repair, then ingest it again"
        )
