"""The encoder's side of an ingest: told of frames in shared memory, it answers when their payloads are there too.

The same loop runs in a thread of the parent or in a process of its own. It keeps a batch encoder busy: `HostEncoder`,
which works when it is told to, or `CudaEncoder`, which queues work on a GPU and is asked for the results later.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from featstore.errors import QuantizeError
from featstore.pipeline.encode.base import BatchProgress, EncodeRefusal, EncodeResult
from featstore.pipeline.encode.batches import Batches, EncodeTask, VideoParts, units_of
from featstore.pipeline.make_record import keep_within
from featstore.pipeline.shared_memory import batch_units
from featstore.records.quantization import in_words
from featstore.system.processes import receive, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from featstore.encoders.base import Encoder, GpuEncoder
    from featstore.pipeline.encode.base import BatchEncoder, EncoderAnswer
    from featstore.pipeline.encode.batches import Chunk, VideoRows
    from featstore.pipeline.shared_memory import Memory

_POLL_SECONDS = 0.001  # while the GPU works: a batch takes a hundred times as long


def serve(connection: Connection, encoder: Encoder, memory: Memory, *, batch_frames: int) -> None:
    """Encode what `connection` asks for until its other end is closed."""
    load = getattr(encoder, "load", None)
    if load is not None:
        load()
    units = batch_units(encoder.identity.geometry, batch_frames)
    worker = make_batch_encoder(encoder, memory, units)
    try:
        _Session(connection, worker, Batches(units)).run()
    except _Closed:
        pass  # the parent wants no more
    finally:
        worker.close()


def make_batch_encoder(encoder: Encoder, memory: Memory, units: int) -> BatchEncoder:
    """Return what suits the encoder: a queue on its GPU if it has one, else the host."""
    device = getattr(encoder, "device", None)
    if getattr(device, "type", "") == "cuda" and hasattr(encoder, "encode_on_device"):
        from featstore.pipeline.encode.cuda_encoder import CudaEncoder

        return CudaEncoder(cast("GpuEncoder", encoder), memory, units)
    return HostEncoder(encoder, memory)


class _Closed(Exception):
    """The parent closed its end."""


@contextmanager
def _to_parent() -> Iterator[None]:
    """Tell the end of the parent from that of any connection the encoder may have."""
    try:
        yield
    except (EOFError, ConnectionResetError, BrokenPipeError) as exc:
        raise _Closed from exc


class _Session:
    """The loop between the parent and the batch encoder."""

    def __init__(self, connection: Connection, encoder: BatchEncoder, batches: Batches) -> None:
        self._connection = connection
        self._encoder = encoder
        self._batches = batches

    def run(self) -> None:
        while True:
            with _to_parent():
                self._hear()
            if self._can_submit:
                self._encoder.submit(self._batches.take(short=self._idle))
            answers = self._encoder.collect()
            with _to_parent():
                for answer in answers:
                    send(self._connection, answer)

    @property
    def _idle(self) -> bool:
        """Return whether no batch is being encoded: only then is one that is not full worth it."""
        return not self._encoder.in_flight

    @property
    def _can_submit(self) -> bool:
        encoder = self._encoder
        return encoder.in_flight < encoder.depth and self._batches.ready(short=self._idle)

    def _hear(self) -> None:
        """Receive all tasks there are; wait for one as long as there is nothing to do."""
        timeout: float | None = None
        if self._encoder.owes:
            timeout = _POLL_SECONDS
        if self._can_submit:
            timeout = 0.0
        while self._connection.poll(timeout):
            self._batches.add(receive(self._connection, EncodeTask))
            timeout = 0.0


class HostEncoder:
    """Encodes at once, and quantizes on whatever device the encoder left the features."""

    depth = 1
    in_flight = 0
    owes = False

    def __init__(self, encoder: Encoder, memory: Memory) -> None:
        """Start with nothing encoded."""
        self._encoder = encoder
        self._memory = memory
        self._parts = VideoParts(encoder)
        self._answers: list[EncoderAnswer] = []

    def submit(self, batch: list[Chunk]) -> None:
        """Encode the batch, and quantize the videos that end in it."""
        started = time.perf_counter()
        frames = [units_of(self._memory, chunk) for chunk in batch]
        features = self._encoder.encode(frames[0] if len(frames) == 1 else np.concatenate(frames))
        ended = self._parts.add(features, batch)
        read = tuple(video.task.frames for video in ended)
        self._answers.append(BatchProgress(read, time.perf_counter() - started))
        self._answers += [self._store(video) for video in ended]

    def collect(self) -> list[EncoderAnswer]:
        """Return the answers to the last batch."""
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _store(self, video: VideoRows) -> EncoderAnswer:
        started, task, memory = time.perf_counter(), video.task, self._memory
        place = partial(memory.payload, task.record, video.count)
        try:
            kept = keep_within(memory.budget, place, video.parts, memory.storage, memory.fallback)
        except QuantizeError as exc:
            reason = in_words(exc, memory.spec.encoder.dtype, memory.spec.encoder.family)
            return EncodeRefusal(task.video, reason, time.perf_counter() - started)
        busy = time.perf_counter() - started
        return EncodeResult(task.video, video.grid, kept.storage, kept.scales, kept.error, busy)
