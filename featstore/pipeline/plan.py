"""The work of an ingest: the listed videos, minus what is stored already, in the order they are decoded.

Making a plan reads the catalog and the status of files, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.decoding.video_file import was_replaced
from featstore.errors import ListingError, StoreNotFound
from featstore.pipeline.options import IngestOptions
from featstore.records.sizes import record_bytes
from featstore.store import open_snapshot
from featstore.store.catalog import read_entry, read_failure, stored_spec, video_key
from featstore.store.paths import dataset_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.decoding.video_file import Video
    from featstore.pipeline.listing import Listing
    from featstore.spec import FeatureSpec
    from featstore.store import Snapshot
    from featstore.store.catalog import Entry, Failure

LARGEST_EVERY = 4


@dataclass(frozen=True)
class Plan:
    """What an ingest has to do.

    Attributes:
        todo: videos to encode, as listed; those whose file was replaced since are among them.
        stored: videos that are stored already.
        failed_before: videos left out because an earlier ingest failed on them.
        replaced: ids of those in `todo` that are stored from another file.
    """

    todo: tuple[Video, ...] = ()
    stored: tuple[Video, ...] = ()
    failed_before: tuple[Failure, ...] = ()
    replaced: frozenset[str] = frozenset()

    def needed_bytes(self, spec: FeatureSpec) -> int:
        """Return the most bytes that the records to make take under `spec`, uncompressed."""
        return len(self.todo) * record_bytes(spec)


def plan_ingest(
    videos: Listing,
    cache_dir: str | os.PathLike[str],
    dataset: str,
    spec: FeatureSpec,
    options: IngestOptions,
) -> Plan:
    """Return the work that `videos` are for the dataset as it is now, which need not exist; see `make_plan`."""
    try:
        snapshot = open_snapshot(dataset_path(cache_dir, dataset))
    except StoreNotFound:
        snapshot = None
    return make_plan(videos, snapshot, dataset, spec, options)


def make_plan(
    videos: Sequence[Video],
    snapshot: Snapshot | None,
    dataset: str,
    spec: FeatureSpec,
    options: IngestOptions | None = None,
) -> Plan:
    """Return the work that `videos` are, minus what `snapshot` holds under `spec`; nothing is decoded.

    A stored video whose file has another size, or another modification time and content, is work again; one whose
    file is gone stays stored. A failed video is work again if it was found damaged, or if its file changed since,
    whether failed videos are retried or not.

    Args:
        videos: each with an id of its own.
        snapshot: of the dataset, None if there is none yet.
        dataset: its name.
        spec: the feature set.
        options: `resume`, `retry_failed` and `limit` of them.

    Raises:
        ListingError: if an id names a file that is stored, and still exists, and now another one too.
    """
    options = options or IngestOptions()
    before = snapshot if options.resume else None
    todo: list[Video] = []
    stored: list[Video] = []
    failed_before: list[Failure] = []
    replaced, clashes = set(), []
    if snapshot:
        # Keys hold the tower's name as it was first ingested.
        spec = stored_spec(snapshot, spec) or spec
    for video in videos:
        key = video_key(spec, dataset, video.video_id)
        entry = read_entry(before, key) if before else None
        failure = read_failure(before, key) if before else None
        if entry is not None and not was_replaced(entry.source, video.path):
            stored.append(video)
        elif failure is not None and not (
            options.retry_failed or _is_worth_again(failure, video.path)
        ):
            failed_before.append(failure)
        else:
            if entry is not None:
                replaced.add(video.video_id)
                if _is_another(entry, video.path):
                    clashes.append(f"\n  {video.video_id!r}: {entry.video_path} and {video.path}")
            todo.append(video)
    if clashes:
        raise ListingError(
            f"{len(clashes)} video ids name other files that are stored already; give each file its own id in a "
            "manifest (--manifest, columns video_id and path), take another --dataset, or remove what is stored with "
            f"featstore rm --video:{''.join(clashes[:5])}"
        )
    return Plan(
        tuple(todo[: options.limit]), tuple(stored), tuple(failed_before), frozenset(replaced)
    )


def decode_order(videos: Sequence[Video]) -> list[Video]:
    """Return `videos` in the order to decode them, long ones early and spread out; file size stands for length.

    Left for last, a two-hour film keeps one core busy while the others and the encoder wait for it. With all long ones
    first the encoder waits at the start, with every worker at its memory's peak, and the cores wait for the encoder at
    the end. So every fourth place goes to the largest file left, and the others follow the listing.
    """
    by_size = iter(sorted(videos, key=lambda video: -_size(video.path)))
    listed = iter(videos)
    taken: set[str] = set()
    order = []
    for place in range(len(videos)):
        source = by_size if place % LARGEST_EVERY == 0 else listed
        video = next(video for video in source if video.video_id not in taken)
        taken.add(video.video_id)
        order.append(video)
    return order


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def _is_worth_again(failure: Failure, path: str) -> bool:
    """Return whether a failed video is work though nobody asked for a retry: its file may be whole now."""
    if failure.damaged:
        return True
    with contextlib.suppress(OSError, ValueError):
        # Also a file that was moved here with its old modification time, or if the clock was ahead when it failed.
        return os.stat(path).st_ctime > failure.created or failure.created > time.time()
    return False


def _is_another(entry: Entry, path: str) -> bool:
    """Return whether the file `entry` was made from still exists, beside the one at `path`."""
    before = entry.video_path
    with contextlib.suppress(OSError, ValueError):
        return (
            not os.path.samefile(before, path)
            and os.path.isfile(before)
            and not was_replaced(entry.source, before)
        )
    return False
