"""Toy encoders of every geometry, whose features are whole numbers: the same bits anywhere, in any batch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from featstore.decoding.video_file import decode
from featstore.geometry import Geometry
from featstore.preprocessing import (
    ExactResize,
    PixelBudget,
    Preprocessing,
    ShortestEdgeCrop,
    frame_bytes,
)
from featstore.spec import EncoderIdentity

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from featstore.sampling import Sampling

LARGEST = 125  # whole numbers up to it are the same in fp16, bf16 and fp32
CELL = 14  # pixels of a patch of those whose grid depends on the video


class CountingEncoder:
    """Adds the bytes of each patch of a unit, those of its later frames several times, and folds the sums.

    Args:
        geometry: the rows it makes.
        preprocessing: what happens to a frame before.
        batch_frames: frames it likes at once.
        grid: (height, width) of the patches of a unit; None if they are of `CELL` pixels.
    """

    def __init__(
        self,
        geometry: Geometry,
        preprocessing: Preprocessing,
        *,
        batch_frames: int = 8,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self._patches = grid
        self.preprocessing = preprocessing
        self.batch_frames = batch_frames
        self.origin = "counting"
        self.names = {"counts": "bytes"}
        self.shapes: list[tuple[int, ...]] = []  # of the frames of each batch
        weights = hashlib.sha256(b"none").hexdigest()
        settings = {"largest": LARGEST, "cell": CELL}
        self.identity = EncoderIdentity("counting", weights, "fp32", geometry, settings)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // CELL, width // CELL

    def extra_rows(self) -> NDArray[np.float32]:
        geometry = self.identity.geometry
        count = geometry.extra_rows * geometry.row_width
        return _fold(np.arange(count) * 3).reshape(-1, geometry.row_width)

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.shapes.append(frames.shape)
        if frames.ndim == 4:
            frames = frames[:, None]
        units, _, height, width, _ = frames.shape  # (B, F, H, W, 3)
        tall, wide = self._patches or (height // CELL, width // CELL)
        patches = frames.reshape(units, -1, tall, height // tall, wide, width // wide, 3)
        sums = patches.astype(np.int64).sum(axis=(3, 5)).reshape(units, -1, tall * wide, 3)
        weights = np.arange(1, sums.shape[1] + 1)
        totals = (sums * weights[:, None, None]).sum(axis=1)  # (B, F, T, 3) -> (B, T, 3)
        place = np.arange(self.identity.geometry.row_width)
        return _fold(totals[..., place % 3] * (place // 3 + 1) + place)  # (B, T, W)


def _fold(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    return (numbers % (2 * LARGEST + 1) - LARGEST).astype(np.float32)


SQUARE = ShortestEdgeCrop(shortest_edge=28, crop_height=28, crop_width=28)
SMALL = ExactResize(height=12, width=16)
BUDGET = PixelBudget(multiple=CELL, min_pixels=CELL**2, max_pixels=12 * CELL**2)


def newline_row() -> CountingEncoder:
    """As LLaVA-OneVision: a row after those of the frames, once a video."""
    geometry = Geometry(tokens_per_unit=4, hidden_dim=8, extra_rows=1, grid=(2, 2))
    return CountingEncoder(geometry, SQUARE, grid=(2, 2))


def grid_by_video() -> CountingEncoder:
    """As Qwen2-VL: two frames a unit, and as many tokens as the video's shape has patches."""
    geometry = Geometry(
        tokens_per_unit=12, hidden_dim=8, frames_per_unit=2, stride=2, by_video=True
    )
    return CountingEncoder(geometry, BUDGET)


def clip_windows() -> CountingEncoder:
    """As clip encoders: windows of 16 frames, of which each has half of the one before."""
    geometry = Geometry(tokens_per_unit=6, hidden_dim=8, frames_per_unit=16, stride=8, grid=(2, 3))
    return CountingEncoder(geometry, ExactResize(height=12, width=18), batch_frames=40, grid=(2, 3))


def planes() -> CountingEncoder:
    """As Qwen3-VL: a row of three planes."""
    geometry = Geometry(tokens_per_unit=4, hidden_dim=5, planes=3)
    return CountingEncoder(geometry, SMALL, grid=(2, 2))


def pooled() -> CountingEncoder:
    """One vector a frame."""
    return CountingEncoder(Geometry(tokens_per_unit=1, hidden_dim=12), SMALL, grid=(1, 1))


def smallest() -> CountingEncoder:
    """One number a frame of one pixel."""
    return CountingEncoder(
        Geometry(tokens_per_unit=1, hidden_dim=1), ExactResize(height=1, width=1), grid=(1, 1)
    )


GEOMETRIES = {
    kind.__name__: kind
    for kind in (newline_row, grid_by_video, clip_windows, planes, pooled, smallest)
}


def features_of(path: Path, encoder: CountingEncoder, sampling: Sampling) -> NDArray[np.float32]:
    """The features of a file, (rows, row_width): decoded here, and encoded unit by unit."""
    geometry, pre = encoder.identity.geometry, encoder.preprocessing
    out = np.zeros(sampling.nframe * frame_bytes(pre), np.uint8)
    clip = decode(str(path), sampling, pre, out)
    count, (height, width) = len(clip.indices), clip.size
    frames = out[: count * height * width * 3].reshape(count, height, width, 3)
    rows = []
    for unit in range(geometry.units(count)):
        places = [unit * geometry.stride + i for i in range(geometry.frames_per_unit)]
        window = np.stack([frames[min(place, count - 1)] for place in places])[None]
        rows.append(encoder.encode(window[:, 0] if len(places) == 1 else window)[0])
    if geometry.extra_rows:
        rows.append(encoder.extra_rows())
    return np.concatenate(rows)
