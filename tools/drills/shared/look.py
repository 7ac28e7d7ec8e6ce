"""What a cache directory holds, every byte read and compared; done in a process that damage may kill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drills.shared.content import is_right, version_of

from featstore.errors import FeatstoreError
from featstore.store.catalog import read_entries, read_failures, read_manifest, read_sets
from featstore.store.maintenance.check import check_dataset
from featstore.store.manifest import Counts
from featstore.store.paths import dataset_names
from featstore.store.reader import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from featstore.records.features import Features
    from featstore.spec import FeatureSpec
    from featstore.store.dataset import Dataset


@dataclass
class Found:
    """What is visible: versions and failures by `dataset/nframe/video`, and what must not be, in sentences."""

    versions: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def name_of(dataset: str, spec: FeatureSpec, video_id: str) -> str:
    """Return what a drill calls a video in a feature set."""
    return f"{dataset}/{spec.sampling.nframe}/{video_id}"


def look(cache_dir: Path, right: Callable[[FeatureSpec, Features], bool] = is_right) -> Found:
    """Return what is visible in `cache_dir`; a record is half or wrong unless `right` says that its bytes are."""
    found = Found()
    if not cache_dir.is_dir():
        return found
    for dataset in dataset_names(cache_dir):
        try:
            found.problems += check_dataset(cache_dir, dataset).problems
            _look_into(cache_dir, dataset, right, found)
        except FeatstoreError as exc:
            found.problems.append(f"{dataset} cannot be read: {exc}")
    return found


def _look_into(
    cache_dir: Path, dataset: str, right: Callable[[FeatureSpec, Features], bool], found: Found
) -> None:
    whole = FeatureStore(cache_dir, verify="always")[dataset]
    found.problems += wrong_counts(whole)
    for shelf in whole.sets.values():
        row = shelf.feature_set
        spec, due = row.spec, set()
        for entry in shelf.entries():
            name = name_of(dataset, spec, entry.video_id)
            features = shelf[entry.video_id]
            found.versions[name] = version_of(features)
            if entry.created < row.storage_since:
                due.add(name)
            if not right(spec, features):
                found.problems.append(f"{name} is visible with bytes that are not its own")
        for failure in shelf.failures():
            name = name_of(dataset, spec, failure.video_id)
            found.failed[name] = failure.reason
            if name in found.versions.keys() - due:  # one that is to be stored again may fail first
                found.problems.append(f"{name} is both stored and failed")


def wrong_counts(dataset: Dataset) -> list[str]:
    """Return where the manifest says other than the rows: its counts of each set, and which sets there are."""
    snapshot = dataset.snapshot()
    manifest, rows = read_manifest(snapshot), {}
    for digest in read_sets(snapshot):
        entries = list(read_entries(snapshot, digest))
        rows[digest] = Counts(
            len(entries),
            sum(1 for _ in read_failures(snapshot, digest)),
            sum(entry.frames for entry in entries),
            sum(entry.record_bytes for entry in entries),
        )
    problems = []
    if manifest.sets != rows:
        problems.append(f"the manifest counts {manifest.sets}, the rows are {rows}")
    if manifest.default not in (rows or {""}):
        problems.append(f"the default set {manifest.default!r} is none of {[*rows]}")
    return problems
