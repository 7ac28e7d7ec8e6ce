"""The engine of a GPU: batches and records are queued on its streams, and asked after when they may be done."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, QuantizeError
from featstore.pipeline.encode.encode_loop import hand_out, stored
from featstore.records.quantization import in_words

if TYPE_CHECKING:
    from featstore.encoders.base import GpuEncoder
    from featstore.pipeline.encode.batches import Job, Piece
    from featstore.pipeline.encode.encode_loop import Answer
    from featstore.pipeline.shared_memory import Memory


class CudaEngine:
    """Encodes on the encoder's GPU; see `encoding.Engine` and featstore.pipeline.encode.cuda_streams."""

    def __init__(self, encoder: GpuEncoder, memory: Memory, batch_frames: int) -> None:
        """Page-lock the shared memory, and take the GPU's for the frames of the batches."""
        from featstore.pipeline.encode.cuda_streams import DEPTH, EncoderStreams
        from featstore.torch.upload.pinned import PageLock

        self.depth = DEPTH
        self._memory = memory
        self._device = encoder.device
        shape = (batch_frames, *memory.spec.encoder.preprocessing.frame_shape)
        self._streams = EncoderStreams(encoder.encode_on_device, encoder.device, shape)
        # In the order of their streams, each of which does its work in that order.
        self._reading: deque[tuple[Any, list[int]]] = deque()  # event, slots it frees
        self._encoding: deque[Any] = deque()  # spans
        self._storing: deque[tuple[Job, Any]] = deque()
        self._locks = [
            PageLock(slots.memory, encoder.device)
            for slots in (memory.frame_slots, memory.record_slots)
        ]

    @property
    def in_flight(self) -> int:
        """Return the batches that are not encoded yet."""
        return len(self._encoding)

    @property
    def owes(self) -> bool:
        """Return whether something is on its way."""
        return bool(self._reading or self._encoding or self._storing)

    def submit(self, batch: list[Piece]) -> None:
        """Queue the batch, and the quantization of the videos that end in it."""
        import torch

        try:
            self._submit(batch)
        except torch.cuda.OutOfMemoryError as exc:
            raise FeatstoreError(
                f"{self._device} ran out of memory quantizing ({exc}); use a smaller --batch-frames, or another GPU "
                "with --device"
            ) from exc

    def collect(self) -> list[Answer]:
        """Return what was read, encoded or stored since the last call."""
        answers: list[Answer] = []
        while self._reading and self._reading[0][0].query():
            answers.append({"read": self._reading.popleft()[1], "busy": 0.0})
        while self._encoding and self._encoding[0].done:
            answers.append({"busy": self._encoding.popleft().seconds})
        while self._storing and self._storing[0][1].arrived.query():
            answers.append(self._answer(*self._storing.popleft()))
        return answers

    def close(self) -> None:
        """Wait for what is on its way, and let the memory go."""
        self._streams.finish()
        for lock in self._locks:
            lock.close()

    def _submit(self, batch: list[Piece]) -> None:
        run = self._streams.encode([self._memory.frames(piece) for piece in batch])
        self._encoding.append(run.work)
        ended = [piece.job for piece in batch if piece.last]
        self._reading.append((run.read, [job.frames for job in ended]))
        hand_out(run.features, batch, self._memory.spec)
        spec = self._memory.spec
        for job in ended:
            payload, shape = self._memory.payload(job), self._memory.shape(job)
            parts, job.parts = job.parts, []
            self._storing.append(
                (
                    job,
                    self._streams.store(parts, payload, shape, spec.quantization, spec.scale),
                )
            )

    def _answer(self, job: Job, done: Any) -> Answer:
        try:
            scale, error = done.result()
        except QuantizeError as exc:
            reason = in_words(exc, self._memory.spec.encoder.dtype)
            return {"refused": job.video, "reason": reason, "busy": done.work.seconds}
        return stored(job, scale, error, done.work.seconds)
