"""nvCOMP's entropy coder in blocks: what a GPU decompresses faster than the bus brings it, and no CPU at all.

Both ways go through a GPU's memory. `featstore.torch.to_tensor` does not come here: it uploads what is stored and
decompresses it where the tensor shall be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.codecs import nvcomp
from featstore.codecs.blocks import BLOCK_BYTES, Layout, raw_blocks
from featstore.codecs.cuda import Gpu
from featstore.errors import MissingExtra, RecordError, StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A block of one byte repeated takes some hundred bytes, its model and the states of its lanes.
LAYOUT = Layout("ans", alignment=16, max_ratio=1024)


class Ans:
    """Each block a chunk of nvCOMP's batched ANS, bytes for symbols."""

    layout = LAYOUT
    fragile = True

    def compress(self, payload: memoryview) -> bytearray:
        """Return the table and the blocks, made on a GPU.

        Raises MissingExtra without nvCOMP, StoreError without a GPU.
        """
        if not len(payload):
            return bytearray()
        try:
            return LAYOUT.pack(_compress(np.frombuffer(payload, np.uint8)))
        except StoreError as exc:
            raise StoreError(
                f"ans compresses on a CUDA GPU, and here {exc}; ingest with --codec zstd, which needs none"
            ) from exc

    def decompress(self, stored: memoryview, raw_bytes: int) -> memoryview:
        """Return the payload, by way of a GPU; MissingExtra without nvCOMP, RecordError without a GPU."""
        spans = LAYOUT.spans(stored, raw_bytes)
        try:
            return _decompress(np.frombuffer(stored, np.uint8), spans, raw_bytes)
        except MissingExtra:
            raise
        except StoreError as exc:
            raise RecordError(
                f"a record compressed with ans is read on a CUDA GPU, and here {exc}; read it where there is one, or "
                "ingest the videos again with --codec zstd"
            ) from exc


def _compress(payload: NDArray[Any]) -> list[memoryview]:
    lengths = np.array([len(block) for block in raw_blocks(payload.data)], np.uint64)
    starts = np.arange(len(lengths), dtype=np.uint64) * np.uint64(BLOCK_BYTES)
    temp_bytes, largest = nvcomp.compress_temp_bytes(len(lengths), BLOCK_BYTES)
    room = largest + -largest % LAYOUT.alignment
    with Gpu() as gpu:
        source, target = gpu.put(payload), gpu.take(len(lengths) * room)
        places = np.arange(len(lengths), dtype=np.uint64) * np.uint64(room)
        found, statuses = gpu.take(8 * len(lengths)), gpu.take(4 * len(lengths))
        nvcomp.compress_ans(
            sources=gpu.put(starts + np.uint64(source)),
            lengths=gpu.put(lengths),
            targets=gpu.put(places + np.uint64(target)),
            found=found,
            statuses=statuses,
            count=len(lengths),
            block_bytes=BLOCK_BYTES,
            temp=gpu.take(temp_bytes),
            temp_bytes=temp_bytes,
        )
        refused = np.flatnonzero(gpu.fetch(statuses, len(lengths), "<i4"))
        if len(refused):
            raise StoreError(f"nvCOMP could not compress {len(refused)} of {len(lengths)} blocks")
        sizes = gpu.fetch(found, len(lengths), "<u8").tolist()
        made = gpu.fetch(target, len(lengths) * room, "u1").data
    return [made[i * room : i * room + size] for i, size in enumerate(sizes)]


def _decompress(stored: NDArray[Any], spans: list[tuple[int, int]], raw_bytes: int) -> memoryview:
    if not spans:
        return memoryview(b"")
    starts, lengths = np.array(spans, np.uint64).T
    places = np.arange(len(spans), dtype=np.uint64) * np.uint64(BLOCK_BYTES)
    rooms = np.minimum(np.uint64(raw_bytes) - places, np.uint64(BLOCK_BYTES))
    temp_bytes = nvcomp.decompress_temp_bytes("ans", len(spans), BLOCK_BYTES, 0)
    with Gpu() as gpu:
        source, target = gpu.put(stored), gpu.take(raw_bytes)
        found, statuses = gpu.take(8 * len(spans)), gpu.take(4 * len(spans))
        nvcomp.decompress(
            "ans",
            sources=gpu.put(starts + np.uint64(source)),
            lengths=gpu.put(lengths.copy()),
            targets=gpu.put(places + np.uint64(target)),
            rooms=gpu.put(rooms),
            found=found,
            statuses=statuses,
            count=len(spans),
            temp=gpu.take(temp_bytes),
            temp_bytes=temp_bytes,
            stream=0,
        )
        damaged = gpu.fetch(statuses, len(spans), "<i4") != 0
        damaged |= gpu.fetch(found, len(spans), "<u8") != rooms
        if damaged.any():
            raise RecordError(
                f"{damaged.sum()} of {len(spans)} ans blocks cannot be decompressed; ingest the video again"
            )
        return gpu.fetch(target, raw_bytes, "u1").data.toreadonly()
