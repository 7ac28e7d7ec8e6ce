"""Seal a dataset that is finished: no one writes to it any more, so its readers take no locks and need write nothing.

That lets users read it who may not write it, from read-only disks and from any number of containers.
"""

from __future__ import annotations

import os

from featstore.errors import StoreError
from featstore.store.catalog import hold_dataset
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.maintenance.compact import rewrite
from featstore.store.paths import SEAL_FILE, because, is_sealed
from featstore.system.fsync import sync_dir


def seal_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> None:
    """Refuse all writes to `dataset` from now on; nothing happens if it is sealed.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work.
        StoreError: The file may not be written, or its pages are damaged.
    """
    with hold_dataset(cache_dir, dataset) as path:
        if is_sealed(path):
            return
        txn = WriteTransaction(path)
        try:
            os.close(os.open(path / SEAL_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            sync_dir(path)
        except OSError as exc:
            raise StoreError(f"{path} cannot be sealed: {because(exc)}") from exc
        finally:
            txn.abort()


def unseal_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> None:
    """Let `dataset` be written again; nothing happens if it is not sealed.

    A copy takes the place of its file, as in a compaction: readers without locks may be at work on the file itself, and
    nobody would keep a writer from the pages they see.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work.
        StoreFull: The disk has no room for the copy.
        StoreError: The file may not be written, or is damaged.
    """
    with hold_dataset(cache_dir, dataset) as path:
        if is_sealed(path):
            rewrite(path, unseal=True)
