"""Features of one video, made on demand: decoded in a process that can be killed, encoded in this one, and stored."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featstore import defaults
from featstore.decoding.pool import Decoded, DecoderPool
from featstore.decoding.video_file import was_replaced
from featstore.errors import NotFinite, StoreNotFound, VideoError
from featstore.pipeline.encode.batches import Batches, EncodeTask, VideoParts, cut_units
from featstore.pipeline.make_record import fallback_of, keep_within, make_header, record_room
from featstore.pipeline.shared_memory import batch_units, frames_in
from featstore.preprocessing import frame_bytes
from featstore.records.budget import ErrorBudget
from featstore.records.quantization import in_words, refuse_non_finite
from featstore.records.record import pack_record
from featstore.records.storage import Storage, storage_for
from featstore.store import open_snapshot
from featstore.store.catalog import read_set
from featstore.store.paths import dataset_path
from featstore.store.writer import FeatureWriter
from featstore.system.forks import tell_of_forks
from featstore.system.processes import Slots, enough_descriptors

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip
    from featstore.decoding.video_file import Video
    from featstore.encoders.base import Encoder
    from featstore.records.header import SourceFingerprint
    from featstore.sampling import Sampling
    from featstore.spec import FeatureSpec
    from featstore.store.rows import FeatureSet

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class EncodedVideo:
    """A video's features as the encoder gave them.

    Attributes:
        video, clip, source: the video, the frames that were sampled, and the file they came from.
        parts: the features in order, each (n, row_width).
        grid: (height, width) of a unit's tokens, if they differ by video.
    """

    video: Video
    clip: Clip
    source: SourceFingerprint
    parts: list[torch.Tensor]
    grid: tuple[int, int] | None = None

    def features(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the features as one tensor (rows, row_width) of `dtype`."""
        return torch.cat(self.parts).to(dtype)


class OnDemandEncoder:
    """Decodes and encodes one video at a time; threads take turns.

    Its decoder runs from the first video to `close`; a forked child starts its own.
    """

    def __init__(
        self, encoder: Encoder, *, timeout: float, decoder: str = defaults.DECODER
    ) -> None:
        """Keep the encoder; nothing is started or loaded yet.

        Args:
            encoder: makes the features.
            timeout: seconds that decoding a video may take before its decoder is killed.
            decoder: see featstore.decoding.video_file.decode.
        """
        self._encoder = encoder
        self._timeout = timeout
        self._decoder = decoder
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
        """Return the features of `frames`, each a unit, in batches (B, tokens, row_width).

        Args:
            frames: (F, H, W, 3) uint8, prepared.
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
        assert self._frames is not None
        assert self._pool is not None
        parts, grid = self._encode_units(self._frames.slot(decoded.slot), decoded.clip)
        check_finite(parts, video.path, self._encoder.identity.dtype)
        self._pool.release(decoded.slot)
        return EncodedVideo(decoded.video, decoded.clip, decoded.source, parts, grid)

    def _encode_units(
        self, memory: memoryview, clip: Clip
    ) -> tuple[list[torch.Tensor], tuple[int, int] | None]:
        """Return the parts and the grid of a clip's features, made in the batches of an ingest of this video only."""
        encoder, geometry = self._encoder, self._encoder.identity.geometry
        load = getattr(encoder, "load", None)
        if load is not None:
            load()
        count = len(clip.indices)
        frames = frames_in(memory, 0, count, clip.size)
        batches = Batches(batch_units(geometry, encoder.batch_frames))
        batches.add(EncodeTask(0, 0, count, geometry.units(count), clip.size, 0))
        videos, ended = VideoParts(encoder), []
        while batch := batches.take(short=True):
            (chunk,) = batch
            features = encoder.encode(cut_units(frames, geometry, chunk.start, chunk.stop))
            ended += videos.add(features, batch)
        (video,) = ended
        return video.parts, video.grid

    def _start(self, sampling: Sampling) -> None:
        if sampling == self._sampling:
            return
        self.close()
        preprocessing = self._encoder.preprocessing
        log = self._stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (the stack closes it)
        self._frames = Slots.create(1, sampling.nframe * frame_bytes(preprocessing))
        self._stack.callback(self._frames.close)
        self._pool = DecoderPool(
            self._frames,
            sampling,
            preprocessing,
            workers=1,
            timeout=self._timeout,
            log=log,
            decoder=self._decoder,
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
    *,
    storage: Storage | str | None = None,
    names: Mapping[str, str] | None = None,
    **limits: Any,
) -> None:
    """Store features as the feature set and its error budget say, in place of any that are there.

    Args:
        encoded: the video and its features.
        cache_dir: the store.
        dataset: the dataset's name.
        spec: the feature set.
        origin: the checkpoint that made the features.
        storage: how a feature set is to be stored that this makes; `Storage()` if None.
        names: further names of the encoder's parts.
        limits: passed on to FeatureWriter.

    Raises:
        StoreError: the store cannot be written.
        QuantizeError: the values cannot be quantized.
        RecordError: a record cannot hold them.
    """
    there = _set_there(cache_dir, dataset, spec)
    budget = ErrorBudget() if there is None else ErrorBudget(there.max_error)
    asked = storage_for(storage, spec.encoder.dtype) or Storage()
    storage = asked if there is None else there.storage
    room, _ = record_room(spec, storage)
    shape = sum(map(len, encoded.parts)), encoded.parts[0].shape[1]
    fallback = fallback_of(spec, storage, budget)
    size = max(way.payload_bytes(shape) for way in (storage, fallback or storage))
    buffer = np.empty(room + size, np.uint8).data
    kept = keep_within(
        budget,
        lambda way: buffer[room : room + way.payload_bytes(shape)],
        encoded.parts,
        storage,
        fallback,
    )
    about = encoded.video, encoded.clip, encoded.source
    header = make_header(spec, kept.storage, dataset, *about, grid=encoded.grid, error=kept.error)
    payload = slice(room, room + header.raw_bytes)
    with FeatureWriter(cache_dir, dataset, **limits) as writer:
        writer.add_set(spec, storage, origin=origin, names=names, max_error=budget.max_error)
        writer.put(*pack_record(header, kept.scales, buffer, payload))


def _set_there(
    cache_dir: str | os.PathLike[str], dataset: str, spec: FeatureSpec
) -> FeatureSet | None:
    """Return the feature set as it is in the dataset, None if there is none yet."""
    with suppress(StoreNotFound):
        return read_set(open_snapshot(dataset_path(cache_dir, dataset)), spec.digest)
    return None
