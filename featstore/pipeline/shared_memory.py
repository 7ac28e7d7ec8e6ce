"""The memory that decoders, encoders and the writer share: a fixed number of slots, whichever waits for which."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featstore.pipeline.make_record import fallback_of, record_room
from featstore.preprocessing import frame_bytes
from featstore.records.budget import ErrorBudget
from featstore.system.processes import Slots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.geometry import Geometry
    from featstore.records.storage import Storage
    from featstore.spec import FeatureSpec

WRITER_SLOTS = 2  # one is written while the next is packed


@dataclass(frozen=True)
class Memory:
    """Slots for the frames and for the records of videos of one spec, stored in one way or, by a budget, losslessly."""

    spec: FeatureSpec
    storage: Storage
    frame_slots: Slots
    record_slots: Slots
    budget: ErrorBudget

    @classmethod
    def reserve(
        cls,
        spec: FeatureSpec,
        storage: Storage,
        *,
        workers: int,
        encoders: int,
        batch_frames: int,
        budget: ErrorBudget | None = None,
    ) -> Memory:
        """Reserve what keeps them all busy; pages are taken when first written.

        Frames: a video for each decode worker; for each encoder those of a batch that waits, and one that is read.
        Records: for each encoder those of two batches being encoded, and one that waits; and those at the writer.

        Raises:
            RecordError: a record cannot hold the largest features of a video.
        """
        geometry, nframe = spec.encoder.geometry, spec.sampling.nframe
        # Videos that fill a batch.
        a_batch = math.ceil(batch_units(geometry, batch_frames) / geometry.units(nframe))
        budget = budget or ErrorBudget()
        start, payload = record_room(spec, storage)
        fallback = fallback_of(spec, storage, budget)
        if fallback is not None:
            payload = max(payload, record_room(spec, fallback)[1])
        frames = Slots.create(
            workers + encoders * (a_batch + 1), nframe * frame_bytes(spec.preprocessing)
        )
        records = Slots.create(WRITER_SLOTS + encoders * (2 * a_batch + 1), start + payload)
        return cls(spec, storage, frames, records, budget)

    @property
    def fallback(self) -> Storage | None:
        """Return how a video is stored that misses the budget; None if it is not stored in another way."""
        return fallback_of(self.spec, self.storage, self.budget)

    @property
    def size(self) -> int:
        """Return the bytes of all slots."""
        return len(self.frame_slots.memory) + len(self.record_slots.memory)

    def frames(self, slot: int, start: int, stop: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return frames `start` to `stop` of a slot, (n, height, width, 3) uint8; `size` is (height, width)."""
        return frames_in(self.frame_slots.slot(slot), start, stop, size)

    def payload(self, slot: int, rows: int, storage: Storage) -> memoryview:
        """Return the memory in a record's slot for the payload of so many rows that are stored as `storage`."""
        start, _ = record_room(self.spec, self.storage)
        size = storage.payload_bytes((rows, self.spec.encoder.geometry.row_width))
        return self.record_slots.slot(slot)[start : start + size]

    def close(self) -> None:
        """Close the descriptors; the memory is released with its last view."""
        self.frame_slots.close()
        self.record_slots.close()


def frames_in(
    memory: memoryview, start: int, stop: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return frames `start` to `stop` of those in `memory`, (n, height, width, 3); `size` is (height, width)."""
    a_frame = math.prod(size) * 3
    part = memory[start * a_frame : stop * a_frame]
    return np.frombuffer(part, dtype=np.uint8).reshape(stop - start, *size, 3)


def batch_units(geometry: Geometry, batch_frames: int) -> int:
    """Return how many units an encoder that likes `batch_frames` frames at once is given."""
    return max(1, batch_frames // geometry.frames_per_unit)
