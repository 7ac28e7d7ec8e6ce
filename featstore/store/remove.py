"""Remove a dataset: gone at once for whoever looks, its views good for whoever still holds them."""

from __future__ import annotations

import contextlib
import os
import shutil

from featstore.durable import sync_folder
from featstore.errors import StoreError, StoreNotFound
from featstore.store.layout import DATA_FILE, dataset_path
from featstore.store.lock import ingest_lock


def remove_dataset(cache_dir: str | os.PathLike[str], dataset: str) -> int:
    """Remove `dataset` and return the bytes it took on disk.

    Raises StoreNotFound where it is not there, StoreLocked while an ingest is at work. A run killed halfway leaves
    a folder whose name begins with a dot, which no one reads and the next removal of the dataset clears.
    """
    path = dataset_path(cache_dir, dataset)
    gone = path.with_name(f".removed-{dataset}")
    if not (path / DATA_FILE).is_file():
        shutil.rmtree(gone, ignore_errors=True)
        raise StoreNotFound(
            f"there is no dataset {dataset!r} in {cache_dir}; list them: featstore ls"
        )
    with ingest_lock(path):
        taken = (path / DATA_FILE).stat().st_blocks * 512
        shutil.rmtree(gone, ignore_errors=True)
        try:
            os.rename(path, gone)
            sync_folder(
                path.parent
            )  # or a power loss could bring back a folder with half its files
        except OSError as exc:
            raise StoreError(f"{path} cannot be removed: {exc.strerror}") from exc
    with contextlib.suppress(FileNotFoundError):  # another removal clears it too
        shutil.rmtree(gone)
    return taken
