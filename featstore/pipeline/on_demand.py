"""Features of one video, made on demand: decoded in a process that can be killed, encoded in this one, and stored."""

from __future__ import annotations

import math
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featstore.decoding.pool import Decoded, DecoderPool
from featstore.decoding.video_file import was_replaced
from featstore.errors import NotFinite, VideoError
from featstore.pipeline.make_record import feature_shape, make_header, pack_scale, quantize_into
from featstore.records.quantization import in_words, refuse_non_finite
from featstore.records.sizes import payload_bytes, record_room
from featstore.store.writer import FeatureWriter
from featstore.system.forks import tell_of_forks
from featstore.system.processes import Slots, enough_descriptors

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip
    from featstore.decoding.video_file import Video
    from featstore.encoders.base import Encoder
    from featstore.records.header import SourceFingerprint
    from featstore.sampling import Sampling
    from featstore.spec import FeatureSpec

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class EncodedVideo:
    """A video's features as the encoder gave them.

    Attributes:
        video: the video.
        clip: its length and the frames that were sampled.
        source: the file they came from.
        parts: the features, in batches (B, T, D).
    """

    video: Video
    clip: Clip
    source: SourceFingerprint
    parts: list[torch.Tensor]

    def features(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the features as one tensor (num_tokens, D) of `dtype`."""
        return torch.cat(self.parts).flatten(0, 1).to(dtype)  # (F, T, D) -> (F * T, D)


class OnDemandEncoder:
    """Decodes and encodes one video at a time; threads take turns.

    Its decoder runs from the first video to `close`; a forked child starts its own.
    """

    def __init__(self, encoder: Encoder, *, timeout: float) -> None:
        """Keep the encoder; nothing is started or loaded yet.

        Args:
            encoder: makes the features.
            timeout: seconds that decoding a video may take before its decoder is killed.
        """
        self._encoder = encoder
        self._timeout = timeout
        self._lock = threading.RLock()  # one decoder, one slot
        self._stack = ExitStack()
        self._sampling: Sampling | None = None
        self._pool: DecoderPool | None = None
        self._frames: Slots | None = None
        tell_of_forks(self)

    @enough_descriptors()
    def encode(self, video: Video, sampling: Sampling) -> EncodedVideo:
        """Return the features of the frames that `sampling` selects.

        Raises:
            VideoError: the video cannot be decoded, or its file was replaced.
            NotFinite: a feature is NaN or infinite.
        """
        with self._lock:
            try:
                return self._encode(video, sampling)
            except BaseException:
                self.close()  # the next video must not wait for what the decoder is doing
                raise

    def encode_frames(
        self, frames: NDArray[np.uint8], name: str, **options: Any
    ) -> list[torch.Tensor]:
        """Return the features of `frames`, in batches (B, T, D).

        Args:
            frames: (F, H, W, 3) uint8, resized and cropped.
            name: what messages call them.
            options: further arguments of the encoder's own `encode`.

        Raises:
            NotFinite: a feature is NaN or infinite.
        """
        step = self._encoder.batch_frames
        with self._lock:
            parts = [
                self._encoder.encode(frames[i : i + step], **options)
                for i in range(0, len(frames), step)
            ]
        check_finite(parts, name, self._encoder.identity.dtype)
        return parts

    def close(self) -> None:
        """Stop the decoder; a later video starts another."""
        with self._lock:
            self._pool = self._frames = self._sampling = None
            self._stack.close()

    def after_fork(self) -> None:
        """Let go of the parent's decoder, and of a lock that a thread of the parent may hold."""
        self._lock = threading.RLock()
        self.close()

    def _encode(self, video: Video, sampling: Sampling) -> EncodedVideo:
        self._start(sampling)
        decoded = self._decode(video)
        if decoded.error:
            raise VideoError(decoded.error, video.path)
        assert decoded.clip is not None
        assert decoded.source is not None
        if decoded.video != video or was_replaced(decoded.source, video.path):
            raise VideoError(
                f"{video.path} is not the file whose frames came, {decoded.video.path} of {decoded.source.size:,} "
                "bytes; ask again once it is complete",
                video.path,
            )
        frames = self._view(decoded.slot)[: len(decoded.clip.indices)]
        parts = self.encode_frames(frames, video.path)
        self._release(decoded)
        return EncodedVideo(decoded.video, decoded.clip, decoded.source, parts)

    def _start(self, sampling: Sampling) -> None:
        if sampling == self._sampling:
            return
        self.close()
        preprocessing = self._encoder.identity.preprocessing
        frame_bytes = math.prod(preprocessing.frame_shape)
        log = self._stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (the stack closes it)
        self._frames = Slots.create(1, sampling.nframe * frame_bytes)
        self._stack.callback(self._frames.close)
        self._pool = DecoderPool(
            self._frames, sampling, preprocessing, workers=1, timeout=self._timeout, log=log
        )
        self._stack.callback(self._pool.kill)
        self._sampling = sampling

    def _decode(self, video: Video) -> Decoded:
        assert self._pool is not None
        self._pool.add([video])
        while True:
            wait(self._pool.connections, _POLL_SECONDS)
            for decoded in self._pool.collect():
                return decoded

    def _view(self, slot: int) -> NDArray[np.uint8]:
        assert self._frames is not None
        assert self._sampling is not None
        shape = (self._sampling.nframe, *self._encoder.identity.preprocessing.frame_shape)
        memory = self._frames.slot(slot)[: math.prod(shape)]
        return np.frombuffer(memory, dtype=np.uint8).reshape(shape)

    def _release(self, decoded: Decoded) -> None:
        assert self._pool is not None
        self._pool.release(decoded.slot)


def check_finite(parts: list[torch.Tensor], name: str, dtype: str) -> None:
    """Raise NotFinite, which says what to do, unless all features are finite.

    Args:
        parts: the features, tensors or arrays.
        name: what the message calls them.
        dtype: fp16, bf16 or fp32, in which they were computed.
    """
    tensors = (torch.from_numpy(p) if isinstance(p, np.ndarray) else p for p in parts)
    finite = [torch.isfinite(part) for part in tensors]
    if all(bool(part.all()) for part in finite):
        return
    total = sum(part.numel() for part in finite)
    try:
        refuse_non_finite(total - sum(int(part.sum()) for part in finite), total)
    except NotFinite as exc:
        raise NotFinite(f"{name}: {in_words(exc, dtype)}") from None


def store_features(
    encoded: EncodedVideo,
    cache_dir: str | os.PathLike[str],
    dataset: str,
    spec: FeatureSpec,
    origin: str,
    **limits: Any,
) -> None:
    """Store features, quantized as the feature set says, in place of any that are there.

    Args:
        encoded: the video and its features.
        cache_dir: the store.
        dataset: the dataset's name.
        spec: the feature set.
        origin: the checkpoint that made the features.
        limits: passed on to FeatureWriter.

    Raises:
        StoreError: the store cannot be written.
        QuantizeError: the values cannot be quantized.
    """
    room, _ = record_room(spec)
    shape = feature_shape(spec, encoded.clip)
    buffer = np.empty(room + payload_bytes(spec.quantization, shape), np.uint8).data
    scale, error = quantize_into(buffer[room:], encoded.parts, shape, spec.quantization, spec.scale)
    header = make_header(spec, dataset, encoded.video, encoded.clip, encoded.source, error)
    with FeatureWriter(cache_dir, dataset, **limits) as writer:
        writer.add_set(spec, origin)
        writer.put(spec, header, pack_scale(scale), buffer, slice(room, len(buffer)))
