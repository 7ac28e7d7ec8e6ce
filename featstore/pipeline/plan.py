"""The work of an ingest: the listed videos, minus what is stored already, in the order they are decoded.

Making a plan reads the catalog and the status of files, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from itertools import compress, islice, tee
from operator import itemgetter, not_
from pathlib import PurePath
from typing import TYPE_CHECKING

from featstore import defaults
from featstore.decoding.video_file import was_replaced
from featstore.errors import ListingError, StoreDamaged, StoreNotFound, command_line
from featstore.pipeline.make_record import largest_shape
from featstore.pipeline.options import IngestOptions
from featstore.records.budget import ErrorBudget
from featstore.records.storage import Storage, storage_for
from featstore.store import open_snapshot
from featstore.store.catalog import read_manifest, read_set
from featstore.store.manifest import Counts
from featstore.store.paths import dataset_path
from featstore.store.rows import Failure, entries_of, set_key, unpack_failure, video_key
from featstore.store.selection import wanted_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from featstore.decoding.video_file import Video
    from featstore.pipeline.listing import Listing
    from featstore.spec import FeatureSpec
    from featstore.store import DatasetSnapshot
    from featstore.store.rows import Entry

LARGEST_EVERY = 4
# A listing of more videos, and of more than an eighth of those of the feature set, is compared with all rows in one
# walk: a look-up of a row takes as long as walking past a dozen.
FEW_VIDEOS = 1_000
# What the reason says of a file that was not there, or could not be read; see featstore.decoding.video_file.
_UNREAD = ("{} cannot be opened: ", "{} cannot be read: ")


@dataclass(frozen=True)
class Plan:
    """What an ingest has to do.

    Attributes:
        storage: how features are stored: as asked for, or as the feature set's are.
        todo: videos to encode, as listed; those whose file was replaced since are among them.
        stored: videos that are stored already.
        failed_before: videos left out because an earlier ingest failed on them.
        clashes: videos left out because another file is stored under their ids, and still there; none is recorded.
        replaced: ids of those in `todo` that are stored from another file.
        restored: number of those in `todo` that are stored in another way than the feature set is to be.
        replaces_storage: the feature set is there, and its row is to say `storage` from now on.
        beyond_limit: number of videos that `limit` leaves for later.
        budget: the error budget: as asked for, or as the feature set's is.
        replaces_budget: the feature set is there, and its row is to say the budget from now on.
        lossless: number of those in `stored` that are stored losslessly though the feature set is not.
    """

    storage: Storage
    todo: tuple[Video, ...] = ()
    stored: tuple[Video, ...] = ()
    failed_before: tuple[Failure, ...] = ()
    clashes: tuple[Failure, ...] = ()
    replaced: frozenset[str] = frozenset()
    restored: int = 0
    replaces_storage: bool = False
    beyond_limit: int = 0
    budget: ErrorBudget = field(default_factory=ErrorBudget)
    replaces_budget: bool = False
    lossless: int = 0

    def needed_bytes(self, spec: FeatureSpec) -> int:
        """Return the most bytes that the records to make usually take under `spec`."""
        size = self.storage.record_bytes(largest_shape(spec), spec.sampling.nframe)
        return round(len(self.todo) * size / self.storage.ratios[0])


def plan_ingest(
    videos: Listing,
    cache_dir: str | os.PathLike[str],
    dataset: str,
    spec: FeatureSpec,
    options: IngestOptions,
    storage: Storage | str | None = None,
) -> Plan:
    """Return the work that `videos` are for the dataset as it is now, which need not exist; see `make_plan`."""
    snapshot = None
    with contextlib.suppress(StoreNotFound):
        snapshot = open_snapshot(dataset_path(cache_dir, dataset))
        read_manifest(snapshot, dataset)  # refuses what is not this dataset
    return make_plan(videos, snapshot, spec, options, storage)


def make_plan(
    videos: Sequence[Video],
    snapshot: DatasetSnapshot | None,
    spec: FeatureSpec,
    options: IngestOptions | None = None,
    storage: Storage | str | None = None,
) -> Plan:
    """Return the work that `videos` are, minus what `snapshot` holds under `spec`; nothing is decoded.

    A stored video whose file has another size, or another modification time and content, is work again; one whose
    file is gone stays stored. If the feature set's storage was replaced, a video that was made before is work again,
    unless it is stored as the set says.
    A failed video is work again, whether failed videos are retried or not, if it was found damaged; if it failed on
    another path; if its file, or a link to it, changed since; if its file could not be read then and can be now; or if
    the feature set's storage was replaced since.

    Takes some 200 bytes a video beside the plan itself, however many are stored, and some ten microseconds beside what
    the status of its file takes.

    Args:
        videos: each with an id of its own.
        snapshot: of the dataset, None if there is none yet.
        spec: the feature set.
        options: `resume`, `retry_failed`, `replace_storage`, `on_clash` and `limit` of them.
        storage: how features are to be stored, a Storage or `lossless`; None follows the feature set.

    Raises:
        ListingError: with `on_clash` `error`, if an id names a stored file that still exists, and now another one.
        StoreMismatch: if the feature set is stored in another way, and `replace_storage` is not set.
    """
    options = options or IngestOptions()
    storage = storage_for(storage, spec.encoder.dtype)
    there = None if snapshot is None else read_set(snapshot, spec.digest)
    followed = defaults.MAX_ERROR if there is None else there.max_error
    budget = ErrorBudget.of(options.max_error, followed, options.on_max_error)
    wanted = wanted_set(there, storage, options.replace_storage)
    failures: dict[int, Failure] = {}
    clashes: dict[int, str] = {}  # the path of the file that is stored
    stored = bytearray(len(videos))  # 1 for a video that is
    otherwise = bytearray(len(videos))  # 1 for one that is, in another way than it is to be
    replaced, lossless = set[str](), 0
    if snapshot is not None and wanted is not None:
        digest = spec.digest
        places = {video_key(digest, v.video_id): place for place, v in enumerate(videos)}
        counts = read_manifest(snapshot).sets.get(digest, Counts())
        if options.resume and not options.retry_failed:
            rows = _known_rows(snapshot, "failures", counts.failures, places, digest)
            for place, data in rows:
                with contextlib.suppress(StoreDamaged):  # not known why it failed: work again
                    failure = unpack_failure(data)
                    if not _is_worth_again(failure, videos[place].path, wanted.storage_since):
                        failures[place] = failure
        known_places, rows = tee(_known_rows(snapshot, "catalog", counts.videos, places, digest))
        entries = entries_of(digest, map(itemgetter(1), rows))
        for (place, _), entry in zip(known_places, entries, strict=True):
            video = videos[place]
            if not was_replaced(entry, video.path, entry.video_path):
                otherwise[place] = bool(wanted.storage_since) and wanted.differs(entry)
                stored[place] = options.resume and not otherwise[place]
                lossless += stored[place] and wanted.is_lossless(entry)
            elif place not in failures:
                replaced.add(video.video_id)
                if _is_another(entry, video.path):
                    clashes[place] = entry.video_path
        if clashes and options.on_clash == "error":
            raise _clash(videos, sorted(clashes.items()), snapshot.path, digest)
    known = bytearray(stored)
    for place in failures | clashes:
        known[place] = 1
    todo = tuple(compress(videos, map(not_, known)))[: options.limit]
    restored = sum(islice(compress(otherwise, map(not_, known)), options.limit))
    return Plan(
        storage=wanted.storage if wanted else storage or Storage(),
        todo=todo,
        stored=tuple(compress(videos, stored)),
        failed_before=tuple(failures[at] for at in sorted(failures) if not stored[at]),
        clashes=tuple(_left_out(videos[at], clashes[at], spec.digest) for at in sorted(clashes)),
        replaced=frozenset(video.video_id for video in todo if video.video_id in replaced),
        restored=restored,
        replaces_storage=wanted is not there,
        beyond_limit=known.count(0) - len(todo),
        budget=budget,
        replaces_budget=there is not None and there.max_error != budget.max_error,
        lossless=lossless,
    )


def _known_rows(
    snapshot: DatasetSnapshot, table: str, count: int, places: dict[bytes, int], digest: str
) -> Iterator[tuple[int, bytes]]:
    """Yield the place in the listing and the row of each listed video that has one of the `count` in a table.

    Args:
        snapshot: of the dataset.
        table: `catalog` or `failures`.
        count: number of the feature set's rows in it.
        places: the listed videos by their keys.
        digest: of the feature set.
    """
    if len(places) <= FEW_VIDEOS or len(places) * 8 <= count:
        for key, place in places.items():
            if (data := snapshot.read(table, key)) is not None:
                yield place, data
        return
    for key, data in snapshot.rows(table, set_key(digest)):
        if (known := places.get(key)) is not None:
            yield known, data


def _left_out(video: Video, before: str, digest: str) -> Failure:
    reason = f"{video.path} is left out, for the id is that of {before}, which is stored and there"
    return Failure(video.video_id, video.path, digest, reason, time.time())


def _clash(
    videos: Sequence[Video], clashes: list[tuple[int, str]], path: Path, digest: str
) -> ListingError:
    ids = [videos[place].video_id for place, _ in clashes[:5]]
    remove = command_line(
        "rm", cache_dir=path.parent, dataset=path.name, spec=digest[:8], video=ids
    )
    listed = [
        f"\n  {videos[place].video_id!r}: {before} and {videos[place].path}"
        for place, before in clashes[:5]
    ]
    return ListingError(
        f"{len(clashes)} video ids name other files that are stored already; give each file its own id in a "
        "manifest (--manifest, columns video_id and path), take another --dataset, leave them out with "
        "--on-clash skip, or remove what is stored: "
        f"{remove}{''.join(listed)}"
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
    with contextlib.suppress(OSError, ValueError):
        return os.stat(path).st_size
    return 0


def _is_worth_again(failure: Failure, path: str, storage_since: float) -> bool:
    """Return whether a failed video is work though nobody asked for a retry: what failed may be mended now.

    Args:
        failure: its row.
        path: the file that is listed now.
        storage_since: when the storage of the feature set was replaced.
    """
    if failure.damaged or failure.video_path != path or failure.created < storage_since:
        return True
    with contextlib.suppress(OSError, ValueError):
        # Also a file that was moved here with its old modification time, or if the clock was ahead when it failed.
        changed = max([os.stat(path).st_ctime, *(os.lstat(link).st_ctime for link in _links(path))])
        was_away = failure.reason.startswith(tuple(said.format(path) for said in _UNREAD))
        return (
            changed > failure.created
            or failure.created > time.time()
            or (was_away and os.access(path, os.R_OK))
        )
    return False


def _links(path: str) -> Iterator[str]:
    """Yield the links that lead from `path`, which is there, to its file: of a folder on the way, too."""
    for place in (path, *map(str, PurePath(path).parents)):
        if os.path.islink(place):
            yield place
            yield from _links(os.path.join(os.path.dirname(place), os.readlink(place)))


def _is_another(entry: Entry, path: str) -> bool:
    """Return whether the file `entry` was made from still exists, beside the one at `path`."""
    before = entry.video_path
    with contextlib.suppress(OSError, ValueError):
        return (
            not os.path.samefile(before, path)
            and os.path.isfile(before)
            and not was_replaced(entry, before)
        )
    return False
