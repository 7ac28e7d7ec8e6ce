"""ingest(): decode, encode, quantize, hand over; each stage at work while the others are.

One loop in the caller's thread encodes and, between batches of frames, keeps the decoders fed and the writer's word
heard. Memory is bounded by the slots: `workers + 2` videos of resized frames, `WRITER_SLOTS` records, one video's
features on the encoder's device.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.children import Slots
from featstore.decoding.pool import DECODE_MEMORY, Decoded, DecoderPool
from featstore.decoding.video import DECODER, Video
from featstore.errors import QuantizeError, StoreFull, StoreNotFound
from featstore.pipeline.plan import Plan, check_listing, list_videos, make_plan
from featstore.pipeline.writer import Committed, WriterProcess
from featstore.quantizing import (
    HEADER_ROOM,
    feature_shape,
    make_header,
    payload_bytes,
    quantize_into,
    record_room,
)
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.catalog import Failure
from featstore.store.env import open_environment
from featstore.store.info import write_cache_meta
from featstore.store.layout import dataset_path, free_bytes, make_folder, stored_bytes
from featstore.store.writer import MIN_FREE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from featstore.encoders import Encoder

WRITER_SLOTS = 2
DECODE_TIMEOUT = 600.0
LOCK_WAIT = 10.0  # an ingest that was just killed may still have its writer finishing a commit
_POLL_SECONDS = 0.2


@dataclass
class Progress:
    """How far an ingest is; handed to `on_progress` whenever it changed."""

    total: int
    skipped: int
    done: int = 0
    failed: int = 0
    record_bytes: int = 0
    seconds: float = 0.0


@dataclass
class IngestSummary:
    """What an ingest came to.

    stored: videos committed now. skipped: stored before. failures: those of now. failed_before: those of earlier runs,
    left alone. record_bytes: committed now. needed_bytes: what the plan was reckoned to need. interrupted: stopped by
    request. full: why it stopped for lack of room. decoders: videos read by each. busy: seconds of work
    by stage, decode summed over its workers.
    """

    dataset: str
    spec: FeatureSpec
    planned: int
    skipped: int
    replaced: int
    failed_before: list[Failure]
    needed_bytes: int
    workers: int
    stored: int = 0
    failures: list[Failure] = field(default_factory=list)
    record_bytes: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    full: str = ""
    decoders: dict[str, int] = field(default_factory=dict)
    busy: dict[str, float] = field(
        default_factory=lambda: {"decode": 0.0, "encode": 0.0, "write": 0.0}
    )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self) | {"spec": self.spec.digest}


def ingest(
    videos: Iterable[str | os.PathLike[str]] | Sequence[Video],
    cache_dir: str | os.PathLike[str],
    dataset: str,
    *,
    encoder: Encoder,
    sampling: Sampling | None = None,
    quantization: str = "int8",
    scale: str = "channel",
    codec: str = "raw",
    workers: int | None = None,
    decode_timeout: float = DECODE_TIMEOUT,
    decode_memory: int = DECODE_MEMORY,
    decoder: str = "auto",
    resume: bool = True,
    retry_failed: bool = False,
    limit: int | None = None,
    min_free: int = MIN_FREE_BYTES,
    max_size: int | None = None,
    lock_wait: float = LOCK_WAIT,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    on_plan: Callable[[IngestSummary], None] = lambda summary: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> IngestSummary:
    """Store the features of `videos` in `cache_dir/dataset`, leaving out those that are stored.

    videos: folders and video files, or `Video`s with ids of their own. encoder: see featstore.encoders.get_encoder.
    sampling: 128 frames, linspace, by default. workers: decode processes, one a core by default; `workers + 2`
    videos of resized frames are in flight (43 MB each at 128 frames of 336 x 336). decode_timeout: seconds.
    decode_memory: bytes a decode process may take beside its frames. decoder: auto, av or decord, whose frames are the
    same bytes (see featstore.decoding.video.decode). min_free,
    max_size: bytes, of the disk and of the cache directory. lock_wait: seconds to wait for another ingest.
    stop: set it to end early; what was encoded is committed, and the same call goes on later.

    A video that cannot be ingested is recorded in the store with its reason and named in the summary. Raises
    ListingError before any work, StoreFull before any work where the plan cannot fit, StoreLocked while another
    ingest is at work on the dataset, and StoreError where the writer failed; what was committed until then stays.
    """
    begun = time.monotonic()
    if isinstance(videos, (str, os.PathLike)):
        videos = [videos]
    listed = [video for video in videos if isinstance(video, Video)]
    places = [place for place in videos if not isinstance(place, Video)]
    listing = check_listing(listed + (list_videos(places) if places else []))
    spec = FeatureSpec(
        encoder.identity,
        sampling or Sampling(),
        DECODER,
        quantization,
        scale if quantization == "int8" else "none",
    )
    plan = _plan(listing, cache_dir, dataset, spec, retry_failed, resume, limit)
    workers = max(1, min(workers or default_workers(), len(plan.todo) or 1))
    summary = IngestSummary(
        dataset=dataset,
        spec=spec,
        planned=len(plan.todo),
        skipped=len(plan.stored),
        replaced=plan.replaced,
        failed_before=plan.failed_before,
        needed_bytes=len(plan.todo) * record_bytes(spec),
        workers=workers,
    )
    on_plan(summary)
    if dry_run or not plan.todo:
        return summary
    make_folder(dataset_path(cache_dir, dataset))
    _check_room(cache_dir, summary.needed_bytes, min_free, max_size)
    decoding = {"timeout": decode_timeout, "memory": decode_memory, "decoder": decoder}
    limits = {"min_free": min_free, "max_size": max_size, "lock_wait": lock_wait}
    with ExitStack() as stack:
        run = _Run(stack, encoder, summary, cache_dir, codec, limits, decoding, stop, on_progress)
        try:
            run.go(plan.todo)
        finally:
            summary.seconds = time.monotonic() - begun
            write_cache_meta(cache_dir)
    return summary


def default_workers() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def record_bytes(spec: FeatureSpec) -> int:
    """Return the most bytes a record of `spec` takes, uncompressed."""
    room, payload = record_room(spec)
    return room - HEADER_ROOM + 4096 + payload


class _Run:
    """One ingest at work."""

    def __init__(
        self,
        stack: ExitStack,
        encoder: Encoder,
        summary: IngestSummary,
        cache_dir: str | os.PathLike[str],
        codec: str,
        limits: dict[str, Any],
        decoding: dict[str, Any],
        stop: threading.Event | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        spec = summary.spec
        self._encoder = encoder
        self._summary = summary
        self._codec = codec
        self._stop = stop or threading.Event()
        self._on_progress = on_progress
        self._begun = time.monotonic()
        self._ready: list[Decoded] = []
        self._shape = (spec.sampling.nframe, *spec.encoder.preprocessing.frame_shape)
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        room, payload = record_room(spec)
        records = Slots.create(WRITER_SLOTS, room + payload)
        stack.callback(records.close)
        self._writer = WriterProcess(
            records,
            prefix_room=room,
            setup={
                "cache_dir": os.fspath(cache_dir),
                "dataset": summary.dataset,
                "spec": spec.to_dict(),
                "origin": encoder.origin,
                **limits,
            },
            log=log,
        )
        stack.callback(self._writer.close)
        self._frames = Slots.create(summary.workers + 2, int(np.prod(self._shape)))
        stack.callback(self._frames.close)
        self._pool = DecoderPool(
            self._frames,
            workers=summary.workers,
            **decoding,
            setup={
                "sampling": spec.sampling.to_dict(),
                "preprocessing": spec.encoder.preprocessing.to_dict(),
            },
            log=log,
        )
        stack.callback(self._pool.kill)

    def go(self, todo: list[Video]) -> None:
        self._pool.add(todo)
        try:
            while not self._stop.is_set() and (self._ready or not self._pool.idle):
                if not self._ready:
                    wait([*self._pool.connections, self._writer.connection], _POLL_SECONDS)
                self._listen()
                if self._ready:
                    self._take(self._ready.pop(0))
            self._pool.kill()
            self._note(self._writer.finish())
        except StoreFull as exc:
            self._summary.full = str(exc)
        self._summary.interrupted = self._stop.is_set()

    def _listen(self) -> None:
        """Hear decoders and writer without waiting; keeps both fed between batches."""
        self._note(self._writer.collect())
        self._ready += self._pool.collect()

    def _take(self, decoded: Decoded) -> None:
        self._summary.busy["decode"] += decoded.seconds
        if decoded.error:
            self._pool.release(decoded.slot)
            self._fail(decoded.video, decoded.error)
            return
        assert decoded.clip is not None
        name = decoded.clip.decoder
        self._summary.decoders[name] = self._summary.decoders.get(name, 0) + 1
        features = self._encode(decoded)
        self._pool.release(decoded.slot)
        if features is None:
            return
        while self._writer.full:
            wait([self._writer.connection])
            self._listen()
        try:
            self._hand_over(decoded, features)
        except QuantizeError as exc:
            self._fail(decoded.video, f"{decoded.video.path}: {exc}")

    def _encode(self, decoded: Decoded) -> Any:
        """Return the features (F, T, D) of a decoded video, or None if the run was stopped meanwhile."""
        assert decoded.clip is not None
        count = len(decoded.clip.indices)
        memory = self._frames.slot(decoded.slot)[: int(np.prod(self._shape))]
        frames = np.frombuffer(memory, dtype=np.uint8).reshape(self._shape)[:count]
        step = self._encoder.batch_frames
        parts = []
        for start in range(0, count, step):
            begun = time.perf_counter()
            parts.append(self._encoder.encode(frames[start : start + step]))
            self._summary.busy["encode"] += time.perf_counter() - begun
            self._listen()
            if self._stop.is_set():
                return None
        return parts

    def _hand_over(self, decoded: Decoded, parts: list[Any]) -> None:
        assert decoded.clip is not None
        assert decoded.source is not None
        spec, clip = self._summary.spec, decoded.clip
        shape = feature_shape(spec, clip)
        begun = time.perf_counter()
        slot, payload = self._writer.payload(payload_bytes(spec, shape))
        scale, error = quantize_into(payload, parts, shape, spec.quantization, spec.scale)
        self._summary.busy["encode"] += time.perf_counter() - begun
        header = make_header(
            spec, self._summary.dataset, decoded.video, clip, decoded.source, error
        )
        self._writer.put(slot, header, scale, self._codec)

    def _fail(self, video: Video, reason: str) -> None:
        failure = Failure(
            video.video_id, video.path, self._summary.spec.digest, reason, time.time()
        )
        self._summary.failures.append(failure)
        self._writer.fail(failure)
        self._report()

    def _note(self, commits: Iterable[Committed]) -> None:
        for commit in commits:
            self._summary.stored += len(commit.stored)
            self._summary.record_bytes += sum(size for _, size in commit.stored)
            self._summary.busy["write"] += commit.busy
            self._report()

    def _report(self) -> None:
        summary = self._summary
        self._on_progress(
            Progress(
                total=summary.planned,
                skipped=summary.skipped,
                done=summary.stored,
                failed=len(summary.failures),
                record_bytes=summary.record_bytes,
                seconds=time.monotonic() - self._begun,
            )
        )


def _plan(
    listing: list[Video],
    cache_dir: str | os.PathLike[str],
    dataset: str,
    spec: FeatureSpec,
    retry_failed: bool,
    resume: bool,
    limit: int | None,
) -> Plan:
    try:
        snapshot = open_environment(dataset_path(cache_dir, dataset)).snapshot()
    except StoreNotFound:
        snapshot = None
    return make_plan(
        listing, snapshot, dataset, spec, retry_failed=retry_failed, resume=resume, limit=limit
    )


def _check_room(
    cache_dir: str | os.PathLike[str], need: int, min_free: int, max_size: int | None
) -> None:
    free = free_bytes(cache_dir)
    if free - need < min_free:
        raise StoreFull(
            f"the videos need {need / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free in {cache_dir} and "
            f"{min_free / 2**30:.2f} are to stay free; make room, take fewer with --limit, or lower --min-free"
        )
    taken = stored_bytes(cache_dir)
    if max_size is not None and taken + need > max_size:
        raise StoreFull(
            f"the videos need {need / 2**30:.2f} GiB, {cache_dir} takes {taken / 2**30:.2f} GiB already and may take "
            f"{max_size / 2**30:.2f}; raise --max-size, or take fewer with --limit"
        )
