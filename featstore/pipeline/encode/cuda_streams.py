"""Frames to a GPU, through an encoder, and back as stored values; each on a stream of its own, none waited for.

Uploads, the encoder with the quantization, and the copies back run on three streams, tied by events: while a batch is
encoded the next one's frames are on their way up, and the last one's record is on its way down. The host only queues.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from featstore.records.quantization import refuse_large
from featstore.torch.kernels.quantize import queue_quantize, read_measures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from featstore.records.quantization import QuantError
    from featstore.records.storage import Storage

# Batches queued at once: one is encoded, and the next one's frames are there when it ends.
DEPTH = 2


@dataclass(frozen=True)
class Span:
    """A stretch of work on a stream."""

    started: torch.cuda.Event
    ended: torch.cuda.Event

    @property
    def done(self) -> bool:
        """Return whether it is over."""
        return bool(self.ended.query())  # type: ignore[no-untyped-call]

    @property
    def seconds(self) -> float:
        """Return how long the GPU took over it, once it is done."""
        return float(self.started.elapsed_time(self.ended)) / 1e3


@dataclass(frozen=True)
class Encoded:
    """A batch on its way: features (B, tokens, width) on the GPU.

    read: has passed once the host's frames are free again.
    """

    features: torch.Tensor
    read: torch.cuda.Event
    work: Span


@dataclass(frozen=True)
class Stored:
    """A video on its way back: payload, scales and measures are on the host once `arrived` has passed."""

    scales: tuple[torch.Tensor, ...]
    measures: torch.Tensor
    total: int
    storage: Storage
    arrived: torch.cuda.Event
    work: Span

    def result(self) -> tuple[list[NDArray[np.float32]], QuantError]:
        """Return scales and error; QuantizeError if a value cannot be stored."""
        error = read_measures(self.measures.tolist(), self.total, self.storage)
        scales = [scale.numpy() for scale in self.scales]
        refuse_large(scales)
        return scales, error


class EncoderStreams:
    """The three streams of one encoder on one GPU; used by one thread.

    encode: from frames of units, uint8 on the GPU, to features (B, tokens, width), queued on the current stream.
    """

    def __init__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        batch_bytes: int,
    ) -> None:
        """Reserve the memory for `DEPTH` batches of frames of at most `batch_bytes` bytes."""
        self._encode = encode
        self._device = device
        with torch.cuda.device(device):
            self._up, self._main, self._down = (
                torch.cuda.Stream()  # type: ignore[no-untyped-call]
                for _ in range(3)
            )
        # The encoder's weights were put there on another stream. Waiting for the whole device would fail while another
        # thread captures a graph.
        for stream in (torch.cuda.default_stream(device), torch.cuda.current_stream(device)):
            stream.synchronize()
        with self._on(self._up):
            shape = (DEPTH, batch_bytes)
            self._frames = torch.empty(shape, dtype=torch.uint8, device=device)
        self._read: list[torch.cuda.Event | None] = [None] * DEPTH
        self._turn = 0

    def encode(self, chunks: Sequence[NDArray[np.uint8]]) -> Encoded:
        """Queue a batch of chunks on the host, best in page-locked memory; at most `DEPTH` at once.

        chunks: frames of units, (n, H, W, 3) or (n, frames_per_unit, H, W, 3), in one size.
        """
        turn, self._turn = self._turn, (self._turn + 1) % DEPTH
        shape = (sum(map(len, chunks)), *chunks[0].shape[1:])
        place, count = self._frames[turn, : math.prod(shape)].view(shape), 0
        with self._on(self._up):
            before = self._read[turn]
            if before is not None:  # the batch that was there last
                self._up.wait_event(before)
            for chunk in chunks:
                part = place[count : count + len(chunk)]
                part.copy_(torch.from_numpy(chunk), non_blocking=True)
                count += len(chunk)
            read = self._up.record_event()
        with self._on(self._main):
            self._main.wait_event(read)
            started = self._mark()
            # Cut into the rows of videos, which must not copy: that would be on another stream.
            features = self._encode(place).contiguous()
            ended = self._mark()
        self._read[turn] = ended
        return Encoded(features, read, Span(started, ended))

    @torch.inference_mode()
    def store(
        self,
        parts: Sequence[torch.Tensor],
        payload: memoryview,
        storage: Storage,
    ) -> Stored:
        """Queue the quantization of a video's features, parts (n, width) on the GPU, and their way to `payload`."""
        with self._on(self._main):
            started = self._mark()
            features = parts[0] if len(parts) == 1 else torch.cat(list(parts))
            stored, scales, measures = queue_quantize(features, storage)
            ended = self._mark()
        with self._on(self._down):
            self._down.wait_event(ended)
            values = torch.frombuffer(payload, dtype=stored.dtype).reshape(stored.shape)
            values.copy_(stored, non_blocking=True)
            on_host = [_copy_down(tensor) for tensor in (*scales, measures)]
            for tensor in (stored, *scales, measures):
                tensor.record_stream(self._down)  # so that their memory is not reused earlier
            arrived = self._down.record_event()
        *on_host_scales, on_host_measures = on_host
        return Stored(
            tuple(on_host_scales),
            on_host_measures,
            features.numel(),
            storage,
            arrived,
            Span(started, ended),
        )

    def finish(self) -> None:
        """Wait until nothing is on its way: the host's memory may be released."""
        for stream in (self._up, self._main, self._down):
            stream.synchronize()

    @contextlib.contextmanager
    def _on(self, stream: torch.cuda.Stream) -> Iterator[None]:
        # Leaving only a stream would go back to the current GPU, and give it a context of some 500 MB.
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            yield

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._main)
        return event


def _copy_down(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
