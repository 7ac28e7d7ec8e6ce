"""Units of several videos put into the batches an encoder likes, and the features put together again.

A video's whole batches are its own: with as many units a video as a batch has, every run encodes the same batches.
Only the rest of each shares batches with other videos, those whose frames have the same size.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.encoders.base import Encoder
    from featstore.geometry import Geometry
    from featstore.pipeline.shared_memory import Memory


_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class EncodeTask:
    """A video to encode.

    Args:
        video: its number.
        frames: the slot of its frames.
        count: how many there are.
        units: how many units they make.
        size: (height, width) of each.
        record: the slot of its record.
    """

    video: int
    frames: int
    count: int
    units: int
    size: tuple[int, int]
    record: int


@dataclass(frozen=True)
class Chunk:
    """Units `start` to `stop` of a video to encode."""

    task: EncodeTask
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Return the number of units."""
        return self.stop - self.start

    @property
    def last(self) -> bool:
        """Return whether the video's units end with it."""
        return self.stop == self.task.units


class Batches:
    """A queue of batches of `size` units; the chunks of a video come out in the order of its units."""

    def __init__(self, size: int) -> None:
        """Start with an empty queue."""
        self._size = size
        self._full: deque[list[Chunk]] = deque()
        self._open: dict[tuple[int, int], list[Chunk]] = {}  # by the size of frames, oldest first

    def ready(self, *, short: bool) -> bool:
        """Return whether `take` has a batch to give."""
        return bool(self._full or (short and self._open))

    def add(self, task: EncodeTask) -> None:
        """Queue the units of a video."""
        whole = task.units - task.units % self._size
        for start in range(0, whole, self._size):
            self._full.append([Chunk(task, start, start + self._size)])
        while whole < task.units:
            batch = self._open.setdefault(task.size, [])
            room = self._size - sum(chunk.count for chunk in batch)
            stop = min(task.units, whole + room)
            batch.append(Chunk(task, whole, stop))
            if stop - whole == room:
                self._full.append(self._open.pop(task.size))
            whole = stop

    def take(self, *, short: bool) -> list[Chunk]:
        """Return the next batch, empty if none is full; short: rather one that is not full than an empty one."""
        if self._full:
            return self._full.popleft()
        return self._open.pop(next(iter(self._open))) if short and self._open else []


def cut_units(
    frames: NDArray[np.uint8], geometry: Geometry, start: int, stop: int
) -> NDArray[np.uint8]:
    """Return units `start` to `stop` of a video's frames as an encoder takes them.

    Args:
        frames: all frames of the video, (F, H, W, 3).
        geometry: what a unit is.
        start: the first unit.
        stop: the one after the last.

    Returns:
        A view (n, H, W, 3) if a frame is a unit, else a copy (n, frames_per_unit, H, W, 3); frames after the last one
        repeat it.
    """
    if geometry.frames_per_unit == 1:
        return frames[start:stop]
    first = np.arange(start, stop)[:, None] * geometry.stride
    places = np.minimum(first + np.arange(geometry.frames_per_unit), len(frames) - 1)
    units: NDArray[np.uint8] = frames[places]
    return units


def units_of(memory: Memory, chunk: Chunk) -> NDArray[np.uint8]:
    """Return the frames of a chunk's units, which are in a slot of `memory`, as `cut_units` does."""
    task = chunk.task
    frames = memory.frames(task.frames, 0, task.count, task.size)
    return cut_units(frames, memory.spec.encoder.geometry, chunk.start, chunk.stop)


@dataclass(frozen=True)
class VideoRows:
    """A video whose units are all encoded.

    Args:
        task: the video.
        parts: its features in order, each (n, row_width).
        grid: (height, width) of a unit's tokens, if they differ by video.
    """

    task: EncodeTask
    parts: list[Any]
    grid: tuple[int, int] | None

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return sum(len(part) for part in self.parts)


class VideoParts:
    """Collects the features of each video, batch by batch, until all of its units are encoded."""

    def __init__(self, encoder: Encoder) -> None:
        """Start with no video; an encoder that must be loaded is."""
        self._encoder = encoder
        self._geometry = encoder.identity.geometry
        self._parts: dict[int, list[Any]] = {}
        self._extra = self._extra_rows()

    def add(self, features: Any, batch: list[Chunk]) -> list[VideoRows]:
        """Return the videos that end in `batch`.

        Args:
            features: of the batch, (B, tokens, row_width).
            batch: the chunks that were encoded.

        Raises:
            FeatstoreError: the features have another shape or dtype than the encoder's identity says.
        """
        grid, total = self._grid(batch[0].task.size), sum(chunk.count for chunk in batch)
        tokens = grid[0] * grid[1] if grid else self._geometry.tokens_per_unit
        self._check("features", features, (total, tokens, self._geometry.row_width), total)
        if any(
            isinstance(rows, np.ndarray) != isinstance(features, np.ndarray) for rows in self._extra
        ):
            raise FeatstoreError(
                f"the encoder {self._encoder.identity.family!r} made features of type {type(features).__name__} and "
                f"extra rows of type {type(self._extra[0]).__name__}: return both as arrays, or both as tensors"
            )
        at, ended = 0, []
        for chunk in batch:
            parts = self._parts.setdefault(chunk.task.video, [])
            part = features[at : at + chunk.count]
            part = part.reshape(-1, part.shape[-1])  # (n, T, W) -> (n * T, W)
            # What is kept must not change if the encoder returns the same array each time; a tensor is a new one.
            parts.append(part.copy() if isinstance(part, np.ndarray) and not chunk.last else part)
            at += chunk.count
            if chunk.last:
                done = [*self._parts.pop(chunk.task.video), *self._extra]
                ended.append(VideoRows(chunk.task, done, grid))
        return ended

    def _grid(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return (height, width) of the tokens of a unit of frames of `size`, if they differ by video."""
        if not self._geometry.by_video:
            return None
        height, width = map(index, cast("Any", self._encoder).grid(*size))
        if min(height, width) < 1 or height * width > self._geometry.tokens_per_unit:
            raise FeatstoreError(
                f"the encoder {self._encoder.identity.family!r} makes a grid of {height} x {width} tokens of frames of "
                f"{size[0]} x {size[1]} pixels; its identity makes it at most {self._geometry.tokens_per_unit} tokens: "
                "correct one or the other"
            )
        return height, width

    def _extra_rows(self) -> list[Any]:
        count = self._geometry.extra_rows
        if not count:
            return []
        extra = cast("Any", self._encoder).extra_rows()
        self._check("extra rows", extra, (count, self._geometry.row_width), 0)
        return [extra]

    def _check(self, what: str, found: Any, expected: tuple[int, ...], units: int) -> None:
        """Raise FeatstoreError unless `found` has the shape `expected` and the dtype of the identity."""
        identity = self._encoder.identity
        dtype, wanted = getattr(found, "dtype", type(found).__name__), _DTYPES[identity.dtype]
        dtype = str(dtype).removeprefix("torch.")
        if dtype != wanted:
            raise FeatstoreError(
                f"the encoder {identity.family!r} made {what} of dtype {dtype}; its identity says {identity.dtype}, "
                f"{wanted}: correct one or the other"
            )
        if tuple(found.shape) != expected:
            of = f" of {units} units" if units else ""
            raise FeatstoreError(
                f"the encoder {identity.family!r} made {what} of shape {tuple(found.shape)}{of}; its identity makes it "
                f"{expected}: correct one or the other"
            )
