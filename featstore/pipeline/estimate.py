"""What an ingest will take: hours of video, and bytes for each storage. No frame is decoded.

Bytes are those of the file: a record's prefix and payload begin on pages of LMDB, and each video has rows in its tree.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featstore.decoding.av_file import stated_length
from featstore.decoding.video_file import check_is_file
from featstore.errors import VideoError
from featstore.records.storage import MAX_PAYLOAD_BYTES, MAX_PREFIX_BYTES, PAGE, Storage
from featstore.store import MAP_BYTES
from featstore.store.paths import DATA_FILE, dataset_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from featstore.decoding.av_file import StatedLength
    from featstore.decoding.video_file import Video
    from featstore.geometry import Geometry
    from featstore.pipeline.plan import Plan
    from featstore.sampling import Sampling
    from featstore.store.rows import Failure

# What a plan compares, beside the storage that is asked for.
STORAGES = (
    Storage("int8", "channel_token"),
    Storage("int8", "channel"),
    Storage("bf16", codec="planes"),
    Storage("fp16", codec="planes"),
    Storage("bf16"),
    Storage("fp16"),
    Storage("fp32"),
)
# Bytes of a record's header, and of a video's two rows with the tree's nodes and the pages' empty thirds; beside its id
# and its path, which are in both. Measured on stores of 3 to 3,000 videos.
_HEADER_BYTES = 650
_ROW_BYTES = 306
_FILLED = 0.66
# Pages of a new file beside these: LMDB's two, the manifest, the tree's top and what one commit leaves to the next.
_FIRST_PAGES = 7
_READERS = 16  # threads that read the heads of files; on a network each waits


@dataclass(frozen=True)
class Clips:
    """Videos, as far as their size matters.

    Attributes:
        frames: number of videos by how many of their frames are taken.
        names_bytes: bytes of their ids and paths.
        seconds: how long they are together; None if nobody knows.
    """

    frames: Counter[int]
    names_bytes: int = 0
    seconds: float | None = None

    @property
    def count(self) -> int:
        """Return the number of videos."""
        return self.frames.total()

    @property
    def frames_taken(self) -> int:
        """Return the number of frames of all videos."""
        return sum(frames * count for frames, count in self.frames.items())


@dataclass(frozen=True)
class Estimate:
    """What an ingest of one dataset will take.

    Attributes:
        dataset: its name.
        storage: how features are stored.
        geometry: the rows that the encoder makes.
        clips: the videos to ingest whose files can be read.
        videos: number of videos listed; each once.
        questions: number of questions about them, if they are a benchmark's.
        todo: the videos to ingest; none of a guess.
        stored: number of videos stored already.
        replaced: number of those to ingest that are stored from another file.
        clashes: videos left out because another file is stored under their ids.
        restored: number of those to ingest that are stored in another way.
        failed_before: videos left out because an earlier ingest failed on them.
        unreadable: why a video's file cannot be read, by its id; an ingest would fail on them.
        file_bytes: bytes of the dataset's file now.
        frame_bytes: bytes of a record that a frame takes as `storage`, as measured; 0 if they are computed.
    """

    dataset: str
    storage: Storage
    geometry: Geometry
    clips: Clips
    videos: int
    questions: int | None = None
    todo: tuple[Video, ...] = ()
    stored: int = 0
    replaced: int = 0
    clashes: tuple[Failure, ...] = ()
    restored: int = 0
    failed_before: tuple[Failure, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    file_bytes: int = 0
    frame_bytes: float = 0.0

    def needed_bytes(self, storage: Storage | None = None) -> tuple[int, int] | None:
        """Return the bytes, least and most, by which the file grows; None if a record cannot be so large.

        Args:
            storage: how features are stored; that of the estimate by default.
        """
        storage = storage or self.storage
        if not self.clips.count:
            return 0, 0
        least, most = storage.ratios
        if not _is_record(storage, self.geometry, max(self.clips.frames)):
            return None
        ends = [
            _records_bytes(storage, self.geometry, self.clips, ratio) for ratio in (most, least)
        ]
        if self.frame_bytes and storage == self.storage:
            ends = [round(self.clips.frames_taken * self.frame_bytes)] * 2
        rows = self.clips.count * _ROW_BYTES + self.clips.names_bytes
        beside = (_pages(rows / _FILLED) + _FIRST_PAGES) * PAGE
        return ends[0] + beside, ends[1] + beside

    @property
    def files(self) -> int:
        """Return how many files of the most that a dataset's may hold the dataset needs."""
        _, most = self.needed_bytes() or (0, 0)
        return -(-(self.file_bytes + most) // MAP_BYTES) or 1


def storages_of(estimates: Sequence[Estimate]) -> list[Storage]:
    """Return the storages to compare: those that the estimates are for, then the usual ones."""
    return list(dict.fromkeys([*(estimate.storage for estimate in estimates), *STORAGES]))


def _is_record(storage: Storage, geometry: Geometry, frames: int) -> bool:
    """Return whether a record can hold the features of so many frames."""
    shape = geometry.max_rows(frames), geometry.row_width
    prefix, payload = storage.record_room(shape, frames)
    return prefix <= MAX_PREFIX_BYTES and payload <= MAX_PAYLOAD_BYTES


def _records_bytes(storage: Storage, geometry: Geometry, clips: Clips, ratio: float) -> int:
    names, total = clips.names_bytes / clips.count, 0
    for frames, count in clips.frames.items():
        shape = geometry.max_rows(frames), geometry.row_width
        payload = storage.payload_bytes(shape)
        prefix = _HEADER_BYTES + names + 4 * frames + storage.scale_bytes(shape)
        total += count * (_pages(prefix) + _pages(payload / ratio))
    return total * PAGE


def _pages(size: float) -> int:
    return -(-round(size) // PAGE)


def estimate_ingest(
    plan: Plan,
    cache_dir: str | os.PathLike[str],
    dataset: str,
    geometry: Geometry,
    sampling: Sampling,
    *,
    on_read: Callable[[int], None] | None = None,
) -> Estimate:
    """Return what the work of a plan will take; the head of each file is read, and a bad one is only counted.

    Args:
        plan: the work.
        cache_dir: the folder of datasets, which need not exist.
        dataset: the dataset's name.
        geometry: the rows that the encoder makes.
        sampling: which frames are taken.
        on_read: called with 1 for each file.
    """
    frames: Counter[int] = Counter()
    unreadable, seconds, names = {}, 0.0, 0
    for video, length in zip(plan.todo, _read_lengths(plan.todo, on_read), strict=True):
        if isinstance(length, VideoError):
            unreadable[video.video_id] = str(length)
            continue
        frames[frames_taken(sampling, length.frames, length.fps)] += 1
        seconds += length.seconds
        names += len(os.fsencode(video.path)) + len(video.video_id.encode(errors="replace"))
    return Estimate(
        dataset=dataset,
        storage=plan.storage,
        geometry=geometry,
        clips=Clips(frames, names, seconds),
        videos=sum(map(len, (plan.todo, plan.stored, plan.failed_before, plan.clashes))),
        todo=plan.todo,
        stored=len(plan.stored),
        replaced=len(plan.replaced),
        clashes=plan.clashes,
        restored=plan.restored,
        failed_before=plan.failed_before,
        unreadable=unreadable,
        file_bytes=_size(dataset_path(cache_dir, dataset) / DATA_FILE),
    )


def guess_clips(videos: int, seconds: float | None, sampling: Sampling) -> Clips:
    """Return videos of which only the number, and how long they are together, is known: of equal lengths, at 30 fps."""
    rate = 30.0
    whole = round((seconds or 0.0) / videos * rate)
    return Clips(Counter({frames_taken(sampling, whole, rate): videos}), seconds=seconds)


def frames_taken(sampling: Sampling, total_frames: int, fps: float) -> int:
    """Return how many frames are taken of a clip; the most there can be if it states neither length nor rate."""
    if sampling.policy != "fps" or total_frames < 1 or not fps > 0:
        return sampling.nframe
    return len(sampling.indices(total_frames, fps))


def _read_lengths(
    videos: Sequence[Video], on_read: Callable[[int], None] | None
) -> list[StatedLength | VideoError]:
    found = []
    pool = ThreadPoolExecutor(_READERS)
    try:
        for length in pool.map(_length, [video.path for video in videos]):
            found.append(length)
            if on_read is not None:
                on_read(1)
    finally:  # after an interrupt, too
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _length(path: str) -> StatedLength | VideoError:
    try:
        check_is_file(path)
        return stated_length(path)
    except VideoError as exc:
        return exc


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
