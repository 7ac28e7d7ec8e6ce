"""What a store holds, as plain values: for `featstore info`, and for cache_meta.json at the root of the cache."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError
from featstore.fields import all_finite, time_text, to_plain
from featstore.records.storage import storage_text
from featstore.store.catalog import open_dataset, read_entries, read_manifest, read_sets
from featstore.store.lost import closed_datasets, listed_datasets, lost_datasets
from featstore.store.manifest import Counts
from featstore.store.paths import META_FILE, dataset_names, dataset_path, is_sealed, is_sharded
from featstore.store.rows import Entry
from featstore.system.fsync import write_atomically

if TYPE_CHECKING:
    import os

    from featstore.store.rows import FeatureSet
    from featstore.store.shards.base import DatasetSnapshot

_STORAGE = [*map(Entry._fields.index, ("values", "granularity", "codec"))]  # places in a row


def describe_dataset(
    cache_dir: str | os.PathLike[str], dataset: str, *, rows: bool = True, storages: bool = False
) -> dict[str, Any]:
    """Return what a dataset holds: counts and bytes from its manifest, and its feature sets, oldest first.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        rows: Also read the rows of the videos, and add to each set, as `errors`, how far stored values are from the
            encoder's, how many videos each of the `decoders` read, have each of the `doubts` and are stored in each of
            the `storages`, how many are `lossless` as they missed the error budget, and, as `stored_otherwise`, how
            many an ingest makes again because the set's storage was replaced.
        storages: Of these only how many videos are stored in each of the `storages`, in a fraction of the time.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreError: It cannot be read.
    """
    path, snapshot = dataset_path(cache_dir, dataset), open_dataset(cache_dir, dataset)
    manifest = read_manifest(snapshot, dataset)
    found_sets = read_sets(snapshot)
    sets = [
        _describe_set(found, manifest.sets.get(digest, Counts()), manifest.default)
        for digest, found in found_sets.items()
    ]
    if rows:
        for described, found in zip(sets, found_sets.values(), strict=True):
            described |= _describe_rows(snapshot, found)
    elif storages:
        for described, found in zip(sets, found_sets.values(), strict=True):
            entries = read_entries(snapshot, found.spec.digest)
            kept = Counter(map(itemgetter(*_STORAGE), entries))
            described["storages"] = {storage_text(*how): videos for how, videos in kept.items()}
    return {
        "dataset": manifest.dataset,
        "format": manifest.format,
        "engine": manifest.engine,
        "created": time_text(manifest.created),
        "sealed": is_sealed(path) or is_sharded(path),
        "file_bytes": snapshot.file_bytes(),
        "videos": sum(found["videos"] for found in sets),
        "record_bytes": sum(found["record_bytes"] for found in sets),
        "failures": sum(found["failures"] for found in sets),
        "default_set": manifest.default or None,
        "feature_sets": sets,
    }


def describe_store(
    cache_dir: str | os.PathLike[str], *, rows: bool = False, storages: bool = False
) -> dict[str, Any]:
    """Return what each dataset of the cache holds; one that cannot be read, or is lost, has `problems` instead.

    Args:
        cache_dir: The cache directory.
        rows: As for `describe_dataset`; and so `storages`.
    """
    datasets: dict[str, Any] = {
        name: {"dataset": name, "problems": [why]}
        for name, why in (lost_datasets(cache_dir) | closed_datasets(cache_dir)).items()
    }
    for name in dataset_names(cache_dir):
        try:
            datasets[name] = describe_dataset(cache_dir, name, rows=rows, storages=storages)
        except FeatstoreError as exc:
            datasets[name] = {"dataset": name, "problems": [str(exc)]}
    datasets = dict(sorted(datasets.items()))
    readable = [found for found in datasets.values() if "problems" not in found]
    return {
        "videos": sum(found["videos"] for found in readable),
        "record_bytes": sum(found["record_bytes"] for found in readable),
        "datasets": datasets,
    }


def write_cache_meta(cache_dir: str | os.PathLike[str], *, forget: str | None = None) -> None:
    """Rewrite cache_meta.json at once, so that no reader sees half of it; `written` in it says when it was true.

    It is for people and scripts; featstore itself reads from it only which datasets were lost, so a disk too full for
    it costs nothing else. So it does not list what never could be read: a folder that was renamed is no dataset of that
    name, and its end no loss. forget: a dataset that is to be removed.
    """
    target, now = Path(cache_dir) / META_FILE, time_text(time.time())
    described, listed = describe_store(cache_dir), listed_datasets(cache_dir) - {forget}
    described["datasets"] = {
        name: found
        for name, found in described["datasets"].items()
        if name != forget and (name in listed or "problems" not in found)
    }
    text = json.dumps({"written": now, **described}, indent=2) + "\n"
    with contextlib.suppress(OSError), write_atomically(target) as file:
        file.write(text.encode())


def _describe_set(found: FeatureSet, counts: Counts, default: str) -> dict[str, Any]:
    return {
        "feature_set": found.spec.digest,
        "default": found.spec.digest == default,
        "imported": found.spec.imported,
        "origin": found.origin,
        "names": dict(found.names),
        "created": time_text(found.created),
        **vars(counts),
        "storage": to_plain(found.storage),
        "max_error": found.max_error,
        "spec": found.spec.to_dict(),
    }


def _describe_rows(snapshot: DatasetSnapshot, row: FeatureSet) -> dict[str, Any]:
    """Return what the rows of the videos say: each decoder and doubt, how many differ, how far values are off.

    Of the errors it is the worst, and the mean of the relative L2; None if there are no videos.
    """
    count, total, otherwise, lossless = 0, 0.0, 0, 0
    decoders: Counter[str] = Counter()
    doubts: Counter[str] = Counter()
    storages: Counter[tuple[str, str, str]] = Counter()
    worst: tuple[float | None, ...] = (None,) * 5
    for entry in read_entries(snapshot, row.spec.digest):
        found = (
            -entry.cosine,
            entry.relative_l2,
            entry.max_abs,
            entry.token_p99,
            entry.token_max,
        )
        worst = tuple(map(max, worst, found)) if count else found  # type: ignore[arg-type]
        count, total = count + 1, total + entry.relative_l2
        differs = bool(row.storage_since) and row.differs(entry)
        otherwise += differs
        lossless += not differs and row.is_lossless(entry)
        storages[entry.values, entry.granularity, entry.codec] += 1
        decoders[entry.decoder] += 1
        if entry.doubt:
            doubts[entry.doubt] += 1
    cosine, relative_l2, max_abs, token_p99, token_max = worst
    errors = {
        "cosine_min": None if cosine is None else -cosine,
        "relative_l2_mean": total / count if count else None,
        "relative_l2_max": relative_l2,
        "max_abs": max_abs,
        "token_p99_max": token_p99,
        "token_max": token_max,
    }
    return {
        "decoders": dict(decoders),
        "doubts": dict(doubts),
        "storages": {storage_text(*kept): videos for kept, videos in storages.items()},
        "lossless": lossless,
        "stored_otherwise": otherwise,
        "errors": all_finite(errors),
    }
