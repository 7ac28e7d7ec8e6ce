"""A dataset's file while nobody writes to it: counted and copied, for a compaction."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from featstore.store.engine.environment import open_environment
from featstore.store.engine.handles import open_liblmdb
from featstore.store.engine.lmdb_errors import translated
from featstore.store.engine.locks import write_lock
from featstore.store.engine.pages import refuse_damaged_pages
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.paths import lmdb_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import lmdb

_METAS = 2  # pages


class StillFile:
    """A dataset's file to be copied while nobody writes to it.

    Attributes:
        live_bytes: Bytes of the pages in use: what a compacted copy takes.
        rows: Keys in all tables.
    """

    def __init__(self, environment: lmdb.Environment, path: Path) -> None:
        """Take liblmdb's environment for the folder `path`."""
        with translated(path):
            found = environment.stat()
        pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        self.live_bytes: int = (pages + _METAS) * found["psize"]
        self.rows: int = found["entries"]
        self._environment = environment
        self._path = path

    def copy_compacted(self, folder: Path) -> None:
        """Copy the pages in use to a new data file in `folder`; raise StoreError."""
        with translated(self._path), lmdb_name(folder) as name:
            self._environment.copy(name, compact=True)


@contextlib.contextmanager
def hold_still(path: Path, *, sealed: bool) -> Iterator[StillFile]:
    """Keep every writer out of the dataset in `path`, those of older releases by LMDB's own lock."""
    if not sealed:
        txn = WriteTransaction(path)
        try:
            yield StillFile(txn.environment.lmdb, path)
        finally:
            txn.abort()
        return
    lock = write_lock(path)
    try:
        refuse_damaged_pages(path)
        environment = open_environment(path)
        if not environment.reads_alone:  # opened before it was sealed
            yield StillFile(environment.lmdb, path)
            return
        with translated(path), lmdb_name(path) as name:
            opened = open_liblmdb(name, readonly=True, lock=False)
        with opened:
            yield StillFile(opened, path)
    finally:
        lock.close()
