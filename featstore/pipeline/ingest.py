"""ingest(): the listing, the plan, the space it needs, and the scheduler that carries it out."""

from __future__ import annotations

import math
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from featstore.decoding.video_file import Video, identity_of
from featstore.encoders.registry import EncoderRecipe, check_encoder
from featstore.errors import StoreFull, StoreMismatch, explain_keywords
from featstore.pipeline.listing import Listing, list_videos
from featstore.pipeline.make_record import record_room
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.plan import decode_order, make_plan, plan_ingest
from featstore.pipeline.room import first_of
from featstore.pipeline.scheduler import Scheduler
from featstore.pipeline.summary import IngestSummary
from featstore.pipeline.write.heartbeat import Heartbeat
from featstore.pipeline.write.writer_client import start_writer
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store import MAP_BYTES, FeatureWriter, ingest_lock, refuse_sealed
from featstore.store.describe import write_cache_meta
from featstore.store.paths import (
    absolute,
    dataset_bytes,
    dataset_path,
    make_folder,
    stored_bytes,
)
from featstore.store.rows import Failure
from featstore.store.shards.places import LocalPlace
from featstore.system.cpus import default_workers
from featstore.system.filesystems import format_bytes, free_bytes, refuse_network
from featstore.system.processes import enough_descriptors

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from featstore.encoders.base import Encoder
    from featstore.pipeline.plan import Plan
    from featstore.pipeline.summary import Progress
    from featstore.records.storage import Storage
    from featstore.store import DatasetSnapshot


class Engine(Protocol):
    """Carries out the plan of an ingest elsewhere than in processes of this machine."""

    def run(
        self,
        stack: ExitStack,
        summary: IngestSummary,
        encoder: Encoder,
        cache_dir: Path,
        options: IngestOptions,
        **work: Any,
    ) -> None:
        """Ingest `todo`, as `Scheduler.run` does; see RayEngine."""
        ...


@explain_keywords(nframe="sampling=featstore.Sampling(NFRAME) says it")
def ingest(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Video],
    cache_dir: str | os.PathLike[str],
    dataset: str,
    *,
    encoder: Encoder | list[EncoderRecipe],
    sampling: Sampling | None = None,
    storage: Storage | str | None = None,
    options: IngestOptions | None = None,
    stop: threading.Event | None = None,
    on_plan: Callable[[IngestSummary], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    engine: Engine | None = None,
    sealed: DatasetSnapshot | None = None,
    most_bytes: int | None = None,
) -> IngestSummary:
    """Store the features of `videos` in `cache_dir/dataset`, leaving out those that are stored.

    A video that cannot be ingested is recorded in the store with its reason and named in the summary; the others are
    stored.

    The memory for what is in flight is bounded, `shared_bytes` of the summary: with batches of nframe frames it holds
    the frames of `workers + 2` videos (43 MB each at 128 frames of 336 x 336) and 5 records (66 MB each, or the 132 MB
    of what misses the error budget), and for each further encoder those of 2 videos and 3 records.

    >>> import featstore
    >>> encoder = featstore.encoders.get_encoder("toy")  # or get_encoder("longva", checkpoint="lmms-lab/LongVA-7B")
    >>> done = featstore.ingest("clips", "vision_cache", "clips", encoder=encoder, sampling=featstore.Sampling(8))
    >>> done.stored, done.failures
    (3, [])

    Args:
        videos: folders and video files, one or several, or `Video`s with ids of their own.
        cache_dir: the folder of datasets; made if it does not exist.
        dataset: the dataset to fill; made if it does not exist.
        encoder: an object, see featstore.encoders.get_encoder, which runs in a thread of this process; or a list of
            recipes, one for each device, which run in a process each and must make the same features.
        sampling: which frames are encoded; `Sampling()` if None: 128 frames, linspace.
        storage: how features are stored, a Storage or `lossless`, bit for bit as they were computed; None for as the
            feature set's are, or `Storage()` if there is none yet.
        options: how the work is done; `IngestOptions()` if None.
        stop: set it to end early; what was encoded is committed, and the same call resumes later.
        on_plan: called with the summary once the plan is made, before any work.
        on_progress: called after each commit and each failure.
        engine: carries the plan out on a cluster; None for processes of this machine.
        sealed: what sealed shards of the dataset hold, which is left out; see featstore.pipeline.cluster.shard.
        most_bytes: leave videos for a later call beyond so many bytes in `cache_dir`.

    Returns:
        What was stored and what failed, or the plan after a dry run.

    Raises:
        ListingError: before any work, if the videos are not a listing with one file an id.
        StoreFull: before any work, if what is planned does not fit.
        StoreLocked: if another ingest is at work on the dataset.
        StoreMismatch: before any work, if no dataset can be called so, or if the feature set is stored in another way
            than `storage` says, and `options.replace_storage` is not set; before any video is encoded, if the encoders
            differ.
        RecordError: before any work, if a record cannot hold the features of so many frames.
        StoreError: before any work, if the dataset is sealed, unless this is a dry run; or if the writer failed. What
            was committed before stays. So it does if the encoder raises, whose exception passes through.
    """
    started, cache_dir, options = time.monotonic(), absolute(cache_dir), options or IngestOptions()
    if isinstance(videos, (str, os.PathLike)):
        videos = [videos]
    path = check_target(cache_dir, dataset, options)
    listing = videos if isinstance(videos, Listing) else list_videos(videos)
    recipes = encoder if isinstance(encoder, list) else []
    built = recipes[0].build() if recipes else check_encoder(encoder)
    decoder = identity_of(options.decoder)
    spec = FeatureSpec(built.identity, sampling or Sampling(), decoder, built.preprocessing)
    before = None
    if sealed is not None:
        before = _plan_beside(sealed, listing, spec, options, storage)
        listing, storage = Listing(before.todo), before.storage
        budget = before.budget.max_error
        options = replace(options, max_error=math.inf if budget is None else budget)
    plan = plan_ingest(listing, cache_dir, dataset, spec, options, storage)
    if most_bytes is not None:
        plan = first_of(plan, spec, cache_dir, most_bytes)
    if before is not None:
        plan = replace(
            plan,
            stored=before.stored + plan.stored,
            failed_before=before.failed_before + plan.failed_before,
            clashes=before.clashes + plan.clashes,
            lossless=before.lossless + plan.lossless,
        )
    record_room(spec, plan.storage)
    summary = IngestSummary(
        dataset=dataset,
        spec=spec,
        storage=plan.storage,
        planned=len(plan.todo),
        skipped=len(plan.stored),
        replaced=len(plan.replaced),
        restored=plan.restored,
        beyond_limit=plan.beyond_limit,
        clashes=list(plan.clashes),
        failed_before=list(plan.failed_before),
        budget=plan.budget,
        lossless_before=0 if plan.replaces_budget else plan.lossless,
        needed_bytes=plan.needed_bytes(spec),
        workers=max(1, min(options.workers or default_workers(), len(plan.todo) or 1)),
        encoders=max(1, min(len(recipes), len(plan.todo))),
    )
    if on_plan is not None:
        on_plan(summary)
    if options.dry_run:
        return summary
    if not plan.todo:
        if plan.replaces_storage or plan.replaces_budget:
            with ingest_lock(path, wait=options.lock_wait):
                with FeatureWriter(cache_dir, dataset) as writer:
                    writer.add_set(
                        spec,
                        plan.storage,
                        max_error=plan.budget.max_error,
                        replace_storage=plan.replaces_storage,
                        replace_max_error=True,
                    )
                write_cache_meta(cache_dir)
        return summary
    refuse_network(cache_dir)
    make_folder(path)
    _check_space(cache_dir, summary, options)
    options = replace(options, replace_storage=plan.replaces_storage)
    told: dict[str, Any] = {"stop": stop, "on_progress": on_progress}
    # Of a share, which is called with `most_bytes`, featstore status shows all rounds as one.
    status = Heartbeat(LocalPlace(cache_dir), dataset, on=most_bytes is None)
    with status, enough_descriptors(), ExitStack() as stack:
        try:
            status.watch(summary)
            work = decode_order(plan.todo)
            if engine is not None:
                told |= {"todo": work, "replaced": plan.replaced}
                engine.run(stack, summary, built, cache_dir, options, **told)
            else:
                start = partial(start_writer, stack, summary, built, cache_dir, options)
                used = recipes[: summary.encoders]
                scheduler = Scheduler(stack, summary, built, used, start, options=options, **told)
                scheduler.run(work, plan.replaced)
            status.finish(summary)
        finally:
            summary.seconds = time.monotonic() - started
            write_cache_meta(cache_dir)
    return summary


def _plan_beside(
    sealed: DatasetSnapshot,
    listing: Listing,
    spec: FeatureSpec,
    options: IngestOptions,
    storage: Storage | str | None,
) -> Plan:
    """Return the work that is left beside sealed shards, whatever the limit; StoreMismatch if they are to change.

    A video whose file was replaced since is a clash: with a second record in another shard, neither would be served.
    """
    plan = make_plan(listing, sealed, spec, replace(options, limit=None), storage)
    merge = "merge it into another cache (featstore merge) and ingest there without --shard"
    found = "" if options.resume else "all videos are asked to be made again"
    if plan.restored or plan.replaces_storage:
        found = "the feature set is asked to be stored in another way"
    if plan.replaces_budget:
        found = "the feature set is asked to have another error budget"
    if found:
        raise StoreMismatch(
            f"{sealed.path}: {found}, and a sealed shard is never changed",
            remedy=f"{merge}, or take another --dataset",
        )
    reason = "{} is left out: another file was sealed under this id, and a sealed shard is never changed; {}"
    changed = tuple(
        Failure(v.video_id, v.path, spec.digest, reason.format(v.path, merge), time.time())
        for v in plan.todo
        if v.video_id in plan.replaced
    )
    return replace(
        plan,
        todo=tuple(video for video in plan.todo if video.video_id not in plan.replaced),
        clashes=plan.clashes + changed,
    )


def check_target(cache_dir: str | os.PathLike[str], dataset: str, options: IngestOptions) -> Path:
    """Return the folder of the dataset to fill, before anything that takes time.

    Raises:
        StoreMismatch: no dataset can be called so.
        StoreError: it is sealed, and this is not a dry run.
    """
    path = dataset_path(cache_dir, dataset)
    if not options.dry_run:
        refuse_sealed(path)
    return path


def _check_space(
    cache_dir: str | os.PathLike[str], summary: IngestSummary, options: IngestOptions
) -> None:
    need = summary.needed_bytes
    free, min_free, max_size = free_bytes(cache_dir), options.min_free, options.max_size
    one, fewer = need // summary.planned, "take fewer with --limit, or "
    file_bytes = dataset_bytes(dataset_path(cache_dir, summary.dataset))
    if file_bytes + need > MAP_BYTES:
        raise StoreFull(
            f"the videos need {format_bytes(need)}, and a dataset's file holds {format_bytes(MAP_BYTES)}; {fewer}have "
            "the dataset made of shards, with --shard 0/1, or with --shard I/N in N processes"
        )
    if free - need < min_free:
        raise StoreFull(
            f"the videos need {format_bytes(need)}, {format_bytes(free)} are free in {cache_dir} and "
            f"{format_bytes(min_free)} are to stay free; "
            f"make room, {fewer if free - one >= min_free else 'or '}lower --min-free"
        )
    taken = stored_bytes(cache_dir)
    if max_size is not None and taken + need > max_size:
        raise StoreFull(
            f"the videos need {format_bytes(need)}, {cache_dir} takes {format_bytes(taken)} already and may take "
            f"{format_bytes(max_size)}; {fewer if taken + one <= max_size else ''}raise --max-size"
        )
