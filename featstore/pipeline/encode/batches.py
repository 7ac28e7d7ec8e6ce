"""Frames of several videos cut into the batches an encoder likes.

A video's whole batches are its own: with as many frames a video as a batch has, every run encodes the same batches.
Only what is left of each shares batches with other videos.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Job:
    """A video to encode: what the parent calls it, the slot of its frames, how many, the slot of its record."""

    video: int
    frames: int
    count: int
    record: int
    parts: list[Any] = field(default_factory=list)  # its features so far, each (B, T, D)


@dataclass(frozen=True)
class Piece:
    """Frames `start` to `stop` of a job."""

    job: Job
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Return how many frames it has."""
        return self.stop - self.start

    @property
    def last(self) -> bool:
        """Return whether the job's frames end with it."""
        return self.stop == self.job.count


class Batches:
    """A queue of batches of `size` frames; each job's pieces come out in the order of its frames."""

    def __init__(self, size: int) -> None:
        """Begin with none."""
        self._size = size
        self._full: deque[list[Piece]] = deque()
        self._open: list[Piece] = []
        self._room = size

    def ready(self, *, short: bool) -> bool:
        """Return whether `take` has a batch to give."""
        return bool(self._full or (short and self._open))

    def add(self, job: Job) -> None:
        """Queue the frames of a job."""
        whole = job.count - job.count % self._size
        for start in range(0, whole, self._size):
            self._full.append([Piece(job, start, start + self._size)])
        while whole < job.count:
            stop = min(job.count, whole + self._room)
            self._open.append(Piece(job, whole, stop))
            self._room -= stop - whole
            whole = stop
            if not self._room:
                self._full.append(self._take_open())

    def take(self, *, short: bool) -> list[Piece]:
        """Return the next batch, nothing where none is full; short: rather one that is not full than nothing."""
        if self._full:
            return self._full.popleft()
        return self._take_open() if short else []

    def _take_open(self) -> list[Piece]:
        batch, self._open, self._room = self._open, [], self._size
        return batch
