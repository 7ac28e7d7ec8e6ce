"""Open a dataset, whether it is one LMDB file or a list of sealed ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from featstore.errors import StoreError, StoreNotFound
from featstore.store.engine.environment import Keeper, open_environment
from featstore.store.paths import DATA_FILE, is_sharded
from featstore.store.shards.remote.connection import read_remote
from featstore.store.shards.remote.reading import remote_reader
from featstore.store.shards.union import shard_reader

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.store.shards.base import Commits, DatasetSnapshot


def open_snapshot(path: Path) -> DatasetSnapshot:
    """Return the newest commit of the dataset in the folder `path`.

    Raises:
        StoreNotFound: There is none.
        StoreError: It cannot be opened, is damaged, or is both one file and a list of shards.
    """
    return open_commits(path).snapshot()


def open_commits(path: Path) -> Commits:
    """Return what gives the commits of the dataset in the folder `path`; raise as `open_snapshot`."""
    if is_sharded(path):
        if os.path.lexists(path / DATA_FILE):
            raise StoreError(
                f"{path} holds a file {DATA_FILE} and shards: it is not clear which of them is the dataset",
                remedy="move one of the two elsewhere",
            )
        remote = read_remote(path.parent)
        return shard_reader(path) if remote is None else remote_reader(path, remote)
    return open_environment(path)


class CommitsKeeper:
    """Keeps a dataset open from one lookup to the next, as `Keeper` does, whatever it is made of."""

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self._path = path
        self._keeper = Keeper(path)
        self._shards: Commits | None = None

    def open(self) -> Commits:
        """Return what gives the commits of the dataset that is there now."""
        if self._shards is not None and not os.path.lexists(f"{self._path}/{DATA_FILE}"):
            return self._shards
        self._shards = None
        if self._keeper.environment is not None or not is_sharded(self._path):
            try:
                return self._keeper.open()
            except StoreNotFound:
                pass
        found = open_commits(self._path)
        self._shards = found if is_sharded(self._path) else None
        return found
