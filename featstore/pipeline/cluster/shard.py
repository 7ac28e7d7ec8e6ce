"""Ingest a share of the videos, one of several processes' on any machines, and add it to the dataset as sealed shards.

Which videos a process takes follows from their ids alone, so that nobody coordinates, and a listing that grows moves
none from one process to another. It writes an environment of its own, on a local disk, and seals it when it is done, or
whenever it is as large as a shard is to be; what sealed shards hold is left out by all that come after.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import xxhash

from featstore import defaults
from featstore.errors import StoreError, StoreNotFound
from featstore.pipeline.ingest import ingest
from featstore.pipeline.listing import Listing, list_videos
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.write.heartbeat import Heartbeat
from featstore.store import open_snapshot
from featstore.store.describe import write_cache_meta
from featstore.store.maintenance.remove import remove_dataset
from featstore.store.maintenance.seal_shard import seal_shard
from featstore.store.paths import META_FILE, absolute, dataset_path, has_data, is_sharded
from featstore.store.shards.places import LocalPlace
from featstore.store.shards.remote.connection import read_remote
from featstore.system.filesystems import unreliable_kind

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from featstore.decoding.video_file import Video
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.summary import IngestSummary, Progress
    from featstore.records.storage import Storage
    from featstore.sampling import Sampling
    from featstore.store import DatasetSnapshot

AUTO = "auto"
MAX_SHARDS = 1 << 20


@dataclass(frozen=True)
class Share:
    """One of `count` shares of any listing, numbered from 0.

    >>> Share.parse("3/8")
    Share(number=3, count=8)
    >>> Share.parse("8/8")
    Traceback (most recent call last):
    ValueError: there is no share 8 of 8; they are numbered from 0/8 to 7/8
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        """Refuse a share that there is not."""
        if not 1 <= self.count <= MAX_SHARDS:
            raise ValueError(f"there can be 1 to {MAX_SHARDS} shares, not {self.count}")
        if not 0 <= self.number < self.count:
            raise ValueError(
                f"there is no share {self.number} of {self.count}; they are numbered from 0/{self.count} to "
                f"{self.count - 1}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Share:
        """Return the share that `I/N` names, or, for `auto`, that of this task of Slurm's or torchrun's.

        Args:
            text: `I/N` or `auto`.
            environ: Has for `auto` an array's SLURM_ARRAY_TASK_ID, _MIN, _STEP and _COUNT, or RANK and WORLD_SIZE, or
                a job step's SLURM_PROCID and SLURM_NTASKS: the first of these that are there.
        """
        if text != AUTO:
            match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
            if not match:
                raise ValueError(f"{text!r} is no share; write I/N, as 0/4, or {AUTO}")
            return cls(int(match[1]), int(match[2]))
        try:
            if "SLURM_ARRAY_TASK_COUNT" in environ:
                at, first = (int(environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN"))
                step = int(environ.get("SLURM_ARRAY_TASK_STEP", "1"))
                return cls((at - first) // step, int(environ["SLURM_ARRAY_TASK_COUNT"]))
            for number, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
                if number in environ and count in environ:
                    return cls(int(environ[number]), int(environ[count]))
        except (KeyError, ZeroDivisionError) as exc:
            raise ValueError(f"the environment does not say which share is meant: {exc}") from exc
        raise ValueError(
            f"{AUTO} takes the share from SLURM_ARRAY_TASK_ID and _COUNT, RANK and WORLD_SIZE, or SLURM_PROCID and "
            "SLURM_NTASKS, none of which are set; write I/N, as 0/4"
        )

    def takes(self, video_id: str) -> bool:
        """Return whether a video is in this share."""
        data = video_id.encode("utf-8", "surrogatepass")
        return xxhash.xxh3_64_intdigest(data) % self.count == self.number

    def of(self, videos: Iterable[Video]) -> Listing:
        """Return the videos of a listing that are in this share, the largest files first."""
        return Listing(sorted(filter(lambda v: self.takes(v.video_id), videos), key=_longest_first))

    def __str__(self) -> str:
        """Return the name of its folder and its status."""
        return f"{self.number}-of-{self.count}"


def ingest_share(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Video],
    cache_dir: str | os.PathLike[str],
    dataset: str,
    share: Share,
    *,
    shard_dir: str | os.PathLike[str] | None = None,
    shard_bytes: int = defaults.SHARD_BYTES,
    encoder: Encoder | list[EncoderRecipe],
    sampling: Sampling | None = None,
    storage: Storage | str | None = None,
    options: IngestOptions | None = None,
    stop: threading.Event | None = None,
    on_plan: Callable[[IngestSummary], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> IngestSummary:
    """Store the features of a share of `videos` in sealed shards of `cache_dir/dataset`, as `featstore.ingest` does.

    If it is killed, the same call goes on with what was committed; an interrupted one seals nothing. Other arguments
    and what is raised are those of `featstore.ingest`.

    Args:
        videos: All videos, the same for every share.
        cache_dir: The folder of datasets, which may be on a network file system.
        dataset: The dataset's name.
        share: Which of the videos to take.
        shard_dir: A folder on a local disk for what is not sealed yet; by default it is in `cache_dir`.
        shard_bytes: Seal whenever that many bytes are stored.

    Returns:
        What was stored and what failed, of all shards that were written.

    Raises:
        StoreMismatch: A video was sealed from another file, or in another way, than now.
        StoreError: The dataset is one file, or what is not sealed yet would be on a network file system.
    """
    cache_dir, options = absolute(cache_dir), options or IngestOptions()
    path = dataset_path(cache_dir, dataset)
    _refuse_others(path)
    work = work_folder(cache_dir, dataset, share, shard_dir)
    place = LocalPlace(cache_dir)
    listed = videos if isinstance(videos, Listing) else list_videos(_places(videos))
    taken = share.of(listed)
    total: IngestSummary | None = None
    with Heartbeat(place, dataset, str(share), len(taken), on=not options.dry_run) as heartbeat:

        def note_plan(plan: IngestSummary) -> None:
            heartbeat.watch(plan)
            if on_plan is not None:
                on_plan(plan)

        while True:
            sealed = _sealed(path)
            _drop_if_sealed(work, dataset, sealed)
            summary = ingest(
                taken,
                work,
                dataset,
                encoder=encoder,
                sampling=sampling,
                storage=storage,
                options=options,
                stop=stop,
                on_plan=note_plan,
                on_progress=on_progress,
                sealed=sealed,
                most_bytes=shard_bytes,
            )
            total = summary if total is None else _added(total, summary)
            if options.dry_run or summary.interrupted or summary.full or summary.over_budget:
                break
            heartbeat.state = "sealing"
            if has_data(work / dataset):
                seal_shard(work, dataset, place)
                remove_dataset(work, dataset)
                write_cache_meta(cache_dir)
            done = summary.stored + len(summary.failures)
            if options.limit is not None:
                options = replace(options, limit=max(0, options.limit - done))
            if not summary.beyond_limit or options.limit == 0:
                break
            # What failed now is not tried again by the next round.
            options = replace(options, resume=True, retry_failed=False)
        heartbeat.finish(total)
    _leave(work, dataset)
    return total


def work_folder(
    cache_dir: Path, dataset: str, share: Share, shard_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Return the cache directory of what a share has not sealed; StoreError if it is on a network file system."""
    of = xxhash.xxh3_64_hexdigest(os.fsencode(os.path.realpath(cache_dir)))[:8]
    root = cache_dir if shard_dir is None else absolute(shard_dir)
    kind = unreliable_kind(root)
    if kind is not None:
        raise StoreError(
            f"{root} is on a network file system ({kind}), where no LMDB file can be written",
            remedy="name a folder on a local disk with --shard-dir; the sealed shards are copied from there",
        )
    return root / f".shards-{dataset}-{of}" / str(share)


def _places(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Video],
) -> Iterable[str | os.PathLike[str] | Video]:
    return [videos] if isinstance(videos, (str, os.PathLike)) else videos


def _refuse_others(path: Path) -> None:
    remote = read_remote(path.parent)
    if remote is not None:
        raise StoreError(
            f"{path.parent} has single records of {remote.url}, and no shards",
            remedy="ingest into another --cache-dir, and push from there",
        )
    if has_data(path):
        raise StoreError(
            f"{path} is one file, and no dataset is both that and shards",
            remedy="ingest without --shard, or take another --dataset",
        )


def _longest_first(video: Video) -> tuple[int, str]:
    size = 0
    with suppress(OSError, ValueError):
        size = os.stat(video.path).st_size
    return -size, video.video_id


def _sealed(path: Path) -> DatasetSnapshot | None:
    """Return what the sealed shards hold, None if there are none."""
    if not is_sharded(path):
        return None
    with suppress(StoreNotFound):
        return open_snapshot(path)
    return None


def _drop_if_sealed(work: Path, dataset: str, sealed: DatasetSnapshot | None) -> None:
    """Remove what a run left that was killed after it sealed all of it."""
    if sealed is None or not has_data(work / dataset):
        return
    here = open_snapshot(work / dataset)
    rows = [*here.rows("catalog")]
    failures = [*here.rows("failures")]
    if (rows or failures) and (
        all(sealed.read("catalog", key) == row for key, row in rows)
        and all(sealed.read("failures", key) == row for key, row in failures)
    ):
        remove_dataset(work, dataset)


def _leave(work: Path, dataset: str) -> None:
    """Remove the folders of a share that has nothing left to be sealed."""
    if has_data(work / dataset):
        return
    with suppress(OSError):  # not there, or another share is at work beside it
        (work / META_FILE).unlink(missing_ok=True)  # a run that was killed here has removed it
        os.rmdir(work)
        os.rmdir(work.parent)


def _added(total: IngestSummary, more: IngestSummary) -> IngestSummary:
    """Return the summary of two rounds; what was left out is told by the first, what is left by the last."""
    busy = {stage: total.busy[stage] + more.busy[stage] for stage in total.busy}
    sums = ("stored", "record_bytes", "seconds", "working_seconds", "missed", "lossless")
    return replace(
        total,
        **{name: getattr(total, name) + getattr(more, name) for name in (*sums, "lossless_bytes")},
        planned=total.planned + more.planned,
        beyond_limit=more.beyond_limit,
        failures=total.failures + more.failures,
        interrupted=more.interrupted,
        full=more.full,
        over_budget=more.over_budget,
        decoders=_counted(total.decoders, more.decoders),
        doubts=_counted(total.doubts, more.doubts),
        busy=busy,
    )


def _counted(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}
