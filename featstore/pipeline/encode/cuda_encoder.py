"""Encodes on a GPU: batches and records are queued on its streams, and looked at again when they may be done."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, QuantizeError
from featstore.pipeline.encode.base import BatchProgress, EncodeRefusal, EncodeResult
from featstore.pipeline.encode.batches import VideoParts
from featstore.pipeline.make_record import pack_scale
from featstore.records.quantization import in_words

if TYPE_CHECKING:
    from featstore.encoders.base import GpuEncoder
    from featstore.pipeline.encode.base import EncoderAnswer
    from featstore.pipeline.encode.batches import Chunk, EncodeTask
    from featstore.pipeline.shared_memory import Memory


class CudaEncoder:
    """Encodes on the encoder's GPU; see `base.BatchEncoder` and featstore.pipeline.encode.cuda_streams."""

    def __init__(self, encoder: GpuEncoder, memory: Memory, batch_frames: int) -> None:
        """Page-lock the shared memory, and reserve the GPU's for the frames of the batches."""
        from featstore.pipeline.encode.cuda_streams import DEPTH, EncoderStreams
        from featstore.torch.upload.pinned import PageLock

        self.depth = DEPTH
        self._memory = memory
        self._parts = VideoParts(memory.spec)
        self._device = encoder.device
        shape = (batch_frames, *memory.spec.encoder.preprocessing.frame_shape)
        self._streams = EncoderStreams(encoder.encode_on_device, encoder.device, shape)
        # In the order of their streams, each of which does its work in that order.
        self._reading: deque[tuple[Any, tuple[int, ...]]] = deque()  # event, slots it frees
        self._encoding: deque[Any] = deque()  # spans
        self._storing: deque[tuple[EncodeTask, Any]] = deque()
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
            answers.append(self._answer(*self._storing.popleft()))
        return answers

    def close(self) -> None:
        """Wait for what is on its way, and release the memory."""
        self._streams.finish()
        for lock in self._locks:
            lock.close()

    def _submit(self, batch: list[Chunk]) -> None:
        memory, spec = self._memory, self._memory.spec
        run = self._streams.encode([memory.frames(c.task.frames, c.start, c.stop) for c in batch])
        self._encoding.append(run.work)
        ended = self._parts.add(run.features, batch)
        self._reading.append((run.read, tuple(task.frames for task, _ in ended)))
        for task, parts in ended:
            payload, shape = memory.payload(task.record, task.count), memory.shape(task.count)
            stored = self._streams.store(parts, payload, shape, spec.quantization, spec.scale)
            self._storing.append((task, stored))

    def _answer(self, task: EncodeTask, done: Any) -> EncoderAnswer:
        try:
            scale, error = done.result()
        except QuantizeError as exc:
            reason = in_words(exc, self._memory.spec.encoder.dtype)
            return EncodeRefusal(task.video, reason, done.work.seconds)
        return EncodeResult(task.video, pack_scale(scale), error, done.work.seconds)
