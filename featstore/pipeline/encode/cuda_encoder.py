"""Encodes on a GPU: batches and records are queued on its streams, and looked at again when they may be done."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, QuantizeError
from featstore.pipeline.encode.base import BatchProgress, EncodeRefusal, EncodeResult
from featstore.pipeline.encode.batches import VideoParts, units_of
from featstore.pipeline.make_record import pack_scales
from featstore.preprocessing import frame_bytes
from featstore.records.quantization import QuantError, in_words

if TYPE_CHECKING:
    from featstore.encoders.base import GpuEncoder
    from featstore.pipeline.encode.base import EncoderAnswer
    from featstore.pipeline.encode.batches import Chunk, VideoRows
    from featstore.pipeline.shared_memory import Memory
    from featstore.records.storage import Storage


class CudaEncoder:
    """Encodes on the encoder's GPU; see `base.BatchEncoder` and featstore.pipeline.encode.cuda_streams."""

    def __init__(self, encoder: GpuEncoder, memory: Memory, units: int) -> None:
        """Page-lock the shared memory, and reserve the GPU's for the frames of batches of `units` units."""
        from featstore.pipeline.encode.cuda_streams import DEPTH, EncoderStreams
        from featstore.torch.upload.pinned import PageLock

        self.depth = DEPTH
        self._memory = memory
        self._parts = VideoParts(encoder)
        self._device = encoder.device
        frames = units * memory.spec.encoder.geometry.frames_per_unit
        batch_bytes = frames * frame_bytes(memory.spec.preprocessing)
        self._streams = EncoderStreams(encoder.encode_on_device, encoder.device, batch_bytes)
        # In the order of their streams, each of which does its work in that order.
        self._reading: deque[tuple[Any, tuple[int, ...]]] = deque()  # event, slots it frees
        self._encoding: deque[Any] = deque()  # spans
        self._storing: deque[tuple[VideoRows, Any]] = deque()
        self._locks = [
            PageLock(slots.memory, encoder.device)
            for slots in (memory.frame_slots, memory.record_slots)
        ]

    @property
    def in_flight(self) -> int:
        """Return the number of batches that are not encoded yet."""
        return len(self._encoding)

    @property
    def owes(self) -> bool:
        """Return whether something is on its way."""
        return bool(self._reading or self._encoding or self._storing)

    def submit(self, batch: list[Chunk]) -> None:
        """Queue the batch, and the quantization of the videos that end in it."""
        import torch

        try:
            self._submit(batch)
        except torch.cuda.OutOfMemoryError as exc:
            raise FeatstoreError(
                f"{self._device} ran out of memory quantizing ({exc}); use a smaller --batch-frames, or another GPU "
                "with --device"
            ) from exc

    def collect(self) -> list[EncoderAnswer]:
        """Return what was read, encoded or stored since the last call."""
        answers: list[EncoderAnswer] = []
        while self._reading and self._reading[0][0].query():
            answers.append(BatchProgress(self._reading.popleft()[1], 0.0))
        while self._encoding and self._encoding[0].done:
            answers.append(BatchProgress((), self._encoding.popleft().seconds))
        while self._storing and self._storing[0][1].arrived.query():
            answers += self._answers(*self._storing.popleft())
        return answers

    def close(self) -> None:
        """Wait for what is on its way, and release the memory."""
        self._streams.finish()
        for lock in self._locks:
            lock.close()

    def _submit(self, batch: list[Chunk]) -> None:
        memory = self._memory
        run = self._streams.encode([units_of(memory, chunk) for chunk in batch])
        self._encoding.append(run.work)
        ended = self._parts.add(run.features, batch)
        self._reading.append((run.read, tuple(video.task.frames for video in ended)))
        for video in ended:
            self._store(video, memory.storage)

    def _store(self, video: VideoRows, storage: Storage) -> None:
        payload = self._memory.payload(video.task.record, video.count, storage)
        self._storing.append((video, self._streams.store(video.parts, payload, storage)))

    def _answers(self, video: VideoRows, done: Any) -> list[EncoderAnswer]:
        """Return the answer of a video whose record arrived; none yet if it is to be stored again, losslessly."""
        number, memory = video.task.video, self._memory
        outcome: QuantError | QuantizeError
        try:
            scales, outcome = done.result()
        except QuantizeError as exc:
            scales, outcome = [], exc
        try:
            chosen = memory.budget.choose(done.storage, memory.fallback, outcome)
        except QuantizeError as exc:
            encoder = memory.spec.encoder
            reason = in_words(exc, encoder.dtype, encoder.family)
            return [EncodeRefusal(number, reason, done.work.seconds)]
        if chosen != done.storage:
            self._store(video, chosen)
            return []
        assert isinstance(outcome, QuantError)
        packed = pack_scales(scales)
        return [EncodeResult(number, video.grid, chosen, packed, outcome, done.work.seconds)]
