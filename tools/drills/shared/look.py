"""What a cache directory holds, every byte read and compared; done in a process that damage may kill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drills.shared.content import is_right, version_of

from featstore.errors import FeatstoreError
from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import dataset_names
from featstore.store.reader import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from featstore.records.features import Features
    from featstore.spec import FeatureSpec


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
    shelf = FeatureStore(cache_dir, verify="always")[dataset]
    specs = {kept.spec.digest: kept.spec for kept in shelf.sets()}
    for entry in shelf.entries():
        spec = specs[entry.spec]
        name = name_of(dataset, spec, entry.video_id)
        features = shelf.lookup(entry.video_id, spec=spec)
        found.versions[name] = version_of(features)
        if not right(spec, features):
            found.problems.append(f"{name} is visible with bytes that are not its own")
    for failure in shelf.failures():
        name = name_of(dataset, specs[failure.spec], failure.video_id)
        found.failed[name] = failure.reason
        if name in found.versions:
            found.problems.append(f"{name} is both stored and failed")
