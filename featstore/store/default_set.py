"""Which feature set of a dataset is meant if none is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.store.catalog import hold_dataset, read_sets
from featstore.store.changes import CatalogTransaction
from featstore.store.selection import select

if TYPE_CHECKING:
    import os

    from featstore.store.rows import FeatureSet


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
        chosen = select(read_sets(txn.environment.snapshot()), path, None, digest)
        txn.default = chosen.spec.digest
    return chosen
