"""Which feature set of a dataset is meant if none is named."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from featstore.errors import StoreMismatch
from featstore.store.catalog import hold_dataset, read_sets, read_whole_sets
from featstore.store.changes import CatalogTransaction
from featstore.store.selection import select

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from featstore.spec import FeatureSpec
    from featstore.store.rows import FeatureSet
    from featstore.store.shards.base import DatasetSnapshot


def choose_set(
    snapshot: DatasetSnapshot,
    path: Path,
    nframe: int | None,
    spec: FeatureSpec | str | None,
    own: str,
) -> FeatureSet:
    """Return the set that is meant; raise as `select`, and StoreDamaged if it may be one whose row cannot be read.

    Args:
        snapshot: Of the dataset.
        path: Its folder, for messages.
        nframe: Frames per video of the set, if it matters.
        spec: The set's FeatureSpec, or first digits of its digest, if it matters.
        own: Digest of the set that is meant if several fit.
    """
    sets, _ = read_whole_sets(snapshot)
    named = spec if isinstance(spec, (str, type(None))) else getattr(spec, "digest", "")
    if named is None and own in sets:
        with contextlib.suppress(StoreMismatch):  # it, if it fits, whatever the others are
            chosen = select(sets, path, nframe, None, own)
            if chosen.spec.digest == own:
                return chosen
    return select(read_sets(snapshot, (named or "").lower()), path, nframe, spec)


def set_default(cache_dir: str | os.PathLike[str], dataset: str, digest: str) -> FeatureSet:
    """Make a feature set the default of `dataset`, for every process from its next lookup on.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        digest: Four or more first digits of the set's digest.

    Returns:
        The row of the set.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreMismatch: No feature set has such a digest, or several do.
        StoreLocked: An ingest is at work.
        StoreError: The dataset is sealed or damaged.
    """
    with hold_dataset(cache_dir, dataset) as path, CatalogTransaction(path, dataset) as txn:
        sets = read_sets(txn.environment.snapshot(), digest.lower())
        chosen = select(sets, path, None, digest)
        txn.default = chosen.spec.digest
    return chosen
