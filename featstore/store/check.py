"""Walk everything a dataset holds and report what is wrong, in sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featstore.errors import FeatstoreError, StoreDamaged
from featstore.record import parse
from featstore.store.catalog import (
    Entry,
    read_failures,
    read_manifest,
    read_sets,
    unpack_entry,
    video_key,
)
from featstore.store.env import open_environment
from featstore.store.layout import dataset_path

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from featstore.spec import FeatureSpec
    from featstore.store.env import Snapshot


@dataclass
class CheckReport:
    """What a check saw: problems are sentences, none means clean."""

    dataset: str
    videos: int = 0
    record_bytes: int = 0
    failures: int = 0
    problems: list[str] = field(default_factory=list)


def check_dataset(
    cache_dir: str | os.PathLike[str],
    dataset: str,
    on_video: Callable[[Entry], None] = lambda entry: None,
) -> CheckReport:
    """Read every row, record and checksum of `dataset` as of one snapshot.

    on_video is called after each video, for progress. Problems go into the report; only a dataset that is not there, or
    cannot be opened at all, raises.
    """
    report = CheckReport(dataset)
    try:
        snapshot = open_environment(dataset_path(cache_dir, dataset)).snapshot()
    except StoreDamaged as exc:
        report.problems.append(str(exc))
        return report
    try:
        read_manifest(snapshot, dataset)
        known = {digest: found.spec for digest, found in read_sets(snapshot).items()}
        report.failures = sum(1 for _ in read_failures(snapshot))
        for key, row in snapshot.rows("catalog"):
            entry = _check_video(snapshot, key, row, known, report)
            if entry is not None:
                on_video(entry)
        for key in snapshot.keys("records"):
            if snapshot.read("catalog", key) is None:
                report.problems.append(
                    f"record {key.decode(errors='replace')} has no row in the catalog; "
                    "remove the dataset and ingest again"
                )
    except FeatstoreError as exc:
        report.problems.append(str(exc))
    return report


def _check_video(
    snapshot: Snapshot,
    key: bytes,
    row: bytes,
    known: dict[str, FeatureSpec],
    report: CheckReport,
) -> Entry | None:
    report.videos += 1
    name = f"row {key.decode(errors='replace')}"
    try:
        entry = unpack_entry(row)
        name = f"video {entry.video_id!r} of set {entry.spec[:8]}"
        value = snapshot.get("records", key)
        if value is None:
            report.problems.append(f"{name} has a row but no record; ingest it again")
            return entry
        record = parse(value)
        if Entry.of(record.header, len(value)) != entry:
            report.problems.append(f"{name}: row and record differ; ingest it again")
        if entry.spec not in known:
            report.problems.append(f"{name}: its feature set has no row; ingest it again")
        elif video_key(known[entry.spec], report.dataset, entry.video_id) != key:
            report.problems.append(f"{name} lies under another video's key; ingest it again")
        record.verify()
        report.record_bytes += len(value)
    except FeatstoreError as exc:
        report.problems.append(f"{name}: {exc}")
        return None
    return entry
