"""Frames of several videos cut into the batches an encoder likes, and the features put together again.

A video's whole batches are its own: with as many frames a video as a batch has, every run encodes the same batches.
Only the rest of each shares batches with other videos.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    from featstore.spec import FeatureSpec


@dataclass(frozen=True)
class EncodeTask:
    """A video to encode: its number, the slot of its frames, how many there are, the slot of its record."""

    video: int
    frames: int
    count: int
    record: int


@dataclass(frozen=True)
class Chunk:
    """Frames `start` to `stop` of a video to encode."""

    task: EncodeTask
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Return the number of frames."""
        return self.stop - self.start

    @property
    def last(self) -> bool:
        """Return whether the video's frames end with it."""
        return self.stop == self.task.count


class Batches:
    """A queue of batches of `size` frames; the chunks of a video come out in the order of its frames."""

    def __init__(self, size: int) -> None:
        """Start with an empty queue."""
        self._size = size
        self._full: deque[list[Chunk]] = deque()
        self._open: list[Chunk] = []
        self._room = size

    def ready(self, *, short: bool) -> bool:
        """Return whether `take` has a batch to give."""
        return bool(self._full or (short and self._open))

    def add(self, task: EncodeTask) -> None:
        """Queue the frames of a video."""
        whole = task.count - task.count % self._size
        for start in range(0, whole, self._size):
            self._full.append([Chunk(task, start, start + self._size)])
        while whole < task.count:
            stop = min(task.count, whole + self._room)
            self._open.append(Chunk(task, whole, stop))
            self._room -= stop - whole
            whole = stop
            if not self._room:
                self._full.append(self._take_open())

    def take(self, *, short: bool) -> list[Chunk]:
        """Return the next batch, empty if none is full; short: rather one that is not full than an empty one."""
        if self._full:
            return self._full.popleft()
        return self._take_open() if short else []

    def _take_open(self) -> list[Chunk]:
        batch, self._open, self._room = self._open, [], self._size
        return batch


class VideoParts:
    """Collects the features of each video, batch by batch, until all of its frames are encoded."""

    def __init__(self, spec: FeatureSpec) -> None:
        """Start with no video."""
        self._spec = spec
        self._parts: dict[int, list[Any]] = {}

    def add(self, features: Any, batch: list[Chunk]) -> list[tuple[EncodeTask, list[Any]]]:
        """Return the videos that end in `batch`, each with its parts (n, T, D) in order.

        Args:
            features: of the batch, (B, T, D).
            batch: the chunks that were encoded.

        Raises:
            FeatstoreError: if the features have another shape than the encoder's identity says.
        """
        encoder, total = self._spec.encoder, sum(chunk.count for chunk in batch)
        expected = total, encoder.tokens_per_frame, encoder.hidden_dim
        if tuple(features.shape) != expected:
            raise FeatstoreError(
                f"the encoder {encoder.name!r} made features of shape {tuple(features.shape)} of {total} frames; "
                f"its identity makes it {expected}: correct one or the other"
            )
        at, ended = 0, []
        for chunk in batch:
            parts = self._parts.setdefault(chunk.task.video, [])
            parts.append(features[at : at + chunk.count])
            at += chunk.count
            if chunk.last:
                ended.append((chunk.task, self._parts.pop(chunk.task.video)))
        return ended
