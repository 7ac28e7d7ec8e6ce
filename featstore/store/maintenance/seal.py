"""Seal a dataset that is finished: no one writes to it any more, so its readers take no locks and need write nothing.

That lets users read it who may not write it, from read-only disks and from any number of containers.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from featstore.errors import StoreError, command_line
from featstore.store.catalog import hold_dataset
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.maintenance.compact import rewrite
from featstore.store.paths import DATA_FILE, SEAL_FILE, because, is_sealed
from featstore.system.fsync import sync_dir

if TYPE_CHECKING:
    from pathlib import Path


def seal_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> None:
    """Refuse all writes to `dataset` from now on; nothing happens if it is sealed.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work.
        StoreError: The file may not be written, has other names (hard links), or its pages are damaged.
    """
    with hold_dataset(cache_dir, dataset) as path:
        if is_sealed(path):
            return
        _refuse_shared(path)
        txn = WriteTransaction(path)
        try:
            os.close(os.open(path / SEAL_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            sync_dir(path)
        except OSError as exc:
            raise StoreError(f"{path} cannot be sealed: {because(exc)}") from exc
        finally:
            txn.abort()


def _refuse_shared(path: Path) -> None:
    """Raise StoreError if the data file has other names: who writes through one sees no seal, and no reader."""
    names = os.stat(path / DATA_FILE).st_nlink
    if names > 1:
        raise StoreError(
            f"{path / DATA_FILE} cannot be sealed: the same file has {names - 1} other "
            f"name{'s' * (names > 2)} (hard links, as cp -l makes), and what is written through those would change "
            "what readers without locks are looking at",
            remedy="give this dataset a file of its own: "
            f"{command_line('compact', cache_dir=path.parent, dataset=path.name)}",
        )


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
