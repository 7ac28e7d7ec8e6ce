"""The memory that decoders, encoders and the writer share: a fixed number of slots, whichever waits for which."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featstore.records.sizes import payload_bytes, record_room
from featstore.system.processes import Slots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.spec import FeatureSpec

WRITER_SLOTS = 2  # one is written while the next is packed


@dataclass(frozen=True)
class Memory:
    """Slots for the frames and for the records of videos of one spec."""

    spec: FeatureSpec
    frame_slots: Slots
    record_slots: Slots

    @classmethod
    def reserve(
        cls, spec: FeatureSpec, *, workers: int, encoders: int, batch_frames: int
    ) -> Memory:
        """Reserve what keeps them all busy; pages are taken when first written.

        Frames: a video for each decode worker; for each encoder those of a batch that waits, and one that is read.
        Records: for each encoder those of two batches being encoded, and one that waits; and those at the writer.
        """
        nframe = spec.sampling.nframe
        a_batch = math.ceil(batch_frames / nframe)  # videos that fill one
        frame_bytes = math.prod(spec.encoder.preprocessing.frame_shape)
        frames = Slots.create(workers + encoders * (a_batch + 1), nframe * frame_bytes)
        records = Slots.create(WRITER_SLOTS + encoders * (2 * a_batch + 1), sum(record_room(spec)))
        return cls(spec, frames, records)

    @property
    def size(self) -> int:
        """Return the bytes of all slots."""
        return len(self.frame_slots.memory) + len(self.record_slots.memory)

    def frames(self, slot: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Return frames `start` to `stop` (n, H, W, 3) uint8 of a slot."""
        shape = self.spec.encoder.preprocessing.frame_shape
        size = math.prod(shape)
        memory = self.frame_slots.slot(slot)[start * size : stop * size]
        return np.frombuffer(memory, dtype=np.uint8).reshape(stop - start, *shape)

    def shape(self, count: int) -> tuple[int, int]:
        """Return (num_tokens, hidden_dim) of the features of `count` frames."""
        return count * self.spec.encoder.tokens_per_frame, self.spec.encoder.hidden_dim

    def payload(self, slot: int, count: int) -> memoryview:
        """Return the memory for the payload of `count` frames in a record's slot."""
        start, _ = record_room(self.spec)
        size = payload_bytes(self.spec.quantization, self.shape(count))
        return self.record_slots.slot(slot)[start : start + size]

    def close(self) -> None:
        """Close the descriptors; the memory is released with its last view."""
        self.frame_slots.close()
        self.record_slots.close()
