"""What the rows of a cache say, summed up as they are read: a million of them take seconds and a bounded memory."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featstore.errors import FeatstoreError
from featstore.records.storage import storage_text
from featstore.store.catalog import (
    has_entry,
    open_dataset,
    read_entries,
    read_failure,
    read_failures,
    read_manifest,
    read_sets,
)
from featstore.store.lost import closed_datasets, lost_datasets
from featstore.store.paths import dataset_names
from featstore.store.rows import Entry, video_key

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from featstore.store import DatasetSnapshot
    from featstore.store.rows import Failure, FeatureSet

WORST = 10  # videos that are named
PERIOD = 10  # seconds: how finely it is counted when videos were stored
# Ends of the bins of token errors, 40 to a factor of ten: 0.001 % to 1000 %.
ERROR_ENDS = np.logspace(-5, 1, 241)
_ROWS = 8192  # read at once
_REASONS = 1000  # of failures that are told apart
_EXAMPLES, _MISSING = 3, 20  # videos named of a reason, and of those that are not stored
_LATEST = 1 << 33  # seconds since 1970, the year 2242: what is later is no time


class WorstVideo(NamedTuple):
    """A video whose tokens are far from the encoder's: relative L2 of the 99th percentile and of the largest."""

    token_p99: float
    token_max: float
    video_id: str


@dataclass
class Reason:
    """Why videos failed: the reason as the first has it, without its path; how many, and the first few."""

    text: str
    videos: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class SetSurvey:
    """What a feature set has.

    Attributes:
        dataset: name of the dataset.
        row: what the set is.
        is_default: whether it is the dataset's default set.
        videos: finished videos; `frames` encoded and `record_bytes` of them.
        storages: number of videos by how they are stored.
        decoders: number of videos by what decoded them, and by doubt in `doubts`, without those that have none.
        errors: number of videos by bin of ERROR_ENDS, of the 99th percentile of a token's error. Of imported features,
            whose error nobody knows, no video is in a bin, `exact`, `beyond` or `worst`.
        exact: number of videos whose tokens have no error; they are in no bin.
        beyond: number of videos that missed the set's error budget.
        worst: the videos with the largest errors, the worst first.
        stored: number of videos and bytes by when they were stored, in periods since 1970.
        failures: by a text without path and numbers.
    """

    dataset: str
    row: FeatureSet
    is_default: bool
    videos: int = 0
    frames: int = 0
    record_bytes: int = 0
    storages: Counter[str] = field(default_factory=Counter)
    decoders: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    errors: list[int] = field(default_factory=lambda: [0] * (len(ERROR_ENDS) - 1))
    exact: int = 0
    beyond: int = 0
    worst: list[WorstVideo] = field(default_factory=list)
    stored: dict[int, tuple[int, int]] = field(default_factory=dict)
    failures: dict[str, Reason] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Return the number of videos that failed."""
        return sum(reason.videos for reason in self.failures.values())


@dataclass(frozen=True)
class Coverage:
    """How much of a list of videos is stored.

    Attributes:
        dataset: name of the dataset.
        videos: number of videos of the list; None if it is not known.
        stored: those in the default set.
        failed: those that failed in it.
        missing: the first of those that are neither, if the list is known.
    """

    dataset: str
    videos: int | None
    stored: int
    failed: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheSurvey:
    """What a cache has: its feature sets; why datasets cannot be read, by name; what is stored of lists."""

    sets: list[SetSurvey]
    errors: dict[str, str]
    coverage: list[Coverage]


def survey_cache(
    cache_dir: str | os.PathLike[str],
    *,
    counts: Mapping[str, int | None],
    listed: Mapping[str, list[str]],
    on_rows: Callable[[int], None] = lambda rows: None,
) -> CacheSurvey:
    """Return what the rows of all datasets say.

    Args:
        cache_dir: the cache directory.
        counts: datasets to report coverage of if there are such, and how many videos they have, None if that is not
            known.
        listed: ids of all videos of a dataset, by its name, if they are known.
        on_rows: called with the number of rows read so far.

    Raises:
        StoreNotFound: there is no such directory.
    """
    sets: list[SetSurvey] = []
    errors = lost_datasets(cache_dir) | closed_datasets(cache_dir)
    there = {*dataset_names(cache_dir), *errors}
    coverage = {n: Coverage(n, count, 0, 0) for n, count in counts.items() if n in there}
    coverage |= {n: Coverage(n, len(ids), 0, 0, tuple(ids[:_MISSING])) for n, ids in listed.items()}
    for name in dataset_names(cache_dir):
        try:
            snapshot = open_dataset(cache_dir, name)
            default = read_manifest(snapshot, name).default
            for digest, row in read_sets(snapshot).items():
                found = SetSurvey(name, row, digest == default)
                before = sum(there.videos for there in sets)
                _count(found, snapshot, lambda rows, before=before: on_rows(before + rows))  # type: ignore[misc]
                sets.append(found)
                if found.is_default and name in coverage:
                    coverage[name] = _cover(
                        snapshot, found, coverage[name].videos, listed.get(name)
                    )
        except FeatstoreError as exc:
            errors[name] = str(exc)
    return CacheSurvey(sets, dict(sorted(errors.items())), list(coverage.values()))


def _count(found: SetSurvey, snapshot: DatasetSnapshot, on_rows: Callable[[int], None]) -> None:
    entries = read_entries(snapshot, found.row.spec.digest)
    while rows := list(islice(entries, _ROWS)):
        _add(found, rows)
        on_rows(found.videos)
    for failure in read_failures(snapshot, found.row.spec.digest):
        _add_failure(found.failures, failure)


def _add(found: SetSurvey, rows: list[Entry]) -> None:
    columns: Any = Entry._make(zip(*rows, strict=True))  # each field is a column
    found.videos += len(rows)
    found.frames += sum(columns.frames)
    found.record_bytes += sum(columns.record_bytes)
    found.decoders.update(columns.decoder)
    found.doubts.update(filter(None, columns.doubt))
    storages = Counter(zip(columns.values, columns.granularity, columns.codec, strict=True))
    for storage, videos in storages.items():
        found.storages[storage_text(*storage)] += videos
    if not found.row.spec.imported:
        _add_errors(found, rows, np.nan_to_num(columns.token_p99, nan=np.inf))
    _add_times(found.stored, columns.created, columns.record_bytes)


def _add_errors(found: SetSurvey, rows: list[Entry], errors: Any) -> None:
    found.exact += int((errors == 0).sum())
    inside = errors[errors != 0].clip(ERROR_ENDS[0], ERROR_ENDS[-1])
    found.errors = (found.errors + np.histogram(inside, ERROR_ENDS)[0]).tolist()
    if found.row.max_error is not None:
        found.beyond += int((errors > found.row.max_error).sum())
    _keep_worst(found, rows, errors)


def _keep_worst(found: SetSurvey, rows: list[Entry], errors: Any) -> None:
    most = np.argsort(-errors, kind="stable")[:WORST].tolist()
    candidates = [
        WorstVideo(float(errors[i]), rows[i].token_max, rows[i].video_id) for i in most if errors[i]
    ]
    found.worst = heapq.nlargest(WORST, [*found.worst, *candidates])


def _add_times(stored: dict[int, tuple[int, int]], created: Any, sizes: Any) -> None:
    times = np.nan_to_num(created, nan=0.0).clip(0, _LATEST)
    periods, places = np.unique((times // PERIOD).astype(np.int64), return_inverse=True)
    videos, taken = np.bincount(places), np.bincount(places, np.asarray(sizes, np.float64))
    for period, count, size in zip(periods.tolist(), videos.tolist(), taken.tolist(), strict=True):
        before = stored.get(period, (0, 0))
        stored[period] = before[0] + count, before[1] + int(size)


def _add_failure(reasons: dict[str, Reason], failure: Failure) -> None:
    text = failure.reason.replace(failure.video_path, "").lstrip(": ")
    key = re.sub(r"\d+(\.\d+)?", "0", text)
    if key not in reasons and len(reasons) >= _REASONS:
        key = text = "other reasons"
    reason = reasons.setdefault(key, Reason(text))
    reason.videos += 1
    if len(reason.examples) < _EXAMPLES:
        reason.examples.append(failure.video_id)


def _cover(
    snapshot: DatasetSnapshot, found: SetSurvey, videos: int | None, listed: list[str] | None
) -> Coverage:
    if listed is None:
        return Coverage(found.dataset, videos, found.videos, found.failed)
    digest = found.row.spec.digest
    keys = {video: video_key(digest, video) for video in listed}
    stored = {video for video, key in keys.items() if has_entry(snapshot, key)}
    rest = [video for video in listed if video not in stored]
    failed = {video for video in rest if read_failure(snapshot, keys[video]) is not None}
    missing = [video for video in rest if video not in failed]
    return Coverage(found.dataset, len(listed), len(stored), len(failed), tuple(missing[:_MISSING]))


def merged_reasons(sets: Iterable[SetSurvey]) -> list[tuple[Reason, list[str]]]:
    """Return the reasons of all sets with the datasets that have them, the most frequent first."""
    merged: dict[str, tuple[Reason, dict[str, None]]] = {}
    for found in sets:
        for key, reason in found.failures.items():
            total, datasets = merged.setdefault(key, (Reason(reason.text), {}))
            total.videos += reason.videos
            total.examples = [*total.examples, *reason.examples][:_EXAMPLES]
            datasets[found.dataset] = None
    ordered = sorted(merged.values(), key=lambda pair: (-pair[0].videos, pair[0].text))
    return [(reason, list(datasets)) for reason, datasets in ordered]
