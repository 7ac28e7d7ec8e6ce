"""The encoder's side of an ingest: it hears of frames in shared memory, and answers when their payloads lie there too.

The same loop runs in a thread of the parent or in a process of its own. It keeps an engine fed: `HostEngine`, which
works when it is told to, or `CudaEngine`, which queues work on a GPU and is asked what became of it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from featstore.errors import FeatstoreError, QuantizeError
from featstore.pipeline.encode.batches import Batches, Job
from featstore.pipeline.make_record import quantize_into
from featstore.records.quantization import in_words
from featstore.system.processes import receive, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from featstore.encoders.base import Encoder, GpuEncoder
    from featstore.pipeline.encode.batches import Piece
    from featstore.pipeline.shared_memory import Memory
    from featstore.records.quantization import QuantError
    from featstore.spec import FeatureSpec

_POLL_SECONDS = 0.001  # while the GPU works: a batch takes a hundred times as long

Answer = dict[str, Any]


class Engine(Protocol):
    """Encodes batches and quantizes videos; `depth` batches at work keep it busy."""

    depth: int

    @property
    def in_flight(self) -> int:
        """Return the batches that are not encoded yet."""
        ...

    @property
    def owes(self) -> bool:
        """Return whether answers are to come: also a record on its way from the GPU is one."""
        ...

    def submit(self, batch: list[Piece]) -> None:
        """Take a batch to work."""
        ...

    def collect(self) -> list[Answer]:
        """Return what came of the batches since the last call, without waiting."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def serve(connection: Connection, encoder: Encoder, memory: Memory, *, batch_frames: int) -> None:
    """Encode what `connection` asks for until its other end is closed."""
    load = getattr(encoder, "load", None)
    if load is not None:
        load()
    engine = make_engine(encoder, memory, batch_frames)
    try:
        _Session(connection, engine, Batches(batch_frames)).run()
    except _Closed:
        pass  # the parent wants no more
    finally:
        engine.close()


def make_engine(encoder: Encoder, memory: Memory, batch_frames: int) -> Engine:
    """Return what suits the encoder: a GPU's queue where it has one, else the host."""
    device = getattr(encoder, "device", None)
    if getattr(device, "type", "") == "cuda" and hasattr(encoder, "encode_on_device"):
        from featstore.pipeline.encode.cuda_encoder import CudaEngine

        return CudaEngine(cast("GpuEncoder", encoder), memory, batch_frames)
    return HostEngine(encoder, memory)


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
    """The loop between the parent and the engine."""

    def __init__(self, connection: Connection, engine: Engine, batches: Batches) -> None:
        self._connection = connection
        self._engine = engine
        self._batches = batches

    def run(self) -> None:
        while True:
            with _to_parent():
                self._hear()
            if self._can_submit:
                self._engine.submit(self._batches.take(short=self._idle))
            answers = self._engine.collect()
            with _to_parent():
                for answer in answers:
                    send(self._connection, answer)

    @property
    def _idle(self) -> bool:
        """Return whether no batch is at work: only then is one that is not full worth its while."""
        return not self._engine.in_flight

    @property
    def _can_submit(self) -> bool:
        engine = self._engine
        return engine.in_flight < engine.depth and self._batches.ready(short=self._idle)

    def _hear(self) -> None:
        """Take in all requests there are; wait for one as long as there is nothing to do."""
        timeout: float | None = None
        if self._engine.owes:
            timeout = _POLL_SECONDS
        if self._can_submit:
            timeout = 0.0
        while self._connection.poll(timeout):
            self._batches.add(Job(**receive(self._connection)))
            timeout = 0.0


class HostEngine:
    """Encodes at once, and quantizes on whatever device the encoder left the features."""

    depth = 1
    in_flight = 0
    owes = False

    def __init__(self, encoder: Encoder, memory: Memory) -> None:
        """Begin with nothing done."""
        self._encoder = encoder
        self._memory = memory
        self._answers: list[Answer] = []

    def submit(self, batch: list[Piece]) -> None:
        """Encode the batch, and quantize the videos that end in it."""
        begun = time.perf_counter()
        frames = [self._memory.frames(piece) for piece in batch]
        features = self._encoder.encode(frames[0] if len(frames) == 1 else np.concatenate(frames))
        hand_out(features, batch, self._memory.spec)
        ended = [piece.job for piece in batch if piece.last]
        self._answers.append(
            {"read": [job.frames for job in ended], "busy": time.perf_counter() - begun}
        )
        self._answers += [self._store(job) for job in ended]

    def collect(self) -> list[Answer]:
        """Return what came of the last batch."""
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _store(self, job: Job) -> Answer:
        begun = time.perf_counter()
        spec = self._memory.spec
        try:
            scale, error = quantize_into(
                self._memory.payload(job),
                job.parts,
                self._memory.shape(job),
                spec.quantization,
                spec.scale,
            )
        except QuantizeError as exc:
            reason = in_words(exc, spec.encoder.dtype)
            return {"refused": job.video, "reason": reason, "busy": time.perf_counter() - begun}
        return stored(job, scale, error, time.perf_counter() - begun)


def hand_out(features: Any, batch: list[Piece], spec: FeatureSpec) -> None:
    """Give each job its part of a batch's features (B, T, D); FeatstoreError where they have another shape."""
    total = sum(piece.count for piece in batch)
    expected = total, spec.encoder.tokens_per_frame, spec.encoder.hidden_dim
    if tuple(features.shape) != expected:
        raise FeatstoreError(
            f"the encoder {spec.encoder.name!r} made features of shape {tuple(features.shape)} of {total} frames; "
            f"its identity makes it {expected}: correct one or the other"
        )
    at = 0
    for piece in batch:
        piece.job.parts.append(features[at : at + piece.count])
        at += piece.count


def stored(job: Job, scale: NDArray[np.float32], error: QuantError, busy: float) -> Answer:
    """Return the answer that a job's payload lies in its slot."""
    factors = np.ascontiguousarray(scale, dtype="<f4").tobytes()
    return {"stored": job.video, "scale": factors, "error": asdict(error), "busy": busy}
