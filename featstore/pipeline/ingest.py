"""ingest(): the plan, the room for it, and the stages that do it."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from featstore.decoding.pool import DECODE_MEMORY
from featstore.decoding.video_file import DECODER, Video
from featstore.errors import StoreFull, StoreNotFound
from featstore.pipeline.make_record import HEADER_ROOM, record_room
from featstore.pipeline.plan import Plan, check_listing, list_videos, make_plan
from featstore.pipeline.scheduler import Settings, Stages
from featstore.pipeline.summary import IngestSummary
from featstore.records.codecs import require
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store import open_snapshot
from featstore.store.describe import write_cache_meta
from featstore.store.paths import absolute, dataset_path, make_folder, stored_bytes
from featstore.store.writer import MIN_FREE_BYTES
from featstore.system.cpus import default_workers
from featstore.system.filesystems import format_bytes, free_bytes, refuse_network
from featstore.system.processes import enough_descriptors

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.summary import Progress

DECODE_TIMEOUT = 600.0
LOCK_WAIT = 10.0  # an ingest that was just killed may still have its writer finishing a commit


def ingest(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Video],
    cache_dir: str | os.PathLike[str],
    dataset: str,
    *,
    encoder: Encoder | list[EncoderRecipe],
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

    videos: folders and video files, one or several, or `Video`s with ids of their own. encoder: an object, see
    featstore.encoders.get_encoder, which runs in a thread of this process; or a list of recipes, one for each device,
    which run in a process each and must make the same features. sampling: 128 frames, linspace, by default. workers:
    decode processes, one a core by default. decode_timeout: seconds. decode_memory: bytes a decode process may take
    beside its frames. decoder: auto, av or decord, whose frames are the same bytes (see
    featstore.decoding.video_file.decode). min_free, max_size: bytes, of the disk and of the cache directory. lock_wait:
    seconds to wait for another ingest. stop: set it to end early; what was encoded is committed, and the same call goes
    on later.

    The memory for what is in flight is bounded, `shared_bytes` of the summary: with batches of nframe frames it holds
    the frames of `workers + 2` videos (43 MB each at 128 frames of 336 x 336) and 5 records (66 MB each), and for each
    further encoder those of 2 videos and 3 records.

    A video that cannot be ingested is recorded in the store with its reason and named in the summary. Raises
    ListingError before any work, StoreFull before any work where the plan cannot fit, StoreLocked while another
    ingest is at work on the dataset, StoreMismatch where encoders differ, StoreError where the writer failed, and what
    an encoder raised; what was committed until then stays.
    """
    begun, cache_dir = time.monotonic(), absolute(cache_dir)
    # Walked twice below, which a generator allows once.
    videos = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
    listed = [video for video in videos if isinstance(video, Video)]
    places = [place for place in videos if not isinstance(place, Video)]
    listing = check_listing(listed + (list_videos(places) if places else []))
    recipes = encoder if isinstance(encoder, list) else []
    built = encoder[0].build() if isinstance(encoder, list) else encoder
    spec = FeatureSpec(
        built.identity,
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
        replaced=len(plan.replaced),
        failed_before=plan.failed_before,
        needed_bytes=len(plan.todo) * record_bytes(spec),
        workers=workers,
        encoders=max(1, min(len(recipes), len(plan.todo))),
    )
    on_plan(summary)
    if dry_run or not plan.todo:
        return summary
    require(codec)
    refuse_network(cache_dir)
    make_folder(dataset_path(cache_dir, dataset))
    _check_room(cache_dir, summary.needed_bytes, min_free, max_size)
    decoding = {"timeout": decode_timeout, "memory": decode_memory, "decoder": decoder}
    limits = {"min_free": min_free, "max_size": max_size, "lock_wait": lock_wait}
    settings = Settings(cache_dir, codec, decoding, limits)
    with enough_descriptors(), ExitStack() as stack:
        try:
            stages = Stages(
                stack,
                summary,
                built,
                recipes[: summary.encoders],
                settings,
                stop=stop,
                on_progress=on_progress,
            )
            stages.go(plan.todo, plan.replaced)
        finally:
            summary.seconds = time.monotonic() - begun
            write_cache_meta(cache_dir)
    return summary


def record_bytes(spec: FeatureSpec) -> int:
    """Return the most bytes a record of `spec` takes, uncompressed."""
    room, payload = record_room(spec)
    return room - HEADER_ROOM + 4096 + payload


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
        snapshot = open_snapshot(dataset_path(cache_dir, dataset))
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
            f"the videos need {format_bytes(need)}, {format_bytes(free)} are free in {cache_dir} and "
            f"{format_bytes(min_free)} are to stay free; "
            "make room, take fewer with --limit, or lower --min-free"
        )
    taken = stored_bytes(cache_dir)
    if max_size is not None and taken + need > max_size:
        raise StoreFull(
            f"the videos need {format_bytes(need)}, {cache_dir} takes {format_bytes(taken)} already and may take "
            f"{format_bytes(max_size)}; "
            "raise --max-size, or take fewer with --limit"
        )
