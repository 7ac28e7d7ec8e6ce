"""What a store holds, as plain values: for `featstore info`, and for cache_meta.json at the root of the cache."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError
from featstore.store.catalog import read_entries, read_failures, read_manifest, read_sets
from featstore.store.engine.environment import open_snapshot
from featstore.store.lost import lost_datasets
from featstore.store.paths import META_FILE, dataset_names, dataset_path, is_sealed
from featstore.system.fsync import write_atomically

if TYPE_CHECKING:
    import os

    from featstore.store.catalog import FeatureSet
    from featstore.store.engine.snapshot import Snapshot


def describe_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> dict[str, Any]:
    """Return manifest, counts, bytes and feature sets of a dataset, read only from its catalog."""
    path = dataset_path(cache_dir, dataset)
    snapshot = open_snapshot(path)
    manifest = read_manifest(snapshot)
    sets = [_describe_set(snapshot, found) for found in read_sets(snapshot).values()]
    return {
        "dataset": manifest.dataset,
        "format": manifest.format,
        "engine": manifest.engine,
        "created": manifest.created,
        "sealed": is_sealed(path),
        "file_bytes": snapshot.mapping.file_bytes(),
        "videos": sum(found["videos"] for found in sets),
        "record_bytes": sum(found["record_bytes"] for found in sets),
        "failures": sum(found["failures"] for found in sets),
        "feature_sets": sets,
    }


def describe_store(cache_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what each dataset of the cache holds; one that cannot be read, or is lost, has an `error` instead."""
    datasets: dict[str, Any] = {
        name: {"dataset": name, "error": lost} for name, lost in lost_datasets(cache_dir).items()
    }
    for name in dataset_names(cache_dir):
        try:
            datasets[name] = describe_dataset(cache_dir, name)
        except FeatstoreError as exc:
            datasets[name] = {"dataset": name, "error": str(exc)}
    datasets = dict(sorted(datasets.items()))
    readable = [found for found in datasets.values() if "error" not in found]
    return {
        "videos": sum(found["videos"] for found in readable),
        "record_bytes": sum(found["record_bytes"] for found in readable),
        "datasets": datasets,
    }


def write_cache_meta(cache_dir: str | os.PathLike[str], *, forget: str | None = None) -> None:
    """Rewrite cache_meta.json at once, so that no reader sees half of it.

    It is for people and scripts; featstore itself reads from it only which datasets were lost, so a disk too full for
    it costs nothing else. forget: a dataset that is to be removed.
    """
    target = Path(cache_dir) / META_FILE
    described = describe_store(cache_dir)
    described["datasets"].pop(forget, None)
    text = json.dumps(described, indent=2) + "\n"
    with contextlib.suppress(OSError), write_atomically(target) as file:
        file.write(text.encode())


def _describe_set(snapshot: Snapshot, found: FeatureSet) -> dict[str, Any]:
    spec = found.spec
    entries = list(read_entries(snapshot, spec.digest))
    errors = [entry.error for entry in entries]
    return {
        "digest": spec.digest,
        "model_signature": spec.encoder.model_signature,
        "origin": found.origin,
        "created": found.created,
        "videos": len(entries),
        "frames": sum(entry.frames for entry in entries),
        "record_bytes": sum(entry.record_bytes for entry in entries),
        "failures": sum(1 for _ in read_failures(snapshot, spec.digest)),
        "error": {
            "cosine_min": min((error.cosine for error in errors), default=None),
            "relative_l2_mean": _mean([error.relative_l2 for error in errors]),
            "relative_l2_max": max((error.relative_l2 for error in errors), default=None),
            "max_abs": max((error.max_abs for error in errors), default=None),
        },
        "spec": spec.to_dict(),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
