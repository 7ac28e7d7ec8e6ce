"""Features made on the spot: a video decoded in a process that can be killed, encoded in this one, and stored."""

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
from featstore.fields import to_plain
from featstore.pipeline.make_record import feature_shape, make_header, quantize_into
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
class Encoded:
    """A video's features as the encoder gave them, in batches (B, T, D), and what is known of the video."""

    video: Video
    clip: Clip
    source: SourceFingerprint
    parts: list[torch.Tensor]

    def features(self, dtype: torch.dtype) -> torch.Tensor:
        """Return them as one tensor (num_tokens, D)."""
        return torch.cat(self.parts).flatten(0, 1).to(dtype)  # (F, T, D) -> (F * T, D)


class LiveEncoder:
    """Decodes and encodes one video at a time, for whichever thread's turn it is.

    Its decoder runs from the first video to `close`; a forked child starts one of its own.
    timeout: seconds a video's decoding may take before it is killed.
    """

    def __init__(self, encoder: Encoder, *, timeout: float) -> None:
        """Keep `encoder`; nothing is started or loaded yet."""
        self._encoder = encoder
        self._timeout = timeout
        self._lock = threading.RLock()  # one decoder, one slot
        self._stack = ExitStack()
        self._sampling: Sampling | None = None
        self._pool: DecoderPool | None = None
        self._frames: Slots | None = None
        tell_of_forks(self)

    @enough_descriptors()
    def encode(self, video: Video, sampling: Sampling) -> Encoded:
        """Return the features of the frames that `sampling` picks; VideoError where there are none."""
        with self._lock:
            try:
                return self._encode(video, sampling)
            except BaseException:
                self.close()  # whatever the decoder is at, the next video is not to wait for it
                raise

    def encode_frames(
        self, frames: NDArray[np.uint8], name: str, **options: Any
    ) -> list[torch.Tensor]:
        """Return the features, in batches (B, T, D), of `frames` (F, H, W, 3) that are resized and cropped.

        options: of the encoder's own `encode`. Raises NotFinite, which calls them `name`, where there are no numbers to
        answer from or to store.
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
        """End the decoder; a later video starts another."""
        with self._lock:
            self._pool = self._frames = self._sampling = None
            self._stack.close()

    def after_fork(self) -> None:
        """Let go of the parent's decoder, and of a lock that a thread of the parent may hold."""
        self._lock = threading.RLock()
        self.close()

    def _encode(self, video: Video, sampling: Sampling) -> Encoded:
        self._start(sampling)
        decoded = self._decode(video)
        if decoded.error:
            raise VideoError(decoded.error, video.path)
        assert decoded.clip is not None
        assert decoded.source is not None
        if decoded.video != video or was_replaced(decoded.source, video.path):
            raise VideoError(
                f"{video.path} is not the file whose frames came, {decoded.video.path} of {decoded.source.size:,} "
                "bytes; once it is whole, ask again",
                video.path,
            )
        frames = self._view(decoded.slot)[: len(decoded.clip.indices)]
        parts = self.encode_frames(frames, video.path)
        self._release(decoded)
        return Encoded(decoded.video, decoded.clip, decoded.source, parts)

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
            self._frames,
            workers=1,
            timeout=self._timeout,
            setup={"sampling": to_plain(sampling), "preprocessing": to_plain(preprocessing)},
            log=log,
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
    """Raise NotFinite, which says what to do, unless all features of `name`, computed in `dtype`, are finite."""
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
    encoded: Encoded,
    cache_dir: str | os.PathLike[str],
    dataset: str,
    spec: FeatureSpec,
    origin: str,
    **limits: Any,
) -> None:
    """Put the features into the feature set of `spec`, quantized as it says, in place of any that are there.

    origin: the checkpoint that made them. limits: as FeatureWriter takes them. Raises StoreError where the store
    cannot be written, QuantizeError where it cannot hold such numbers.
    """
    room, _ = record_room(spec)
    shape = feature_shape(spec, encoded.clip)
    buffer = np.empty(room + payload_bytes(spec.quantization, shape), np.uint8).data
    scale, error = quantize_into(buffer[room:], encoded.parts, shape, spec.quantization, spec.scale)
    header = make_header(spec, dataset, encoded.video, encoded.clip, encoded.source, error)
    with FeatureWriter(cache_dir, dataset, **limits) as writer:
        writer.add_set(spec, origin)
        factors = np.ascontiguousarray(scale, dtype="<f4").tobytes()
        writer.put(spec, header, factors, buffer, slice(room, len(buffer)))
